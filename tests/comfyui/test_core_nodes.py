"""The runner's core nodes beside ComfyUI's own: the same calls, the same values and files out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.media import audio, metadata, video
from piying.runner.core_nodes import CORE_NODE_CLASSES
from piying.tests.comfyui import core_node_cases, core_node_files, node_calls
from piying.tests.comfyui.headless import read_frames, run_headless
from piying.tests.runner.core_nodes.declared import SNAPSHOT, declared

pytestmark = pytest.mark.comfyui

NEWER = {"ComfySwitchNode"}  # than the oldest ComfyUI we support
SCRIPT = Path(node_calls.__file__)


class Comparison:
    """The same calls made with ComfyUI's nodes, in a process of their own, and with ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("input", "output", "temp", "ours/output", "ours/temp"):
            (folder / name).mkdir(parents=True)
        self.calls = core_node_cases.cases()
        self.calls += core_node_files.picture_calls(core_node_files.make_pictures(folder / "input"))
        self.calls += core_node_files.video_calls(core_node_files.make_videos(folder / "input"), len(self.calls))
        self.calls += core_node_files.saver_calls(len(self.calls))
        self.arrays = {
            **core_node_cases.arrays(),
            "clip": core_node_files.clip(),
            "sound": core_node_files.sound(),
        }
        self.theirs = self._with_comfyui()
        self.ours = self._with_the_runner()

    def _with_comfyui(self):
        (self.folder / "calls.json").write_text(json.dumps(self.calls), encoding="utf-8")
        np.savez(self.folder / "values.npz", **self.arrays)
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [python, str(SCRIPT), str(self.folder)]
        ran = subprocess.run(command, cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr[-4000:]
        return node_calls.load(self.folder)

    def _with_the_runner(self):
        ours = self.folder / "ours"
        set_host(HeadlessHost(input=self.folder / "input", output=ours / "output", temp=ours / "temp"))
        try:
            node_calls.save(node_calls.perform(CORE_NODE_CLASSES, self.calls, self.arrays), ours)
        finally:
            set_host(None)
        return node_calls.load(ours)

    def of(self, *nodes: str):
        """Each call of these nodes: (inputs, their result, our result)."""
        results = zip(self.calls, self.theirs, self.ours, strict=True)
        return [(call["inputs"], theirs, ours) for call, theirs, ours in results if call["node"] in nodes]

    def taken_apart(self, name: str):
        """The components of a loaded video: theirs, ours."""
        index = next(i for i, call in enumerate(self.calls) if call["inputs"] == {"file": name}) + 1
        return self.theirs[index][0], self.ours[index][0]

    def saved(self, name: str) -> tuple[Path, Path]:
        return self.folder / "output" / name, self.folder / "ours/output" / name


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI checkout")
    return Comparison(tmp_path_factory.mktemp("nodes"))


def same(first, second) -> bool:
    """Equal to the last bit: type, shape and every value."""
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def test_the_snapshot_is_this_comfyui(comfyui):
    """Ours are held against the snapshot where there is no ComfyUI."""
    theirs = comfyui.object_info()
    assert json.loads(SNAPSHOT.read_text(encoding="utf-8")) == {
        name: declared(theirs[name]) for name in sorted(CORE_NODE_CLASSES.keys() - NEWER)
    }


@pytest.mark.parametrize("node", sorted({case["node"] for case in core_node_cases.cases()}))
def test_arithmetic_is_equal_to_the_bit(compared, node):
    cases = compared.of(node)
    assert [inputs for inputs, theirs, _ in cases if isinstance(theirs, dict)] == [], "ComfyUI itself fails"
    assert [inputs for inputs, theirs, ours in cases if not same(theirs, ours)] == []


@pytest.mark.parametrize("node", ["LoadImage", "LoadImageMask"])
def test_pictures_are_equal_to_the_bit(compared, node):
    cases = [case for case in compared.of(node) if case[0]["image"] != "deep.png"]
    assert len(cases) > 15
    assert [inputs for inputs, theirs, ours in cases if not same(theirs, ours)] == []


def test_sixteen_bit_greys_are_kept_where_comfyui_makes_them_white(compared):
    (_, theirs, ours) = next(case for case in compared.of("LoadImage") if case[0]["image"] == "deep.png")
    exact = np.array(Image.open(compared.folder / "input/deep.png")) / 65535
    assert theirs[0][0].mean() > 0.99
    assert np.abs(ours[0][0][0, :, :, 0] - exact).max() < 1 / 100


# ComfyUI leaves the conversion to RGB to swscale's fast routines: chroma is repeated, and values are cut off. Ours
# interpolates and rounds. Streams that need neither are equal to the bit.
EXACT = ("444.mp4", "lossless.mkv", "still.gif", "uneven.mkv")
NEAR = ("h264.mp4", "silent.mp4", "vp9.webm", "prores.mov", "ten_bits.mp4")


@pytest.mark.parametrize("name", EXACT)
def test_frames_are_equal_to_the_bit(compared, name):
    theirs, ours = (components[0] for components in compared.taken_apart(name))
    assert same(theirs, ours)


@pytest.mark.parametrize("name", NEAR)
def test_frames_that_need_a_conversion_are_nearer_to_their_source(compared, name):
    theirs, ours = (components[0] for components in compared.taken_apart(name))
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 8.001 / 255
    source = core_node_files.source_frames() / 255
    assert np.abs(ours - source).mean() <= np.abs(theirs - source).mean()


def test_turned_videos_are_upright_where_comfyui_leaves_them_lying(compared):
    theirs, ours = (components[0] for components in compared.taken_apart("turned.mp4"))
    assert np.array_equal(np.rot90(theirs, 1, (1, 2)), ours)


@pytest.mark.parametrize("name", [*EXACT[:2], *NEAR])
def test_rates_of_videos(compared, name):
    theirs, ours = (components[2] for components in compared.taken_apart(name))
    assert theirs == ours == 8.0


def test_rates_are_means_where_comfyui_takes_what_the_file_says(compared):
    """A GIF counts in hundredths, and a file of uneven frames declares the rate of the closest two."""
    assert compared.taken_apart("still.gif")[1][2] == pytest.approx(8, abs=0.01)
    frames, _, fps, _ = compared.taken_apart("uneven.mkv")[1]
    assert len(frames) / fps == pytest.approx(1.9, abs=0.15)


@pytest.mark.parametrize("name", ["h264.mp4", "444.mp4", "lossless.mkv", "prores.mov", "uneven.mkv"])
def test_sound_is_equal_to_the_bit(compared, name):
    """Older ComfyUIs leave the encoder's padding at the end, and whole numbers as they are."""
    theirs, ours = (components[1] for components in compared.taken_apart(name))
    assert ours["sample_rate"] == theirs["sample_rate"] == 44100
    length = ours["waveform"].shape[2]
    assert length == 44100
    wave = theirs["waveform"][..., :length]
    assert np.array_equal(wave / 32768 if wave.dtype == np.int16 else wave, ours["waveform"])


def test_sound_of_webm(compared):
    """Of Opus ComfyUI loses the first packet, since it seeks before it decodes."""
    theirs, ours = (components[1] for components in compared.taken_apart("vp9.webm"))
    assert ours["waveform"].shape == (1, 1, 48000)
    assert 48000 - theirs["waveform"].shape[2] in (0, 960)
    assert np.abs(ours["waveform"]).max() == pytest.approx(np.abs(theirs["waveform"]).max(), abs=0.01)


@pytest.mark.parametrize("name", ["silent.mp4", "ten_bits.mp4", "still.gif"])
def test_no_sound(compared, name):
    theirs, ours = (components[1] for components in compared.taken_apart(name))
    assert ours is theirs is None


def test_made_videos_are_taken_apart_unchanged(compared):
    index = next(i for i, call in enumerate(compared.calls) if call["node"] == "CreateVideo") + 1
    assert same(compared.theirs[index][0][0], compared.ours[index][0][0])
    assert compared.theirs[index][0][2] == compared.ours[index][0][2]


def test_results_that_name_files(compared):
    savers = ("SaveImage", "SaveAnimatedWEBP", "SaveWEBM", "SaveVideo")
    assert [inputs for inputs, theirs, ours in compared.of(*savers) if not same(theirs, ours)] == []
    assert len(compared.of(*savers)) == 17


def test_every_saved_file_carries_the_same_texts(compared):
    theirs, ours = compared.folder / "output", compared.folder / "ours/output"
    names = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    for name in names:
        given, found = texts_of(theirs / name), texts_of(ours / name)
        for key in ("prompt", "workflow", "more"):
            assert json.loads(found[key]) == json.loads(given[key]), name


def texts_of(path: Path) -> dict[str, str]:
    """Matroska stores keys in capitals."""
    return {key.lower(): text for key, text in metadata.read_workflow(path).items()}


def test_images_are_saved_equal_to_the_bit(compared):
    theirs, ours = compared.saved("still/17x13_00001_.png")
    assert np.array_equal(np.array(Image.open(theirs)), np.array(Image.open(ours)))


def test_animations_are_saved_equal_to_the_byte(compared):
    for number in range(1, 10):
        theirs, ours = compared.saved(f"a_{number:05}_.webp")
        assert theirs.read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("name", ["w_00001_.webm", "w_00002_.webm", "video/made_00001_.mp4", "video/made_00002_.mp4"])
def test_encoded_videos_are_as_true_to_the_frames(compared, name):
    """Encoders differ between builds and versions, so it is the loss that is compared."""
    source = (core_node_files.clip() * 255).astype(np.uint8).astype(int)
    theirs, ours = compared.saved(name)
    assert video.probe(ours) == video.probe(theirs)
    lost = [np.abs(np.stack(list(video.read_frames(path))) - source).mean() for path in (theirs, ours)]
    assert lost[1] <= lost[0] * 1.1 + 0.05


def test_sound_of_a_made_video(compared):
    waves = [audio.read_audio(path)["waveform"].numpy() for path in compared.saved("video/made_00001_.mp4")]
    assert waves[0].shape == waves[1].shape == core_node_files.sound().shape
    assert [np.abs(wave - core_node_files.sound()).mean() < 0.02 for wave in waves] == [True, True]


def test_loaded_videos_are_saved_with_their_streams(compared):
    theirs, ours = compared.saved("video/loaded_00001_.mp4")
    assert video.probe(theirs) == video.probe(ours) == video.probe(compared.folder / "input/h264.mp4")
    frames = [np.stack(list(video.read_frames(path))) for path in (theirs, ours)]
    assert np.array_equal(*frames)
    waves = [audio.read_audio(path)["waveform"].numpy() for path in (theirs, ours)]
    assert np.array_equal(*waves)


@pytest.mark.parametrize(("number", "name"), [(2, "vp9.webm"), (3, "lossless.mkv")])
def test_loaded_videos_are_encoded_where_the_format_asks_for_it(compared, number, name):
    """ComfyUI makes stereo of mono, and loses Opus's first packet; ours keeps the channels and the whole."""
    theirs, ours = compared.saved(f"video/loaded_0000{number}_.mp4")
    source = compared.folder / "input" / name
    assert video.probe(ours).fps == video.probe(theirs).fps == video.probe(source).fps
    frames = [np.stack(list(video.read_frames(path))).astype(int) for path in (theirs, ours, source)]
    assert np.abs(frames[1] - frames[2]).mean() <= np.abs(frames[0] - frames[2]).mean() * 1.1
    assert audio.read_audio(ours)["waveform"].shape == audio.read_audio(source)["waveform"].shape


def test_one_graph_in_both_hosts(comfyui, tmp_path):
    """A picture through scaling, masks and compositing, each in its own process."""
    names = core_node_files.make_pictures(comfyui.base / "input")
    assert "rgba.png" in names
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "rgba.png"}},
        "2": {"class_type": "LoadImageMask", "inputs": {"image": "sub/rgb.png [input]", "channel": "green"}},
        "3": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["1", 0], "upscale_method": "lanczos", "scale_by": 1.5},
        },
        "4": {"class_type": "GetImageSize", "inputs": {"image": ["3", 0]}},
        "5": {"class_type": "SolidMask", "inputs": {"value": 0.75, "width": ["4", 0], "height": ["4", 1]}},
        "6": {
            "class_type": "FeatherMask",
            "inputs": {"mask": ["5", 0], "left": 9, "top": 3, "right": 0, "bottom": 5},
        },
        "7": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["6", 0], "source": ["2", 0], "x": 3, "y": 2, "operation": "multiply"},
        },
        "8": {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}},
        "9": {
            "class_type": "ImageCompositeMasked",
            "inputs": {
                "destination": ["3", 0],
                "source": ["8", 0],
                "x": 2,
                "y": 1,
                "resize_source": False,
                "mask": ["7", 0],
            },
        },
        "10": {"class_type": "ImageBatch", "inputs": {"image1": ["9", 0], "image2": ["1", 0]}},
        "11": {
            "class_type": "StringConcatenate",
            "inputs": {"string_a": "core", "string_b": "nodes", "delimiter": "_"},
        },
        "12": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": ["11", 0]}},
    }
    assert comfyui.run(graph)["status"]["status_str"] == "success"
    ours = run_headless(graph, tmp_path, "--input", str(comfyui.base / "input"))
    frames = [read_frames(folder, "core_nodes") for folder in (ours, comfyui.output_dir)]
    assert len(frames[0]) == len(frames[1]) == 2
    assert same([frame.tolist() for frame in frames[0]], [frame.tolist() for frame in frames[1]])
