"""Reading pictures is right on drawn clips, where the truth is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from piying.training.data import clips
from piying.training.language import Scene, scenes
from piying.training.reading import overlap, psnr, read_picture, read_video


def drawn(scene: Scene, frames: int = 9, width: int = 64, height: int = 64) -> np.ndarray:
    return clips([scene], frames, width, height)[0].permute(0, 2, 3, 1).numpy() / 2 + 0.5


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (64, 96)])
def test_drawn_clips_are_read_right(width, height):
    torch.manual_seed(0)
    for scene in random.Random(0).sample(list(scenes()), 15):
        reading = read_video(drawn(scene, 9, width, height))
        assert (reading.background, reading.colour, reading.shape) == (scene.background, scene.colour, scene.shape)
        assert (reading.motion, reading.count) == (scene.motion, 1)


def test_an_empty_picture_shows_nothing():
    reading = read_picture(np.full((64, 64, 3), 0.5))
    assert (reading.background, reading.colour, reading.shape, reading.count) == ("gray", None, None, 0)


def test_two_objects_are_two():
    torch.manual_seed(0)
    picture = drawn(Scene("red", "circle", None, "white"), 1)[0]
    assert read_picture(np.concatenate([picture, picture], axis=1)).count == 2


def test_measures():
    one, other = np.zeros((2, 4, 4, 3)), np.full((2, 4, 4, 3), 0.1)
    assert psnr(one, other) == pytest.approx(20)
    where = np.zeros((2, 4, 4), bool)
    where[0, 0, 0] = True
    other[0, 0, 0] = 0
    assert psnr(one, other, where) == pytest.approx(100)
    assert overlap(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0])) == 0.5
