"""What several nodes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import PiyingError
from ..core.host.current import get_host

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..core.image_sizes import VideoSize

CATEGORY = "Piying"  # the submenu in which the page lists all nodes
# Filled by ComfyUI: the texts that savers embed in the file, and the node's id in the workflow.
HIDDEN = {"extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"}
MAX_SEED = 0xFFFFFFFFFFFFFFFF  # as in ComfyUI's samplers, so that one seed can be wired to all of them


def seed_input(default: int = 0) -> tuple[str, dict[str, Any]]:
    """Return the declaration of a seed widget with ComfyUI's range and after-run control."""
    return (
        "INT",
        {
            "default": default,
            "min": 0,
            "max": MAX_SEED,
            "control_after_generate": True,
            "tooltip": "The same seed with the same settings gives the same result.",
        },
    )


def frames_of(source: Any) -> VideoSize | None:
    """Return the size and number of the frames that a wired node gives, None where only the run knows.

    Args:
        source: see `PlannedNode.sizes_before_run`.
    """
    # Nodes of other packs cannot tell, and the page describes none but ours.
    asked = getattr(source and source.node_class, "frames_before_run", None)
    found: VideoSize | None = None if asked is None else asked(source.known, source.sources)
    return found


def wired_inputs(dynprompt: Any, unique_id: str | None) -> frozenset[str]:
    """Return the names of a node's inputs that come over wires, from ComfyUI's DYNPROMPT; none outside of a graph."""
    if dynprompt is None or unique_id is None:
        return frozenset()
    inputs = dynprompt.get_node(unique_id)["inputs"]
    return frozenset(name for name, value in inputs.items() if isinstance(value, list))


def checked(check: Callable[..., object], *values: Any) -> bool | str:
    """Return True where `check` accepts the values, its sentence where not (ComfyUI's convention)."""
    try:
        check(*values)
    except PiyingError as error:
        return str(error)
    return True


def all_checked(results: Iterable[bool | str]) -> bool | str:
    """Return True where all answers of `checked` are, else one answer of all that is wrong, not one per attempt."""
    return " ".join(result for result in results if isinstance(result, str)) or True


def record_run(extra_pnginfo: Any, unique_id: str | None, record: dict[str, Any]) -> None:
    """Note what actually ran among the texts that savers embed in the file.

    ComfyUI hands all nodes of a run the same `extra_pnginfo` dictionary and its savers write every
    key of it, which is the one way a node has to reach a file's metadata.
    """
    if isinstance(extra_pnginfo, dict) and unique_id is not None:
        extra_pnginfo.setdefault("piying", {})[str(unique_id)] = record


def shown(
    record: dict[str, Any], *results: Any, sheets: Mapping[str, list[dict[str, Any]]] | None = None
) -> dict[str, Any]:
    """Return a node's results with what the browser shows on it: how they were made, and sheets of them."""
    return {"ui": {"piying": [record], **(sheets or {})}, "result": results}


def sheets_of(
    frames: torch.Tensor, beside: Callable[[], Mapping[str, torch.Tensor | None]] = dict
) -> dict[str, list[dict[str, Any]]]:
    """Return contact sheets of frames for the browser to look through, and nothing where no page is open.

    Args:
        frames: [N, H, W, C] in 0..1.
        beside: gives `before` and `mask`, see `write_sheets`; called where they are looked at.
    """
    host = get_host()
    if not host.is_watched():
        return {}
    from ..core.media.contact_sheet import write_sheets

    return {"piying_frames": [write_sheets(host.folder("temp"), frames, **beside())]}


def sheets_of_file(video: Path) -> dict[str, list[dict[str, Any]]]:
    """Do as `sheets_of` for a video file."""
    host = get_host()
    # Decoding a long video takes seconds, which a run without a page would spend for nobody.
    if not host.is_watched():
        return {}
    from ..core.media.contact_sheet import write_sheet_of_file

    return {"piying_frames": [write_sheet_of_file(host.folder("temp"), video)]}
