"""The same pixels as VACE's own annotators, which are read from a checkout and never part of this repository.

Set VACE_PATH to a checkout of ali-vilab/VACE; RAFT_PATH to one of princeton-vl/RAFT for its painting of flow.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from piying.core.controls import flow, layout, lines, pose
from piying.core.host.headless import HeadlessHost

HOST = HeadlessHost()
noise = np.random.default_rng(6)


@pytest.fixture(scope="module")
def annotators():
    """Return a function that imports one of VACE's annotators alone, without what all of them need together."""
    if "VACE_PATH" not in os.environ:
        pytest.skip("VACE_PATH names no checkout of ali-vilab/VACE")
    package = types.ModuleType("vace_annotators")
    package.__path__ = [str(Path(os.environ["VACE_PATH"], "vace", "annotators"))]
    # Imported by their utilities for saving files, which is not done here.
    spare = {name: types.ModuleType(name) for name in ("imageio", "pycocotools", "pycocotools.mask", "matplotlib")}
    spare["pycocotools"].mask = spare["pycocotools.mask"]
    added = {name: module for name, module in spare.items() if importlib.util.find_spec(name.split(".")[0]) is None}
    sys.modules.update({"vace_annotators": package, **added})
    yield lambda name: importlib.import_module(f"vace_annotators.{name}")
    for name in [name for name in sys.modules if name.startswith("vace_annotators")] + list(added):
        sys.modules.pop(name, None)


def levels(frames):
    return (frames * 255).round().to(torch.uint8).numpy()


def test_gray(annotators):
    frames = noise.integers(0, 256, (2, 30, 40, 3), np.uint8)
    theirs = np.stack(annotators("gray").GrayVideoAnnotator({}).forward(list(frames)))
    assert np.array_equal(levels(lines.gray(torch.from_numpy(frames) / 255, "as VACE", HOST)), theirs)


def test_moving_box(annotators):
    """Their box never arrives: the way is divided by the number of frames, so ours is sent one step less far."""
    start, end, count = (10, 20, 60, 70), (170, 60, 298, 158), 8
    theirs = annotators("layout").LayoutBboxAnnotator({}).forward([start, end], (160, 300), count)
    arrived = layout.between(start, end, (count - 1) / count)
    ours = layout.box_path(start, arrived, num_frames=count, width=300, height=160, lines="black on white", host=HOST)
    assert np.array_equal(levels(ours), np.stack(theirs))


@pytest.mark.parametrize(("mode", "outline"), [("original", "outline"), ("bbox", "box")])
def test_outlines_of_masks(annotators, mode, outline):
    masks = np.zeros((3, 90, 120), np.uint8)
    masks[0, 20:40, 30:70] = masks[1, 50:80, 5:50] = 255
    rows, columns = np.mgrid[:90, :120]
    masks[2][(rows - 40) ** 2 + (columns - 60) ** 2 < 500] = 255
    layouts = annotators("layout").LayoutMaskAnnotator({"USE_AUG": True})
    theirs = layouts.forward(mask=list(masks), mask_cfg={"mode": mode})
    ours = layout.mask_layout(torch.from_numpy(masks) / 255, outline, "black on white", HOST)
    assert np.array_equal(levels(ours), np.stack(theirs))


@pytest.mark.parametrize(("width", "height"), [(832, 480), (480, 832), (64, 64)])
def test_poses(annotators, width, height):
    """From points on; what finds them there is an ONNX model."""
    draw = annotators("dwpose.util").draw_bodypose
    people = np.concatenate([noise.uniform(0, 1, (2, 18, 2)), noise.uniform(0, 1, (2, 18, 1))], axis=2)
    k = 1024 / min(width, height)
    tall, wide = (int(np.round(side * k / 64.0)) * 64 for side in (height, width))
    number = np.arange(36).reshape(2, 18)
    subset = np.where(people[..., 2] > 0.3, number, -1)
    canvas = draw(np.zeros((tall, wide, 3), np.uint8), people[..., :2].reshape(36, 2), subset)
    import cv2

    theirs = cv2.resize(canvas[..., ::-1], (width, height), interpolation=cv2.INTER_AREA)
    points = (people * (width, height, 1)).astype(np.float32)
    ours = pose.draw_people(points, width, height, "as VACE")
    # Their points are doubles between 0 and 1, ours singles in pixels: an end may round to the next pixel.
    assert (np.abs(ours.astype(int) - theirs).max(axis=2) > 8).mean() < 0.002


def test_flow_is_painted_as_raft_does():
    if "RAFT_PATH" not in os.environ:
        pytest.skip("RAFT_PATH names no checkout of princeton-vl/RAFT")
    path = Path(os.environ["RAFT_PATH"], "core", "utils", "flow_viz.py")
    spec = importlib.util.spec_from_file_location("raft_flow_viz", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    field = noise.normal(scale=3, size=(40, 50, 2))
    assert np.array_equal(flow.flow_colours(field), theirs.flow_to_image(field))
