"""People as coloured sticks, the way OpenPose draws them and VACE was trained on."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import TYPE_CHECKING

from .choices import OPENPOSE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .frames import Pixels

    Numbers = npt.NDArray[np.float32]

SURE = 0.3  # points less certain than this are not drawn (DWPose, and VACE after it)

# OpenPose's 18 points, as numbers of COCO's 17; None is the neck, halfway between the shoulders.
_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
NOSE, NECK, LEFT_SHOULDER, RIGHT_SHOULDER = 0, 1, 5, 6  # the shoulders as COCO numbers them
# Sticks between OpenPose's points: shoulders and arms, hips and legs, then the head.
STICKS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_POINT, _HALF_STICK = 4, 4  # pixels, on a picture whose shorter side is 1024
_CANVAS, _MULTIPLE = 1024, 64  # its sides are multiples of 64
_STICK_SHADE = 0.6


def hue(index: int) -> tuple[int, int, int]:
    """Return the colour (R, G, B) of a stick or point: 18 even steps around the circle of hues, from red."""
    red, green, blue = (round(255 * part) for part in hsv_to_rgb(index / 18, 1, 1))
    return red, green, blue


def openpose_points(people: Numbers) -> Numbers:
    """Return OpenPose's points [P, 18, 3] for COCO's [P, 17, 3]: x, y and certainty 0..1.

    The neck is as certain as the less certain shoulder.
    """
    import numpy as np

    left, right = people[:, LEFT_SHOULDER], people[:, RIGHT_SHOULDER]
    neck = (left + right) / 2
    neck[:, 2] = np.minimum(left[:, 2], right[:, 2])
    return np.stack([neck if source is None else people[:, source] for source in _FROM_COCO], axis=1)


def draw_people(people: Numbers, width: int, height: int, colours: str) -> Pixels:
    """Return people on black, uint8 [height, width, 3].

    Sticks and points are drawn on a picture whose shorter side is 1024, as VACE's annotator does, and
    scaled down: their thickness is a part of the picture and not a number of pixels.

    Args:
        people: OpenPose's points [P, 18, 3], x and y in pixels of the frame, and certainty.
        width, height: of the frame.
        colours: `OpenPose` (right shoulder red), or `as VACE`, whose annotator gives videos with red and blue
            exchanged.
    """
    import cv2
    import numpy as np

    across, down = (_canvas_side(side, _CANVAS / min(width, height)) for side in (width, height))
    canvas = np.zeros((down, across, 3), np.uint8)
    placed = people * np.array([across / width, down / height, 1], np.float32)
    for number, stick in enumerate(STICKS):
        for person in placed:
            _draw_stick(canvas, person[list(stick)], hue(number))
    canvas = (canvas * _STICK_SHADE).astype(np.uint8)
    for number in range(placed.shape[1]):
        for x, y, sure in placed[:, number]:
            if sure > SURE:
                cv2.circle(canvas, (int(x), int(y)), _POINT, hue(number), thickness=-1)
    how = cv2.INTER_LANCZOS4 if width * height > across * down else cv2.INTER_AREA
    drawn: Pixels = cv2.resize(canvas, (width, height), interpolation=how)
    return drawn if colours == OPENPOSE else drawn[..., ::-1]


def _canvas_side(side: int, scale: float) -> int:
    return round(side * scale / _MULTIPLE) * _MULTIPLE


def _draw_stick(canvas: Pixels, ends: Numbers, colour: tuple[int, int, int]) -> None:
    """Draw an ellipse from one point to another, where both are certain."""
    import cv2
    import numpy as np

    if ends[:, 2].min() <= SURE:
        return
    (x1, y1), (x2, y2) = ends[:, :2].astype(float)
    length = np.hypot(x1 - x2, y1 - y2)
    angle = np.degrees(np.arctan2(y1 - y2, x1 - x2))
    middle, axes = (int((x1 + x2) / 2), int((y1 + y2) / 2)), (int(length / 2), _HALF_STICK)
    cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, axes, int(angle), 0, 360, 1), colour)
