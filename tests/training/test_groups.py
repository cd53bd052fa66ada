"""Scenes trained on together differ in the shape alone."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import torch
from piying.training.data import coverage
from piying.training.groups import Groups, draw_groups
from piying.training.language import SHAPES, Scene, caption
from piying.training.video_batches import TRAINED_ON


def test_groups_differ_in_the_shape_alone():
    groups = draw_groups(32, TRAINED_ON, random.Random(0))
    assert len(groups.scenes) == 32
    assert not any(scene.held_out for scene in groups.scenes)
    for row in range(groups.count):
        members = [scene for scene, r in zip(groups.scenes, groups.rows.tolist(), strict=True) if r == row]
        assert len({replace(scene, shape="circle") for scene in members}) == 1
        assert len({scene.shape for scene in members}) == len(members)


def test_a_group_shares_path_and_noise():
    groups = draw_groups(12, TRAINED_ON, random.Random(1))
    paths, noise = groups.paths(9, 64, 64), groups.noise_like(torch.zeros(12, 4))
    same = groups.rows[:, None] == groups.rows
    assert torch.equal((paths.centres[:, None] == paths.centres).all(-1).all(-1), same)
    assert torch.equal((noise[:, None] == noise).all(-1), same)


def test_a_group_is_worded_alike():
    for seed in range(20):
        texts = [caption(Scene("red", shape, "moves up", "blue"), "en", random.Random(seed)) for shape in SHAPES]
        for words in (["circle", "ball", "disc"], ["square", "box", "block"]):
            texts = [re.sub(rf"\b({'|'.join(words)})\b", "triangle", text) for text in texts]
        assert len(set(texts)) == 1


def test_neutral_pictures_show_the_mean_of_all_shapes():
    scenes = [Scene("red", shape, motion, "white") for motion in ("moves up", "stays still") for shape in SHAPES]
    groups = Groups(scenes, torch.tensor([0, 0, 0, 1, 1, 1]))
    paths = groups.paths(5, 64, 64)
    covered = coverage([scene.shape for scene in scenes], paths, 64, 64)
    neutral = groups.neutral(paths, 64, 64)
    assert torch.allclose(neutral[0], covered[:3].mean(0), atol=1e-5)
    assert torch.allclose(neutral[5], covered[3:].mean(0), atol=1e-5)


def test_whole_groups_are_hidden_and_only_under_noise():
    groups = draw_groups(30, TRAINED_ON, random.Random(0))
    hidden = groups.hidden(0.5, torch.full((30,), 0.6))
    assert 0 < hidden.sum() < 30
    assert all(len(set(hidden[groups.rows == row].tolist())) == 1 for row in range(groups.count))
    assert not groups.hidden(1.0, torch.full((30,), 0.1)).any()
