"""Requests: the settings published with Wan's models, and what sizes they make."""

from __future__ import annotations

from ..image_sizes import check_multiple
from ..wan.request import MAX_SIDE, MIN_SIDE, WanRequest, check_num_frames, check_speed_settings
from .frame_inputs import FrameInputs

TITLE = "Wan"
# Of Wan2.1's text-to-video models (wan/configs of Wan-Video/Wan2.1, generate.py); the nodes begin with them.
DEFAULT_SHIFT = 5.0


def check_request(request: WanRequest, inputs: FrameInputs) -> None:
    """Accept a request whose values a model can use without changes.

    Args:
        inputs: what the model reads.

    Raises:
        PiyingError: a size or length is off; the nearest good ones are named.
    """
    for name, value in (("width", request.width), ("height", request.height)):
        check_multiple(name, value, TITLE, low=max(MIN_SIDE, 2 * inputs.stride), high=MAX_SIDE, step=2 * inputs.stride)
    check_num_frames(request.num_frames, TITLE)
    check_speed_settings(request)
