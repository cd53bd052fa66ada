"""Optical flow: known motion comes out right, and is painted by the published wheel."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from piying.core.controls.choices import SCALES
from piying.core.controls.flow import colour_wheel, flow_colours, optical_flow
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost

HOST = HeadlessHost()
# Colours of full speed, read off the wheel of Baker et al.: right is red, left between cyan and blue, and so on.
RIGHT, LEFT, DOWN, UP = (255, 0, 0), (0, 209, 255), (255, 229, 0), (88, 0, 255)


def texture(height=96, width=96):
    noise = np.random.default_rng(1).random((height + 40, width + 40, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 1, cv2.NORM_MINMAX)


def moving(x, y, count=3):
    """A textured picture that moves by (x, y) pixels a frame."""
    whole = texture()
    shown = [whole[20 - y * k : 116 - y * k, 20 - x * k : 116 - x * k] for k in range(count)]
    return torch.from_numpy(np.stack(shown))


def of(right, down, full=1.0):
    return tuple(int(v) for v in flow_colours(np.full((1, 1, 2), (right, down), float), full)[0, 0])


def test_the_wheel_has_the_published_steps():
    wheel = colour_wheel() * 255
    assert wheel.shape == (55, 3)
    starts = [0, 15, 21, 25, 36, 49]  # red, yellow, green, cyan, blue, magenta
    assert wheel[starts].astype(int).tolist() == [
        [255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 255, 255], [0, 0, 255], [255, 0, 255],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("right", "down", "colour"),
    [(1, 0, RIGHT), (-1, 0, LEFT), (0, 1, DOWN), (0, -1, UP)],
    ids=["right", "left", "down", "up"],
)
def test_directions_have_their_hues(right, down, colour):
    assert np.abs(np.subtract(of(right, down), colour)).max() <= 1


def test_slow_is_pale_and_too_fast_is_dark():
    assert of(0, 0) == (255, 255, 255)
    assert of(0.5, 0) == (255, 127, 127)
    assert of(2, 0) == (191, 0, 0)


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize(("x", "y", "colour"), [(3, 0, RIGHT), (-3, 0, LEFT), (0, 3, DOWN), (0, -3, UP)])
def test_known_motion_gets_its_hue(method, x, y, colour):
    painted = optical_flow(moving(x, y), method, "whole clip", HOST)[:, 24:72, 24:72].reshape(-1, 3).median(0).values
    # Full colour is the fastest pixel's, so the typical one is paler: the hue counts.
    paleness = painted.min()
    hue = (painted - paleness) / (painted.max() - paleness)
    wanted = torch.tensor(colour) / 255
    assert (hue - wanted).abs().max() < 0.12


def test_the_first_frame_shows_what_the_second_does():
    clip = torch.cat([moving(3, 0, 2), moving(0, 3, 2)[1:]])
    painted = optical_flow(clip, "farneback", "per frame", HOST)
    assert painted.shape == clip.shape
    assert torch.equal(painted[0], painted[1])
    assert not torch.equal(painted[1], painted[2])


def test_scale_per_frame_and_over_the_clip():
    clip = torch.cat([moving(1, 0, 2), moving(5, 0, 2)])  # slow, a cut, fast
    per_frame, whole = (optical_flow(clip, "farneback", scale, HOST)[1].mean() for scale in SCALES)
    assert whole > per_frame + 0.1  # the slow pair is paler beside the fast one


def test_stillness_is_white():
    assert optical_flow(moving(0, 0), "dis", "per frame", HOST).min() > 0.99


def test_one_frame_has_no_motion():
    with pytest.raises(PiyingError, match="frames is 1 image. .* 2 frames or more"):
        optical_flow(moving(1, 0, 1), "dis", "per frame", HOST)


def test_the_same_as_torchvision():
    """Its flow_to_image is another implementation of the same wheel."""
    utils = pytest.importorskip("torchvision.utils", reason="torchvision paints flow too")
    flow = np.random.default_rng(2).normal(size=(20, 30, 2))
    ours = torch.from_numpy(flow_colours(flow)).permute(2, 0, 1).int()
    theirs = utils.flow_to_image(torch.from_numpy(flow).permute(2, 0, 1).float()).int()
    assert (ours - theirs).abs().max() <= 1
    assert math.isfinite(float(ours.sum()))
