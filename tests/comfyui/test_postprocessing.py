"""Upscale Video and Interpolate Frames in ComfyUI: the same pictures as headless."""

from __future__ import annotations

import json

import pytest
from piying.tests.comfyui.headless import assert_same_frames, read_frames, run_headless
from piying.tests.nodes.test_controls import CLIP, FPS, FRAMES, node

pytestmark = pytest.mark.comfyui
RATE = {"model": "optical flow", "multiplier": 2, "to_fps": 0.0, "scene_cut": 0.4}
SIZE = {"model": "none", "scale": 1.5, "width": 0, "height": 0, "method": "lanczos", "tile": 0}


def test_frames_are_those_of_the_runner(comfyui, tmp_path):
    graph = {
        "1": CLIP,
        "2": node("PiyingInterpolateFrames", frames=FRAMES, fps=FPS, **RATE),
        "3": node("PiyingUpscaleVideo", frames=["2", 0], **SIZE),
        "4": node("SaveImage", images=["3", 0], filename_prefix="post/x"),
    }
    entry = comfyui.run(graph)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
    headless = run_headless(graph, tmp_path)
    assert_same_frames(read_frames(comfyui.output_dir / "post", "x"), read_frames(headless / "post", "x"))


def test_a_model_that_is_not_there_is_told_when_queued(comfyui):
    graph = {
        "1": CLIP,
        "2": node("PiyingUpscaleVideo", frames=FRAMES, **SIZE | {"model": "4x.pth"}),
        "3": node("PreviewImage", images=["2", 0]),
    }
    status, answer = comfyui.post(graph)
    assert status == 400
    assert "'4x.pth' is not in models/upscale_models" in json.dumps(answer["node_errors"])
