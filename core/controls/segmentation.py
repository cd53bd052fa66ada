"""Segmentation: masks of objects selected by the class names of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..executor.placement import resident
from ..host.base import Host
from ..media.frames import checked_frames
from .family import SEGMENTATION
from .models import choose, image_processor, load

if TYPE_CHECKING:
    import torch

log = logging.getLogger("piying")

SHOWN = 12  # names in a message


def segment(images: Any, model: str, names: str, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the mask of the named things in every frame, MASK [N, H, W] of 0 and 1, and what ran.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `model_choices(SEGMENTATION, host)`.
        names: the model's own class names, separated by commas.

    Raises:
        PiyingError: no frames, no such model, its files cannot be read, or it knows no such name.
    """
    import torch

    from ..media.images import to_uint8

    frames = checked_frames(images)
    found = choose(SEGMENTATION, model, host)
    network, processor = load(SEGMENTATION, found, host), image_processor(SEGMENTATION, found)
    device = host.device()
    labels: Any = network.config.id2label
    # Before the first frame: an unknown name should not cost a pass over the clip.
    wanted = torch.tensor(class_numbers(names, labels), device=device)
    masks = torch.empty(frames.shape[:3])
    counts = torch.zeros(len(labels), dtype=torch.int64)
    progress = host.progress("Segmentation", len(frames))
    with torch.no_grad(), resident([network], device, host):
        for index, frame in enumerate(frames):
            pixels = processor(images=to_uint8(frame), return_tensors="pt").to(device)
            size = [tuple(frame.shape[:2])]
            (classes,) = processor.post_process_semantic_segmentation(network(**pixels), target_sizes=size)
            masks[index] = torch.isin(classes, wanted)
            counts += torch.bincount(classes.flatten().cpu(), minlength=len(labels))
            progress.step(index + 1)
    seen = shares(counts.tolist(), labels)
    record: dict[str, Any] = {"model": found.name, "device": device, "names": names, "found": seen}
    if not masks.any():
        listed = ", ".join(f"{name} {share} %" for name, share in seen.items())
        record["note"] = f"Nothing named {names} was found in {len(frames)} frames. Found: {listed}."
        log.warning("Segment by Name: %s", record["note"])
    return masks, record


def shares(counts: Sequence[int], labels: Mapping[int, str]) -> dict[str, float]:
    """Return how much of all pixels each class covers, in percent, the largest first."""
    found = {
        labels.get(number, str(number)): round(100 * count / sum(counts), 1)
        for number, count in enumerate(counts)
        if count
    }
    return dict(sorted(found.items(), key=lambda entry: -entry[1])[:SHOWN])


def class_numbers(names: str, known: dict[int, str]) -> list[int]:
    """Return the numbers of the classes named, whatever their case; a class may have several names.

    Args:
        names: separated by commas (Chinese ones too).
        known: {number: "name" or "name;other name"} as in a model's config.

    Raises:
        PiyingError: a name is not known; the nearest are named.
    """
    # Some data sets list synonyms in one label ("sofa;couch"): each is accepted, and the whole label too.
    by_name = {
        part.strip().lower(): int(number)
        for number, label in known.items()
        for part in (label, *label.replace(";", ",").split(","))
    }
    wanted = [name.strip().lower() for name in names.replace("，", ",").split(",") if name.strip()]
    if not wanted:
        raise PiyingError(f"names is empty. Say what to look for: {_some(list(by_name))}.")
    # Not ignored: an unknown name would give an empty mask, without an error.
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise PiyingError(f"names has {missing[0]!r}, which this model does not know. {_near(missing[0], by_name)}")
    return sorted({by_name[name] for name in wanted})


def _near(name: str, by_name: dict[str, int]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, by_name)
    return f"Nearest: {', '.join(close)}." if close else f"It knows: {_some(list(by_name))}."


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
