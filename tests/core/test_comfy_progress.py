"""How a run is told to the browser: phase, time left, and previews that move."""

from __future__ import annotations

import io

import torch
from PIL import Image
from piying.core.host.comfy import MOTION, MOTION_PIXELS, PROGRESS, ProgressEvents, animated
from piying.core.preview import LatentPreview


class Listener:
    def __init__(self, motion=True):
        self.told, self.motion = [], motion

    def send(self, kind, event):
        self.told.append((kind, event))

    def wants_motion(self):
        return self.motion


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def preview(skip=0):
    colours = torch.rand(17, 3, generator=torch.Generator().manual_seed(1))
    return LatentPreview(colours, scheduler=None, skip=skip)


def latents(frames):
    return torch.randn(1, 16, frames, 6, 8, generator=torch.Generator().manual_seed(0))


def news(total, motion=True):
    listener, clock = Listener(motion), Clock()
    return ProgressEvents("Sampling", total, listener, clock), listener, clock


def test_the_phase_is_told_at_once():
    _, listener, _ = news(5)
    assert listener.told == [(PROGRESS, {"phase": "Sampling", "done": 0, "total": 5, "seconds_left": None})]


def test_time_left_comes_from_the_steps_behind_the_first():
    said, listener, clock = news(5)
    clock.now += 60.0  # the first step also warms up
    said.step(1, None)
    clock.now += 2.0
    said.step(2, None)
    assert [entry["seconds_left"] for _, entry in listener.told] == [None, None, 6.0]


def test_not_every_step_is_told_and_the_last_always():
    said, listener, clock = news(1000)
    for done in range(1, 1001):
        clock.now += 0.001
        said.step(done, None)
    assert len(listener.told) < 12
    assert listener.told[-1][1]["done"] == 1000


def test_previews_move_every_few_seconds_where_they_are_wanted():
    said, listener, clock = news(10)
    for done in range(1, 11):
        clock.now += 1.0
        said.step(done, preview().of(latents(5)))
    motions = [entry for kind, entry in listener.told if kind == MOTION]
    assert len(motions) == 4
    assert len(motions[0]["webp"]) < 50_000
    assert said.has_moving_preview


def test_no_preview_is_made_for_nobody():
    said, listener, _ = news(3, motion=False)
    said.step(1, preview=lambda: (_ for _ in ()).throw(AssertionError))
    assert [kind for kind, _ in listener.told if kind == MOTION] == []


def test_a_picture_does_not_move():
    said, listener, _ = news(3)
    said.step(1, preview().of(latents(1)[:, :, 0]))
    assert [kind for kind, _ in listener.told if kind == MOTION] == []
    assert not said.has_moving_preview


def test_frames_are_small_and_leave_references_out():
    all_frames = preview().frames(latents(30), MOTION_PIXELS, 12)
    assert len(all_frames) == 10
    assert all_frames[0].size == (192, 144)
    with_references = preview(skip=2).of(latents(5)).moving(64, 12)
    without = preview().of(latents(5)[:, :, 2:]).moving(64, 12)
    assert [frame.tobytes() for frame in with_references] == [frame.tobytes() for frame in without]


def test_the_still_is_the_middle_frame():
    still, frames = preview().image(latents(5)), preview().frames(latents(5), 64, 12)
    assert still.size == (64, 48)
    assert still.tobytes() == frames[2].tobytes()


def test_the_webp_plays():
    data = animated(preview().frames(latents(5), MOTION_PIXELS, 12))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.n_frames, image.size) == (5, (192, 144))
