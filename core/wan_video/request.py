"""Requests: the settings published with Wan's models, and what sizes they make."""

from __future__ import annotations

import math
from typing import Literal, get_args

from ..errors import PiyingError
from ..image_sizes import MULTIPLE, Fit, check_multiple
from ..wan.request import MAX_SIDE, MIN_SIDE, WanRequest, check_num_frames, check_speed_settings
from .frame_inputs import FrameInputs

TITLE = "Wan"
# These are stored in workflow files, so they stay.
FrameSize = Literal["frame", "widgets"]
FRAME_SIZES: tuple[FrameSize, ...] = get_args(FrameSize)
FRAME_FITS: tuple[Fit, ...] = ("crop", "letterbox", "stretch")
# Of Wan2.1's text-to-video models (wan/configs of Wan-Video/Wan2.1, generate.py); the nodes begin with them.
DEFAULT_SHIFT = 5.0


def check_side(name: str, value: int, multiple: int = MULTIPLE) -> None:
    """Accept a side that is a multiple of 16, or of `multiple`.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    check_multiple(name, value, TITLE, low=max(MIN_SIDE, multiple), high=MAX_SIDE, step=multiple)


def check_request(request: WanRequest, inputs: FrameInputs) -> None:
    """Accept a request whose values a model can use without changes.

    Args:
        inputs: what the model reads.

    Raises:
        PiyingError: a size or length is off; the nearest good ones are named.
    """
    for name, value in (("width", request.width), ("height", request.height)):
        check_side(name, value, 2 * inputs.stride)
    check_num_frames(request.num_frames, TITLE)
    check_speed_settings(request)


def shaped_like(width: int, height: int, picture: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size of at most width × height pixels in the shape of a picture, as wan/image2video.py does.

    Args:
        picture: width and height.
        multiple: of which both sides are multiples.

    Raises:
        PiyingError: the picture is too long and narrow for it.
    """
    aspect, area = picture[1] / picture[0], width * height
    sides = math.sqrt(area / aspect), math.sqrt(area * aspect)
    found = int(sides[0]) // multiple * multiple, int(sides[1]) // multiple * multiple
    if min(found) < multiple or max(found) > MAX_SIDE:
        raise PiyingError(
            f"The given frame is {picture[0]}×{picture[1]}: a video of {area} pixels in its shape is too narrow. Set "
            "size_from to widgets, or crop the frame."
        )
    return found
