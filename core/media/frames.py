"""Frames of IMAGE and MASK: validation, conversion one at a time, stacking."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..files.dtypes import all_finite
from ..host.base import Host

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Pixels = npt.NDArray[np.uint8]


def checked_frames(images: Any, name: str = "frames") -> torch.Tensor:
    """Return an IMAGE as [N, H, W, 3], without alpha, which some packs' nodes add.

    Raises:
        PiyingError: it has another shape, or no frames.
    """
    shape = _shape(images, name, "IMAGE")
    if len(shape) != 4 or shape[3] not in (3, 4) or 0 in shape:
        raise PiyingError(
            f"{name} has the shape {shape}. Connect an IMAGE with at least one frame: [frames, height, width, 3]."
        )
    frames: torch.Tensor = images[..., :3]
    return frames


def check_finite(frames: torch.Tensor, name: str) -> None:
    """Accept frames without NaN and infinity.

    Raises:
        PiyingError: there are such values.
    """
    if not all_finite(frames):
        raise PiyingError(
            f"{name} holds values that are no numbers (NaN or infinity). Look at the node it comes from."
        )


def checked_masks(masks: Any, name: str = "mask") -> torch.Tensor:
    """Return a MASK as [N, H, W].

    Raises:
        PiyingError: it has another shape, or no frames.
    """
    shape = _shape(masks, name, "MASK")
    if len(shape) not in (2, 3) or 0 in shape:
        raise PiyingError(f"{name} has the shape {shape}. Connect a MASK: [frames, height, width].")
    found: torch.Tensor = masks.reshape(-1, *shape[-2:])
    return found


def map_frames(images: Any, make: Callable[[Pixels], Pixels], phase: str, host: Host) -> torch.Tensor:
    """Apply `make` to every frame and return the results as IMAGE, float32 [N, H, W, 3] in 0..1, on the CPU.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        make: uint8 [H, W, 3] → uint8 [H, W] or [H, W, 3] of the same height and width.
        phase: what the bar says; the run can be cancelled after every frame.
    """
    from ..media.images import to_uint8

    frames = checked_frames(images)
    return stack_frames((make(to_uint8(frame)) for frame in frames), len(frames), phase, host)


def stack_frames(pictures: Iterable[Pixels], count: int, phase: str, host: Host) -> torch.Tensor:
    """Return `count` uint8 pictures [H, W] or [H, W, 3], made one after the other, as IMAGE in 0..1.

    Args:
        phase: what the bar says; the run can be cancelled after every frame.
    """
    import numpy as np
    import torch

    progress = host.progress(phase, count)
    # Preallocated: stacking a list would hold the clip in memory twice.
    result: torch.Tensor | None = None
    for index, picture in enumerate(pictures):
        whole = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
        # torch rejects negative strides, which reversed channels have.
        frame = torch.from_numpy(np.ascontiguousarray(whole)).float() / 255
        result = torch.empty(count, *frame.shape) if result is None else result
        result[index] = frame
        progress.step(index + 1)
    # `checked_frames` and `checked_masks` refuse an empty batch.
    assert result is not None
    return result


def _shape(value: Any, name: str, kind: str) -> list[int]:
    if not hasattr(value, "shape"):
        raise PiyingError(f"{name} is of the type {type(value).__name__}. Connect a node that gives {kind}.")
    return list(value.shape)
