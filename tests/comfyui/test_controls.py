"""Controls, samples and soundtracks in ComfyUI: the same pictures as headless, and sound as long as the video."""

from __future__ import annotations

import json

import pytest
from piying.tests.comfyui.headless import assert_same_frames, read_frames, run_headless, shown_files
from piying.tests.nodes.test_controls import AUDIO, CLIP, CONTROLS, FPS, FRAMES, node, seconds

pytestmark = pytest.mark.comfyui


def test_control_makers_give_what_they_give_headless(comfyui, tmp_path):
    graph = {"1": CLIP}
    for kind, inputs in CONTROLS.items():
        graph[kind] = node(kind, **inputs)
        graph[f"save {kind}"] = node("SaveImage", images=[kind, 0], filename_prefix=f"controls/{kind}")
    entry = comfyui.run(graph)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
    headless = run_headless(graph, tmp_path)
    for kind in CONTROLS:
        assert_same_frames(
            read_frames(comfyui.output_dir / "controls", kind), read_frames(headless / "controls", kind)
        )


@pytest.mark.parametrize("frames_before", [0, 8])
def test_the_soundtrack_goes_along(comfyui, frames_before):
    """Through another frame rate, and later where frames were added in front."""
    rate = 16.0 if frames_before else 24.0
    graph = {
        "1": CLIP,
        "2": node("PiyingFrameRate", frames=FRAMES, fps=FPS, to_fps=rate, method="nearest", length="as it is"),
        "3": node("ImageFromBatch", image=FRAMES, batch_index=0, length=1),
        "4": node("RepeatImageBatch", image=["3", 0], amount=8),
        "5": node("ImageBatch", image1=["4", 0], image2=["2", 0]),
        "6": node("PiyingAlignAudio", audio=AUDIO, num_frames=25, fps=rate, frames_before=8),
    }
    images, audio = (["5", 0], ["6", 0]) if frames_before else (["2", 0], AUDIO)
    graph["7"] = node("CreateVideo", images=images, fps=["2", 1], audio=audio)
    graph["8"] = node("SaveVideo", video=["7", 0], filename_prefix="sound", format="auto", codec="auto")
    entry = comfyui.run(graph)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
    (path,) = shown_files(entry, comfyui.output_dir)
    picture, sound = seconds(path)
    expected = 17 / 16 + frames_before / 16
    assert picture == pytest.approx(expected, abs=1 / 24)
    assert sound == pytest.approx(expected, abs=0.07)


def test_a_video_without_sound_stays_without(comfyui):
    graph = {
        "1": node("PiyingSampleClip", sample="moving square, depth"),
        "2": node("PiyingAlignAudio", audio=AUDIO, num_frames=17, fps=16.0, frames_before=0),
        "3": node("CreateVideo", images=FRAMES, fps=FPS, audio=["2", 0]),
        "4": node("SaveVideo", video=["3", 0], filename_prefix="silent", format="auto", codec="auto"),
    }
    entry = comfyui.run(graph)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
    (path,) = shown_files(entry, comfyui.output_dir)
    assert seconds(path)[1] is None


def test_a_missing_pose_model_is_told_when_queued(comfyui):
    pose = {"frames": FRAMES, "model": "auto", "detector": "auto", "min_score": 0.5, "colours": "as VACE"}
    graph = {
        "1": CLIP,
        "2": node("PiyingControlPose", **pose),
        "3": node("PreviewImage", images=["2", 0]),
    }
    status, answer = comfyui.post(graph)
    assert status == 400
    assert "vitpose-base-simple" in json.dumps(answer["node_errors"])
