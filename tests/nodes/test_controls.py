"""Control makers, timing and samples as a creator uses them: in a graph, through the headless host."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import piying.runner
import pytest
import torch
from piying.core.host.current import set_host
from piying.core.media.audio import read_audio
from piying.core.media.video import probe
from piying.runner.errors import InvalidGraph

CLIP = {"class_type": "PiyingSampleClip", "inputs": {"sample": "moving circle"}}
FRAMES, AUDIO, FPS, MASK = (["1", slot] for slot in range(4))
BOX = {"start": "0.1, 0.1, 0.4, 0.4", "end": "0.5, 0.5, 0.9, 0.9", "width": 64, "height": 48, "num_frames": 9}
CONTROLS = {
    "PiyingControlGray": {"frames": FRAMES, "weights": "as VACE"},
    "PiyingControlEdges": {"frames": FRAMES, "low": 100, "high": 200, "lines": "white on black"},
    "PiyingControlScribble": {"frames": FRAMES, "line_width": 1.0, "strength": 1.0, "lines": "black on white"},
    "PiyingControlFlow": {"frames": FRAMES, "method": "dis", "scale": "per frame"},
    "PiyingControlLayoutMask": {"mask": MASK, "outline": "box", "lines": "black on white"},
    "PiyingControlLayoutBox": {**BOX, "lines": "black on white"},
    "PiyingControlDepth": {"frames": FRAMES, "model": "auto", "range_of": "per frame"},
}


@pytest.fixture(autouse=True)
def own_host():
    yield
    set_host(None)


def run(nodes, tmp_path, last="SaveImage", **inputs):
    """Run the sample clip (node 1) into `nodes` (2, 3, …) and an output node."""
    graph = {"1": CLIP} | {str(number): node for number, node in enumerate(nodes, 2)}
    graph["99"] = {"class_type": last, "inputs": inputs}
    return piying.runner.run(graph, output=tmp_path, device="cpu")


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


@pytest.mark.parametrize("kind", CONTROLS)
def test_every_control_maker_runs_in_a_graph(kind, tmp_path):
    finished = run([node(kind, **CONTROLS[kind])], tmp_path, images=["2", 0], filename_prefix="control")
    (control,) = finished.outputs(kind)[0]
    assert control.shape[-1] == 3
    assert len(finished.files) == len(control)
    assert 0 <= control.min() < control.max() <= 1
    assert len({frame.sum().item() for frame in control}) > 1  # it moves


def test_a_thing_is_named_masked_and_outlined(tmp_path):
    nodes = [
        node("PiyingSegment", frames=FRAMES, model="auto", names="circle"),
        node("PiyingControlLayoutMask", mask=["2", 0], outline="hull", lines="black on white"),
    ]
    finished = run(nodes, tmp_path, images=["3", 0], filename_prefix="layout")
    found, (sample_mask,) = finished.outputs("PiyingSegment")[0][0], finished.outputs("PiyingSampleClip")[3]
    assert (found != sample_mask).float().mean() < 0.02


def test_a_name_of_which_nothing_is_seen_is_told_with_what_is(tmp_path, caplog):
    nodes = [
        node("PiyingSegment", frames=FRAMES, model="auto", names="square, triangle"),
        node("PiyingControlLayoutMask", mask=["2", 0], outline="hull", lines="black on white"),
    ]
    finished = run(nodes, tmp_path, images=["3", 0], filename_prefix="layout")
    assert finished.outputs("PiyingSegment")[0][0].max() == 0
    pattern = (
        r"Nothing named square, triangle was found in 17 frames\. Found: background 8\d\.\d %, circle 1\d\.\d %\."
    )
    assert re.search(pattern, caplog.text), caplog.text


@pytest.mark.parametrize(
    ("kind", "inputs", "sentence"),
    [
        ("PiyingControlPose", {"model": "auto"}, "No pose model is installed.*vitpose-base-simple"),
        ("PiyingControlDepth", {"model": "nowhere/depth"}, "is not installed. Here are: auto, built-in"),
        ("PiyingSegment", {"model": "x"}, "is not installed. Here are: auto, built-in"),
        ("PiyingControlLayoutBox", {"start": "left"}, "start is 'left'. Give four numbers"),
        ("PiyingControlLayoutBox", {"end": "100, 4, 200, 8"}, "nothing of that box is in a picture of 64×48"),
    ],
)
def test_mistakes_are_told_before_anything_runs(kind, inputs, sentence, tmp_path):
    pose = {"frames": FRAMES, "model": "auto", "detector": "auto", "min_score": 0.5, "colours": "as VACE"}
    others = {"PiyingControlPose": pose, "PiyingSegment": {"frames": FRAMES, "model": "auto", "names": "circle"}}
    given = {**others, **CONTROLS}[kind] | inputs
    with pytest.raises(InvalidGraph, match=sentence):
        run([node(kind, **given)], tmp_path, images=["2", 0], filename_prefix="x")


def seconds(path):
    """Return the length of the picture and of the sound, as ffprobe measures them."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", str(path)]
    streams = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    found = {stream["codec_type"]: float(stream["duration"]) for stream in streams}
    return found["video"], found.get("audio")


def video(nodes, tmp_path, images, fps, audio):
    """Run nodes and save what they make as a video; return its file."""
    made = [*nodes, node("CreateVideo", images=images, fps=fps, audio=audio)]
    source = [str(len(made) + 1), 0]
    finished = run(made, tmp_path, "SaveVideo", video=source, filename_prefix="v", format="auto", codec="auto")
    (path,) = finished.files
    return path


def test_the_soundtrack_goes_through_an_edit(tmp_path):
    path = video([], tmp_path, FRAMES, FPS, AUDIO)
    picture, sound = seconds(path)
    assert picture == pytest.approx(17 / 16, abs=0.001)
    assert sound == pytest.approx(17 / 16, abs=0.07)  # AAC counts in blocks of 1024 samples


def test_another_frame_rate_keeps_the_seconds_and_the_sound(tmp_path):
    convert = node("PiyingFrameRate", frames=FRAMES, fps=FPS, to_fps=24.0, method="blend", length="as it is")
    path = video([convert], tmp_path, ["2", 0], ["2", 1], AUDIO)
    picture, sound = seconds(path)
    assert probe(path).frames == 26
    assert picture == pytest.approx(17 / 16, abs=1 / 24)
    assert sound == pytest.approx(17 / 16, abs=0.07)


def test_sound_comes_later_where_frames_were_added_in_front(tmp_path):
    added = node("RepeatImageBatch", image=["2", 0], amount=8)
    nodes = [
        node("ImageFromBatch", image=FRAMES, batch_index=0, length=1),
        added,
        node("ImageBatch", image1=["3", 0], image2=FRAMES),
        node("PiyingAlignAudio", audio=AUDIO, num_frames=25, fps=FPS, frames_before=8),
    ]
    path = video(nodes, tmp_path, ["4", 0], FPS, ["5", 0])
    picture, sound = seconds(path)
    assert picture == pytest.approx(25 / 16, abs=0.001)
    assert sound == pytest.approx(25 / 16, abs=0.07)
    audio = read_audio(path)
    loud = (audio["waveform"][0, 0].abs() > 0.05).nonzero()[0].item() / audio["sample_rate"]
    assert loud == pytest.approx(0.5, abs=0.05)


def test_a_video_without_sound_stays_without(tmp_path):
    graph_clip = node("PiyingSampleClip", sample="moving square, depth")
    align = node("PiyingAlignAudio", audio=["2", 1], num_frames=17, fps=16.0, frames_before=0)
    path = video([graph_clip, align], tmp_path, ["2", 0], 16.0, ["3", 0])
    assert not probe(path).has_audio


def test_counts_and_rates_feed_the_sampler(tmp_path):
    convert = node("PiyingFrameRate", frames=FRAMES, fps=FPS, to_fps=12.0, method="nearest", length="hold to 4n+1")
    finished = run([convert], tmp_path, images=["2", 0], filename_prefix="x")
    (frames,), (fps,), (count,) = finished.outputs("PiyingFrameRate")
    assert (len(frames), fps, count) == (13, 12.0, 13)
    assert torch.equal(frames[0], finished.outputs("PiyingSampleClip")[0][0][0])


def test_samples_stand_in_for_the_load_nodes():
    """A creator puts Load Video or Load Image in their place: the sockets are in the same order."""
    from piying.nodes.samples import PiyingSampleClip, PiyingSampleImage
    from piying.runner.core_nodes import CORE_NODE_CLASSES

    components = CORE_NODE_CLASSES["GetVideoComponents"]
    # The fourth ones differ: a mask here, and the bit depth of newer ComfyUIs.
    assert PiyingSampleClip.RETURN_TYPES[:3] == components.RETURN_TYPES[:3]
    assert PiyingSampleClip.RETURN_NAMES[:3] == components.RETURN_NAMES[:3]
    assert PiyingSampleImage.RETURN_TYPES == CORE_NODE_CLASSES["LoadImage"].RETURN_TYPES
