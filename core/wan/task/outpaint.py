"""Outpaint: the video on a larger canvas, whose rest is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ...errors import PiyingError
from ...image_sizes import MULTIPLE, Fit
from .frames import frames_of
from .options import Aspect, Length, Unit
from .vace_task import Layer, VACETask, size_text

TITLE = "VACE: Outpaint"
NOUN = "canvas"
AS_GIVEN: Aspect = "as given"


@dataclass(frozen=True)
class Sides:
    """What is added to each side of the picture, in pixels or percent of its width and height."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    unit: Unit = "percent"
    aspect: Aspect = AS_GIVEN


def outpaint(
    video: torch.Tensor,
    sides: Sides,
    *,
    overlap: int = 0,
    keep: bool = True,
    feather: int = 8,
    fit: Fit = "refuse",
    length: Length = "refuse",
    fps: float = 16.0,
    task: VACETask | None = None,
) -> VACETask:
    """Have what lies around the video made.

    Args:
        video: IMAGE [n, h, w, 3].
        sides: how much is added where. Percents and aspects are rounded up so that the canvas is a multiple
            of 16; pixels are taken as they are.
        overlap: pixels of the video's own edge, on the sides that grow, that are generated with the rest.
        keep: bring the original video back into the result, untouched.
        feather: width in pixels, inside the video, over which it blends in.
        fit, length, fps: how the canvas comes to the size and length of the video made.
        task: what to build on.

    Raises:
        PiyingError: nothing is added, or size or length do not agree with the rest.
    """
    frames = frames_of(video, "video")
    added = margins((frames.shape[2], frames.shape[1]), sides)
    if not any(added):
        raise PiyingError("left, top, right and bottom are 0, so there is nothing to add. Set one of them, or aspect.")
    left, top, right, bottom = added
    # Gray, as the model was trained to see what it makes (canvas.GRAY).
    canvas = functional.pad(frames, (0, 0, left, right, top, bottom), value=0.5)
    area = _around(frames.shape[2], frames.shape[1], added, overlap)
    layer = Layer("edit", TITLE, NOUN, canvas, area, fit=fit, length=length, fps=fps, paste=keep, feather=feather)
    return (task or VACETask()).with_layers(layer)


def margins(size: tuple[int, int], sides: Sides) -> tuple[int, int, int, int]:
    """Return the pixels added left, top, right and bottom of a picture of that width and height."""
    width, height = size
    if sides.unit == "pixels":
        across, down = (sides.left, sides.right), (sides.top, sides.bottom)
    else:
        across = width * sides.left // 100, width * sides.right // 100
        down = height * sides.top // 100, height * sides.bottom // 100
    if sides.aspect != AS_GIVEN:
        across, down = _to_aspect(size, across, down, sides.aspect)
    if sides.unit == "percent" or sides.aspect != AS_GIVEN:
        across, down = _rounded_up(width, across), _rounded_up(height, down)
    return across[0], down[0], across[1], down[1]


def _to_aspect(
    size: tuple[int, int], across: tuple[int, int], down: tuple[int, int], aspect: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Widen what is added on one axis until the canvas has the aspect."""
    wide, high = (int(part) for part in aspect.split(":"))
    width, height = size[0] + sum(across), size[1] + sum(down)
    missing_across, missing_down = -(-height * wide // high) - width, -(-width * high // wide) - height
    if missing_across >= missing_down:
        return _widened(across, max(0, missing_across)), down
    return across, _widened(down, max(0, missing_down))


def _widened(added: tuple[int, int], more: int) -> tuple[int, int]:
    """Share `more` pixels out in the proportion of what is added already, evenly where nothing is."""
    both = sum(added)
    first = more * added[0] // both if both else more // 2
    return added[0] + first, added[1] + more - first


def _rounded_up(side: int, added: tuple[int, int]) -> tuple[int, int]:
    # An axis that was left alone stays as it is, even where its length is no multiple of 16.
    if not any(added):
        return added
    return _widened(added, -(side + sum(added)) % MULTIPLE)


def _around(width: int, height: int, added: tuple[int, int, int, int], overlap: int) -> torch.Tensor:
    """Return a bool area [1, H, W] that leaves the video out, but for `overlap` pixels at sides that grow."""
    left, top, right, bottom = added
    area = torch.ones(1, top + height + bottom, left + width + right, dtype=torch.bool)
    start_x, start_y = left + overlap * (left > 0), top + overlap * (top > 0)
    end_x, end_y = left + width - overlap * (right > 0), top + height - overlap * (bottom > 0)
    if start_x >= end_x or start_y >= end_y:
        raise PiyingError(
            f"overlap is {overlap}, which leaves nothing of the video of {size_text((width, height))}. Choose less."
        )
    area[:, start_y:end_y, start_x:end_x] = False
    return area
