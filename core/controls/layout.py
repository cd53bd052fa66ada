"""Layouts: the place of an object over time, drawn as outlines of boxes and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, check_choice
from ..host.base import Host
from ..media.frames import checked_masks, stack_frames
from .choices import BLACK_ON_WHITE, BOX, LINES, OUTLINE, OUTLINES

if TYPE_CHECKING:
    import torch

    from ..media.frames import Pixels

    Box = tuple[float, float, float, float]

# Line widths of VACE's annotators (vace/annotators/layout.py): 2 for two boxes, 3 around masks.
PATH_LINE, TRACK_LINE = 2, 3
MAX_SIDE = 16384  # ComfyUI's largest picture


def parse_box(name: str, text: str, width: int, height: int) -> Box:
    """Return left, top, right and bottom in pixels.

    Args:
        name: of the input, for messages.
        text: four numbers, in pixels, or in parts of the picture where none is above 1.
        width, height: of the picture.

    Raises:
        PiyingError: other text, or a box that is empty or out of the picture altogether.
    """
    try:
        left, top, right, bottom = (float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise PiyingError(
            f"{name} is {text!r}. Give four numbers, left, top, right, bottom, in pixels (100, 80, 400, 300) "
            "or in parts of the picture (0.1, 0.2, 0.5, 0.6)."
        ) from error
    # Nobody needs a box of one pixel in the corner, so 1 means the whole side.
    if max(left, top, right, bottom) <= 1:
        left, right, top, bottom = left * width, right * width, top * height, bottom * height
    if not (left < right and top < bottom and left < width and top < height and right > 0 and bottom > 0):
        raise PiyingError(
            f"{name} is {text!r}: nothing of that box is in a picture of {width}×{height}. Left must be smaller "
            "than right, top smaller than bottom."
        )
    return left, top, right, bottom


def box_path(
    start: Box, end: Box, *, num_frames: int, width: int, height: int, lines: str, host: Host
) -> torch.Tensor:
    """Return a box that moves and grows evenly from `start` in the first frame to `end` in the last.

    VACE's own annotator divides the way by the number of frames, so that its box ends one step short of `end`.

    Args:
        start, end: left, top, right, bottom in pixels.
        num_frames: at least 1.
        width, height: of the frames, in pixels, 1 to 16384.
        lines: `black on white`, as VACE, or `white on black`.

    Returns:
        IMAGE [num_frames, height, width, 3].

    Raises:
        PiyingError: no frames, a side out of range, or another word for lines.
    """
    import cv2

    check_choice("lines", lines, LINES)
    if num_frames < 1 or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise PiyingError(
            f"A layout of {num_frames} frames of {width}×{height} cannot be drawn. Give at least 1 frame, and sides "
            f"from 1 to {MAX_SIDE}."
        )

    def draw(part: float) -> Pixels:
        canvas, ink = _blank_canvas(height, width, lines)
        box = between(start, end, part)
        left, top = int(box[0]), int(box[1])
        # The size is rounded, not the far corner: a box that only moves must keep its size.
        corner = (left + int(box[2] - box[0]), top + int(box[3] - box[1]))
        cv2.rectangle(canvas, (left, top), corner, ink, PATH_LINE)
        return canvas

    drawn = (draw(index / max(num_frames - 1, 1)) for index in range(num_frames))
    return stack_frames(drawn, num_frames, "Layout", host)


def between(start: Box, end: Box, part: float) -> Box:
    """Return the box that lies `part` of the way from one box to another."""
    left, top, right, bottom = (a + (b - a) * part for a, b in zip(start, end, strict=True))
    return left, top, right, bottom


def mask_layout(masks: Any, outline: str, lines: str, host: Host) -> torch.Tensor:
    """Return the outlines of a mask, frame by frame; an empty mask gives empty paper.

    Args:
        masks: MASK [N, H, W]; above 0.5 is inside.
        outline: `box` around all of it, its convex `hull`, or its own `outline`.
        lines: `black on white`, as VACE, or `white on black`.

    Returns:
        IMAGE [N, H, W, 3].

    Raises:
        PiyingError: no mask, or another word for outline or lines.
    """
    import cv2

    check_choice("outline", outline, OUTLINES)
    check_choice("lines", lines, LINES)
    checked = checked_masks(masks)

    def draw(mask: torch.Tensor) -> Pixels:
        canvas, ink = _blank_canvas(mask.shape[0], mask.shape[1], lines)
        area = _area((mask > 0.5).cpu().numpy().astype("uint8"), outline)
        # External contours alone: a hole in a mask is not an object of its own.
        contours, _ = cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, contours, -1, ink, TRACK_LINE)
        return canvas

    return stack_frames(map(draw, checked), len(checked), "Layout", host)


def _area(inside: Pixels, outline: str) -> Pixels:
    """Return a mask of 0 and 1 with its bounding box or convex hull filled."""
    import cv2

    # OpenCV fails on an empty set of points.
    if outline == OUTLINE or not inside.any():
        return inside
    points = cv2.findNonZero(inside)
    if outline == BOX:
        left, top, width, height = cv2.boundingRect(points)
        inside[top : top + height, left : left + width] = 1
        return inside
    cv2.fillConvexPoly(inside, cv2.convexHull(points), 1)
    return inside


def _blank_canvas(height: int, width: int, lines: str) -> tuple[Pixels, int]:
    """Return an empty picture [H, W] and the value of the ink."""
    import numpy as np

    paper = 255 if lines == BLACK_ON_WHITE else 0
    return np.full((height, width), paper, np.uint8), 255 - paper
