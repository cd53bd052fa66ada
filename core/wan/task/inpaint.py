"""Inpaint: a part of the video is generated again, the rest is kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from ...errors import PiyingError
from ...image_sizes import Fit
from .frames import WHITE_FROM, frames_of, mask_of, white_of
from .mask_ops import grown, shaped
from .options import Length, Shape
from .vace_task import Layer, VACETask

log = logging.getLogger("piying")


TITLE = "VACE: Inpaint"
NOUN = "video"
MOST = 0.9  # a mask this full is more often inverted by mistake than intended


@dataclass(frozen=True)
class Brush:
    """How a mask becomes the area that is generated.

    Attributes:
        invert: black marks the area.
        shape: as drawn, or the box or convex hull around it in each frame.
        grow: pixels of the video the area grows by; negative shrinks it.
    """

    invert: bool = False
    shape: Shape = "as drawn"
    grow: int = 0


def inpaint(
    video: torch.Tensor,
    mask: torch.Tensor,
    brush: Brush | None = None,
    *,
    keep: bool = True,
    feather: int = 8,
    fit: Fit = "refuse",
    length: Length = "refuse",
    fps: float = 16.0,
    task: VACETask | None = None,
) -> VACETask:
    """Return a task that generates the white part of the mask; the model sees the rest of the video.

    Args:
        video: IMAGE [n, h, w, 3]; what it shows inside the area is not used.
        mask: MASK [1 or n, h, w].
        brush: how the mask becomes the area.
        keep: bring the original pixels outside the area back into the result, untouched.
        feather: width in pixels, outside the area, over which they blend in.
        fit, length, fps: how video and mask come to the size and length of the video made.
        task: what to build on.

    Raises:
        PiyingError: mask, size or length do not agree with the rest, or the area is empty or everything.
    """
    frames = frames_of(video, NOUN)
    values = mask_of(mask, frames, NOUN)
    brush = brush or Brush()
    area = white_of(1 - values if brush.invert else values)
    # Twice: an empty mask and one that `grow` has shrunk away are put right in different ways.
    if not area.any():
        raise PiyingError(_nothing_marked(values, brush))
    area = grown(shaped(area, brush.shape), brush.grow)
    if not area.any():
        raise PiyingError(f"grow is {brush.grow}, which shrinks the mask away. Choose a number nearer to 0.")
    share = area.float().mean().item()
    if share == 1:
        raise PiyingError(
            "The mask is white everywhere, so nothing of the video would be kept. White marks what is generated: turn "
            "invert on if it is inverted; to make all of a video from text, leave this node out."
        )
    if share > MOST:
        log.warning(
            "%s: %.0f %% of the video will be generated. If that is not intended, use invert.", TITLE, 100 * share
        )
    layer = Layer("edit", TITLE, NOUN, frames, area, fit=fit, length=length, fps=fps, paste=keep, feather=feather)
    return (task or VACETask()).with_layers(layer)


def _nothing_marked(values: torch.Tensor, brush: Brush) -> str:
    if brush.invert:
        return (
            "The mask is white everywhere and invert is on, so nothing would be generated. "
            "Turn invert off, or mark the part to be generated black."
        )
    # A mask painted with a soft or dim brush looks right in the editor and still marks nothing.
    brightest = values.max().item()
    if 0 < brightest <= WHITE_FROM:
        return (
            f"The mask is {brightest:.2f} at its brightest; only what is above {WHITE_FROM} is generated. "
            "Make the mask brighter, white where something is to be generated."
        )
    return (
        "The mask is black everywhere, so nothing would be generated. White marks what is generated: "
        "turn invert on if it is inverted."
    )
