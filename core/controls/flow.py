"""Optical flow, painted with the colour wheel that VACE was trained on."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, check_choice
from ..host.base import Host
from ..media.frames import checked_frames, stack_frames
from .choices import DIS, FLOW_METHODS, PER_FRAME, SCALES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from ..media.frames import Pixels

    Numbers = npt.NDArray[np.float64]

# Steps of the wheel from red over yellow, green, cyan, blue and magenta to red (Baker et al., A Database and
# Evaluation Methodology for Optical Flow, 2011: more where the eye distinguishes more hues).
_ARCS = (15, 6, 4, 11, 13, 6)
_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))
_SMALL = 1e-5  # pixels; keeps a clip that stands still from being divided by nothing


def optical_flow(images: Any, method: str, scale: str, host: Host) -> torch.Tensor:
    """Return optical flow as colours, IMAGE [N, H, W, 3]: the hue is the direction, white is no motion.

    Frame i shows the motion from frame i - 1 to i; the first shows the same as the second, as VACE's annotator
    does. VACE measures motion with RAFT; this takes OpenCV's methods, which need no weights.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1, two frames or more.
        method: `dis` (dense inverse search) or `farneback`.
        scale: what full colour means: the fastest pixel of each frame (`per frame`, as VACE) or of all frames
            (`whole clip`).

    Raises:
        PiyingError: fewer than two frames, or another word for method or scale.
    """
    import cv2
    import numpy as np

    from ..media.images import to_uint8

    check_choice("method", method, FLOW_METHODS)
    check_choice("scale", scale, SCALES)
    frames = checked_frames(images)
    if len(frames) < 2:
        raise PiyingError("frames is 1 image. Motion is seen between images: connect a video of 2 frames or more.")
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc
    # Farneback has no presets: these are the values of OpenCV's tutorial.
    pyramid = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3}
    farneback = partial(cv2.calcOpticalFlowFarneback, **pyramid, poly_n=5, poly_sigma=1.2, flags=0)
    measure: Any = dis if method == DIS else farneback
    progress = host.progress("Optical flow", len(frames) - 1)
    # All flows before the first is painted: the fastest pixel of the clip is known after the last.
    flows: list[Numbers] = []
    before = cv2.cvtColor(to_uint8(frames[0]), cv2.COLOR_RGB2GRAY)
    for index, frame in enumerate(frames[1:], 1):
        after = cv2.cvtColor(to_uint8(frame), cv2.COLOR_RGB2GRAY)
        flows.append(measure(before, after, None).astype(np.float64))
        progress.step(index)
        before = after
    fastest = None if scale == PER_FRAME else max(max_speed(flow) for flow in flows)
    painted = (flow_colours(flow, fastest) for flow in [flows[0], *flows])
    return stack_frames(painted, len(frames), "Painting flow", host)


def max_speed(flow: Numbers) -> float:
    """Return the largest speed in a flow [H, W, 2], in pixels per frame."""
    import numpy as np

    return float(np.hypot(flow[..., 0], flow[..., 1]).max())


@cache
def colour_wheel() -> Numbers:
    """Return the 55 colours [55, 3] of the wheel in 0..1, in whole steps of 1/255."""
    import numpy as np

    arcs = []
    for start, end, steps in zip(_CORNERS, _CORNERS[1:] + _CORNERS[:1], _ARCS, strict=True):
        # Rounded down to multiples of 1/255, as the authors do: VACE was trained on those bytes.
        gone = np.floor(255 * np.arange(steps) / steps)[:, None]
        arcs.append(np.array(start) * 255 + (np.array(end) - np.array(start)) * gone)
    return np.concatenate(arcs) / 255


def flow_colours(flow: Numbers, fastest: float | None = None) -> Pixels:
    """Return a flow [H, W, 2] in pixels as uint8 colours [H, W, 3].

    The hue is the direction, and colours fade to white with the speed; what is faster than `fastest` is darkened.

    Args:
        flow: pixels to the right and down.
        fastest: the speed of full colour; None for the fastest pixel of this flow.
    """
    import numpy as np

    full = (max_speed(flow) if fastest is None else fastest) + _SMALL
    # The steps of the authors' code, in their order, so that the same flow gives the same bytes.
    right, down = flow[..., 0] / full, flow[..., 1] / full
    speeds = np.hypot(right, down)[..., None]
    wheel = colour_wheel()
    turn = (np.arctan2(-down, -right) / np.pi + 1) / 2 * (len(wheel) - 1)
    place = np.floor(turn).astype(int)
    part = (turn - place)[..., None]
    hue = (1 - part) * wheel[place] + part * wheel[(place + 1) % len(wheel)]
    faded = np.where(speeds <= 1, 1 - speeds * (1 - hue), hue * 0.75)
    colours: Pixels = np.floor(255 * faded).astype(np.uint8)
    return colours
