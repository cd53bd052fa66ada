"""Gray, edges and scribble: control videos that OpenCV makes without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, check_choice
from ..host.base import Host
from ..media.frames import map_frames
from .choices import AS_VACE, BLACK_ON_WHITE, GRAY_WEIGHTS, LINES, WHITE_ON_BLACK

if TYPE_CHECKING:
    import torch

    from ..media.frames import Pixels

# With it, a step of a third of full contrast comes out three quarters black.
_INK = 3


def gray(images: Any, weights: str, host: Host) -> torch.Tensor:
    """Return frames without colour, IMAGE [N, H, W, 3] with three equal channels.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        weights: `brightness`, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601); or `as VACE`, whose annotator gives
            RGB frames to OpenCV's conversion for BGR, so that red and blue change places.

    Raises:
        PiyingError: no frames, or another word for the weights.
    """
    import cv2

    check_choice("weights", weights, GRAY_WEIGHTS)
    code = cv2.COLOR_BGR2GRAY if weights == AS_VACE else cv2.COLOR_RGB2GRAY
    return map_frames(images, lambda frame: cv2.cvtColor(frame, code), "Gray", host)


def edges(images: Any, *, low: int, high: int, lines: str, host: Host) -> torch.Tensor:
    """Return Canny's edges, one pixel wide.

    The gradient of the strongest channel counts, so that a red shape on an equally bright green has an edge.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        low, high: gradients 0..1020 (Sobel 3×3, |x| + |y|, of values 0..255): edges begin above `high` and go
            on above `low`.
        lines: `white on black` or `black on white`.

    Raises:
        PiyingError: no frames; `low` above `high`.
    """
    import cv2

    check_choice("lines", lines, LINES)
    if not 0 <= low <= high:
        raise PiyingError(f"low is {low} and high is {high}. Edges begin at high and end at low: low ≤ high.")

    def make(frame: Pixels) -> Pixels:
        found: Pixels = cv2.Canny(frame, low, high)
        return found if lines == WHITE_ON_BLACK else 255 - found

    return map_frames(images, make, "Edges", host)


def scribble(images: Any, *, line_width: float, strength: float, lines: str, host: Host) -> torch.Tensor:
    """Return soft pencil lines: the gradient of the blurred picture (Canny without non-maximum suppression).

    The strongest channel counts. VACE's annotator draws with a network; what the two share is what VACE looks
    at: thin lines on white paper, without shading.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        line_width: standard deviation of the Gaussian blur in pixels, above 0; lines are about twice as wide.
        strength: how dark weak edges become, above 0.
        lines: `black on white` or `white on black`.

    Raises:
        PiyingError: no frames, or a width or strength that is not above 0.
    """
    import cv2
    import numpy as np

    check_choice("lines", lines, LINES)
    for name, value in (("line_width", line_width), ("strength", strength)):
        if not value > 0:
            raise PiyingError(f"{name} is {value:g}. Give a number above 0, such as 1.")

    # Sobel's weights sum to 8, and a blurred step of contrast 1 is at most 1 / (width √2π) steep.
    full = line_width * np.sqrt(2 * np.pi) / 8

    def make(frame: Pixels) -> Pixels:
        soft = cv2.GaussianBlur(frame.astype(np.float32) / 255, (0, 0), line_width)
        across, down = (cv2.Sobel(soft, cv2.CV_32F, *way, scale=full) for way in ((1, 0), (0, 1)))
        contrast = np.hypot(across, down).max(axis=2)
        # tanh saturates smoothly: clipping would give strong edges hard borders.
        drawn: Pixels = np.rint(255 * (1 - np.tanh(strength * _INK * contrast))).astype(np.uint8)
        return drawn if lines == BLACK_ON_WHITE else 255 - drawn

    return map_frames(images, make, "Scribble", host)
