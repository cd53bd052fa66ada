"""The built-in depth and segmentation models: training runs, and what ships sees shapes it was not trained on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from piying.training import depth, segmentation
from piying.training.evaluate import BUILT_IN
from piying.training.language import Scene


@pytest.mark.parametrize("module", [depth, segmentation])
def test_training(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["training", "--steps", "2", "--runs", str(tmp_path), "--out", str(out)])
    module.main()
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_what_ships_is_small():
    assert all((BUILT_IN / name / "model.safetensors").stat().st_size < 1 << 20 for name in ("depth", "segmentation"))


def test_depth_sees_shapes_it_was_not_trained_on():
    """A picture all far has an overlap of 0."""
    scores = depth.score(BUILT_IN / "depth", count=32, seed=3)
    assert scores["overlap"] > 0.93
    assert scores["error"] < 0.03


def test_segmentation_names_shapes_it_was_not_trained_on():
    """A picture all background has an overlap of 0; the right place with the wrong name, too."""
    scores = segmentation.score(BUILT_IN / "segmentation", count=32, seed=3)
    assert scores["right"] > 0.98
    assert scores["overlap"] > 0.93


def test_classes_are_where_the_shape_is():
    torch.manual_seed(0)
    drawn = [Scene("red", "triangle", None, "blue"), Scene("red", "circle", None, "blue")]
    _, covered = depth.pictures(drawn, 64, 48)
    found = segmentation.classes(drawn, covered)
    assert [found[index].max().item() for index in (0, 1)] == [
        segmentation.NAMES.index("triangle"),
        segmentation.NAMES.index("circle"),
    ]
    assert torch.equal(found > 0, covered > 0.5)


def test_samples_are_drawn_again_the_same(tmp_path, monkeypatch):
    """Pictures to the bit; video encoders differ from build to build, so clips nearly."""
    from piying.core.media.video import load_frames, probe
    from piying.core.samples import FOLDER
    from piying.training import samples

    monkeypatch.setattr(sys, "argv", ["training", "--out", str(tmp_path)])
    samples.main()
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in FOLDER.iterdir())
    for name in made:
        if name.endswith(".png"):
            ours, shipped = (np.asarray(Image.open(folder / name)) for folder in (tmp_path, FOLDER))
            assert np.array_equal(ours, shipped), name
        else:
            ours, shipped = (load_frames(path, probe(path)) for path in (tmp_path / name, FOLDER / name))
            assert (ours - shipped).abs().max() < 0.05, name
