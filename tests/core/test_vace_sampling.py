"""From a task to frames: what VACE Sample makes equals what WanVACEPipeline makes of the same inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.host.headless import HeadlessHost
from piying.core.wan.conditioning import prepare
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from piying.core.wan.task.extend import GivenFrames, extend
from piying.core.wan.task.inpaint import inpaint
from piying.core.wan.task.reference import reference
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import Strength

from .plain_pipeline import plain_frames
from .vace_clips import box, clip, moving_box

WIDTH, HEIGHT, FRAMES = 64, 48, 9
REQUEST = WanRequest(
    "a red circle moves right on a blue background", "", WIDTH, HEIGHT, FRAMES, steps=3, cfg=3.0, shift=5.0, seed=7
)


@pytest.fixture
def host(tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    return HeadlessHost(chosen_device="cpu", **folders)


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    made = WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32)
    made.scheduler = UniPCMultistepScheduler.from_config(made.scheduler.config, flow_shift=REQUEST.shift)
    made.set_progress_bar_config(disable=True)
    return made


def plain(pipeline, task, scale=1.0):
    """Return the plain pipeline's frames, from the source videos and masks that the authors' code would have."""
    from PIL import Image

    inputs = prepare(task, WIDTH, HEIGHT, FRAMES)
    pictures = [(picture.permute(1, 2, 0) + 1) * 127.5 for picture in reversed(inputs.references)]
    return plain_frames(
        pipeline,
        REQUEST,
        video=inputs.canvas.frames.permute(0, 3, 1, 2)[None],
        mask=inputs.mask[0, 0][None, :, None],
        reference_images=[Image.fromarray(picture.round().byte().numpy()) for picture in pictures] or None,
        conditioning_scale=scale,
    )


@pytest.mark.parametrize(
    ("task", "scale"),
    [
        (extend(GivenFrames(clip(1), clip(1, seed=1)), FRAMES, keep=False), 1.0),
        (repaint(clip(seed=2), strength=Strength(0.6)), 0.6),
        (
            reference(
                [(clip(1, HEIGHT, WIDTH, seed=3), None), (clip(1, HEIGHT, WIDTH, seed=4), None)],
                task=inpaint(clip(), moving_box(), keep=False),
            ),
            1.0,
        ),
    ],
)
def test_a_task_sampled_equals_the_plain_pipeline(host, pipeline, task, scale):
    frames, record = sample(ModelHandle(WAN_VACE), REQUEST, host, task)
    torch.testing.assert_close(frames, plain(pipeline, task, scale), atol=1e-5, rtol=0)
    assert record["task"] == task.describe()


def test_steps_whose_timesteps_round_to_one_are_all_taken(host, pipeline, monkeypatch):
    from diffusers import UniPCMultistepScheduler

    shifted = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=100.0)
    monkeypatch.setattr(shifted, "index_for_timestep", lambda *_: 0)  # where diffusers begins at the second
    monkeypatch.setattr(pipeline, "scheduler", shifted)
    monkeypatch.setattr(f"{__name__}.REQUEST", replace(REQUEST, steps=11, shift=100.0))
    assert torch.equal(sample(ModelHandle(WAN_VACE, "built-in"), REQUEST, host)[0], plain(pipeline, None))
    assert shifted.timesteps[0] == shifted.timesteps[1]


def test_kept_pixels_come_out_of_the_sampler_untouched(host):
    video = clip()
    frames, _ = sample(ModelHandle(WAN_VACE), REQUEST, host, inpaint(video, box(), feather=0))
    outside = box()[0] == 0
    assert torch.equal(frames[:, outside], video[:, outside])
    assert not torch.equal(frames[:, ~outside], video[:, ~outside])


def test_strength_and_its_range_of_steps_reach_the_model(host):
    off = repaint(clip(), strength=Strength(0.0))
    halfway = repaint(clip(), strength=Strength(1.0, 0.0, 0.5))
    frames = [sample(ModelHandle(WAN_VACE), REQUEST, host, task)[0] for task in (off, halfway, repaint(clip()))]
    differences = [(one - frames[2]).abs().max().item() for one in frames[:2]]
    assert min(differences) > 0.01
    assert not torch.equal(frames[0], frames[1])


class Counted:
    """Progress of one phase: the steps it was told of."""

    def __init__(self):
        self.steps = []

    def step(self, done, preview=None):
        self.steps.append(done)


def test_every_prompt_is_reported_once(tmp_path):
    """Also those that were encoded before."""
    phases = {}
    host = HeadlessHost(
        chosen_device="cpu", cache=tmp_path, on_progress=lambda phase, total: phases.setdefault(phase, Counted())
    )
    told = []
    for negative in ("noise", "noise", "dust"):
        phases.clear()
        sample(ModelHandle(WAN_VACE), replace(REQUEST, negative_prompt=negative, steps=1), host)
        told.append(phases["Encoding prompt"].steps)
    assert told == [[1, 2], [2], [2]]
