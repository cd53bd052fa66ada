"""A person's box → the picture a pose network looks at, and its heat maps → points of the frame.

Unbiased data processing (Huang et al., The Devil is in the Details, 2020), as ViTPose was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .frames import Pixels

    Numbers = npt.NDArray[np.float32]

# ImageNet's mean and deviation, which every published ViTPose was trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ROOM = 1.25  # how much wider than the person a crop is


@dataclass(frozen=True)
class Crop:
    """Part of a frame, in its pixels: middle and size."""

    x: float
    y: float
    width: float
    height: float


def crop_around(box: tuple[float, float, float, float], aspect: float) -> Crop:
    """Return a crop with room around a box (left, top, right, bottom), of the width to height asked for."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    width, height = max(width, height * aspect), max(height, width / aspect)
    return Crop((left + right) / 2, (top + bottom) / 2, width * _ROOM, height * _ROOM)


def cut_out(frame: Pixels, crop: Crop, width: int, height: int) -> Numbers:
    """Return a crop of a frame [H, W, 3], resized and normalised, [3, height, width]; black beyond the frame."""
    import cv2
    import numpy as np

    x_scale, y_scale = (width - 1) / crop.width, (height - 1) / crop.height
    matrix = np.array(
        [
            [x_scale, 0, (width - 1) / 2 - x_scale * crop.x],
            [0, y_scale, (height - 1) / 2 - y_scale * crop.y],
        ]
    )
    cut = cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    normal: Numbers = ((cut - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)).transpose(2, 0, 1)
    return normal


def points_of(heat: Numbers, crop: Crop) -> Numbers:
    """Return the points [K, 3] that heat maps [K, h, w] show: x and y in pixels of the frame, and certainty."""
    import numpy as np

    count, height, width = heat.shape
    places = heat.reshape(count, -1).argmax(1)
    peaks = np.stack([places % width, places // width], axis=1)
    sure = heat[np.arange(count), peaks[:, 1], peaks[:, 0]]
    fine = peaks + _to_the_top(heat, peaks)
    x = fine[:, 0] * crop.width / (width - 1) + crop.x - crop.width / 2
    y = fine[:, 1] * crop.height / (height - 1) + crop.y - crop.height / 2
    return np.stack([x, y, sure], axis=1).astype(np.float32)


def _to_the_top(heat: Numbers, peaks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the step [K, 2] from each map's largest pixel to the top of the hill around it.

    One Newton step on the logarithm, which is a parabola where the hill is a Gaussian (Zhang et al.,
    Distribution-Aware Coordinate Representation, 2020).
    """
    import cv2
    import numpy as np

    steps = np.zeros((len(heat), 2))
    for index, (x, y) in enumerate(peaks):
        soft = cv2.GaussianBlur(heat[index], (3, 3), 0.8, borderType=cv2.BORDER_REFLECT)
        hill = np.pad(np.log(np.clip(soft, 1e-3, 50).astype(np.float64)), 1, mode="edge")[y : y + 3, x : x + 3]
        slope = np.array([hill[1, 2] - hill[1, 0], hill[2, 1] - hill[0, 1]]) / 2
        across, down = hill[1, 2] + hill[1, 0] - 2 * hill[1, 1], hill[2, 1] + hill[0, 1] - 2 * hill[1, 1]
        # The mixed difference of a step on the diagonal, as the authors take it.
        mixed = (hill[2, 2] - hill[1, 2] - hill[2, 1] + 2 * hill[1, 1] - hill[1, 0] - hill[0, 1] + hill[0, 0]) / 2
        curve = np.array([[across, mixed], [mixed, down]]) + np.finfo(np.float32).eps * np.eye(2)
        steps[index] = -np.linalg.solve(curve, slope)
    return steps
