"""Videos in and out: containers, odd sizes, rotation, uneven time, ten bits, sound, and none of it."""

from __future__ import annotations

import json
import os
import subprocess
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from piying.core.errors import PiyingError
from piying.core.media import audio, ffmpeg, metadata, mp4, video
from piying.runner.core_nodes import CORE_NODE_CLASSES

HIDDEN = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"nodes": ["皮影"]}}}
TONE = "-f lavfi -i sine=440:d=1:r=44100"
KINDS = {
    "a.mp4": "-c:v libx264 -pix_fmt yuv420p -c:a aac",
    "a.mov": "-c:v prores_ks -pix_fmt yuv422p10le -c:a pcm_s16le",
    "a.mkv": "-c:v ffv1 -c:a flac",
    "a.webm": "-c:v libvpx-vp9 -c:a libopus",
    "ten.mp4": "-c:v libx264 -pix_fmt yuv420p10le -c:a aac",
    "silent.mp4": "-c:v libx264 -an",
    "a.gif": "-an",
}


def run(name, **inputs):
    node = CORE_NODE_CLASSES[name]()
    return getattr(node, node.FUNCTION)(**inputs)


def make(path, options, picture="color=red:s=32x24:d=1:r=8"):
    command = f"-v error -y -f lavfi -i {picture} {TONE} {options} -shortest"
    subprocess.run([ffmpeg.ffmpeg_exe(), *command.split(), str(path)], check=True)


def remake(source, path, before, after="-c copy"):
    command = [ffmpeg.ffmpeg_exe(), "-v", "error", "-y", *before.split(), "-i", str(source), *after.split(), str(path)]
    subprocess.run(command, check=True)


def load(name):
    (video,) = run("LoadVideo", file=name)
    return video


def parts(name):
    return run("GetVideoComponents", video=load(name))[:3]


def saved(host, video, **inputs):
    given = {"filename_prefix": "v", "format": "auto", "codec": "auto", **HIDDEN, **inputs}
    result = run("SaveVideo", video=video, **given)
    assert result["ui"]["animated"] == (True,)
    return host.output / result["ui"]["images"][0]["filename"]


def frames(path) -> np.ndarray:
    return np.stack(list(video.read_frames(path))).astype(int)


@pytest.mark.parametrize("name", KINDS)
def test_containers_in(host, name):
    make(host.input / name, KINDS[name])
    images, sound, fps = parts(name)
    assert (images.shape, images.dtype) == ((8, 24, 32, 3), torch.float32)
    assert images.mean((0, 1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.02)
    assert fps == pytest.approx(8, abs=0.1)
    if "-an" in KINDS[name]:
        assert sound is None
    else:
        assert sound["sample_rate"] == (48000 if name == "a.webm" else 44100)
        assert sound["waveform"].shape[:2] == (1, 1)
        assert 0 <= sound["waveform"].shape[2] - sound["sample_rate"] < 1024, "older ffmpegs leave AAC's padding"
        assert sound["waveform"].abs().max() == pytest.approx(0.125, abs=0.01)


def test_animated_webp_in(host):
    pictures = [Image.new("RGBA", (33, 25), (shade, 0, 0, 255)) for shade in (0, 100, 200)]
    pictures[0].save(host.input / "a.webp", save_all=True, append_images=pictures[1:], duration=125, lossless=True)
    images, sound, fps = parts("a.webp")
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 100, 200]
    assert (images.shape, sound, fps) == ((3, 25, 33, 3), None, 8.0)


def test_a_still_webp_is_one_frame(host):
    Image.new("RGB", (8, 6)).save(host.input / "a.webp")
    images, _, fps = parts("a.webp")
    assert (images.shape, fps) == ((1, 6, 8, 3), 1.0)


def test_odd_sizes_in_and_out(host):
    make(host.input / "a.mp4", "-c:v libx264 -pix_fmt yuv444p -an", "testsrc=s=33x25:d=1:r=8")
    video = load("a.mp4")
    assert video.get_dimensions() == (33, 25)
    assert frames(saved(host, video)).shape == (8, 25, 33, 3)
    (made,) = run("CreateVideo", images=run("GetVideoComponents", video=video)[0], fps=8.0)
    assert frames(saved(host, made)).shape == (8, 26, 34, 3), "4:2:0 holds even sizes alone"


def test_turned_videos_are_upright_and_stay_so(host):
    make(host.input / "a.mp4", "-c:v libx264 -an", "gradients=s=32x24:d=1:r=8")
    try:
        remake(host.input / "a.mp4", host.input / "b.mp4", "-display_rotation 90")
    except subprocess.CalledProcessError:
        pytest.skip("this ffmpeg cannot mark a video as turned")
    assert load("b.mp4").get_dimensions() == (24, 32)
    assert np.array_equal(np.rot90(parts("a.mp4")[0].numpy(), 1, (1, 2)), parts("b.mp4")[0].numpy())
    assert np.array_equal(frames(saved(host, load("b.mp4"))), frames(host.input / "b.mp4"))


def test_uneven_time_has_a_mean_rate_and_is_kept(host):
    select = "select=not(mod(n\\,3))+lt(n\\,4)"
    make(host.input / "a.mp4", f"-vf {select} -fps_mode vfr -c:v libx264 -an", "testsrc=s=32x24:d=2:r=10")
    images, _, fps = parts("a.mp4")
    duration = load("a.mp4").get_duration()
    assert len(images) / fps == pytest.approx(duration, abs=0.01)
    assert video.probe(saved(host, load("a.mp4"))).duration == pytest.approx(duration, abs=0.01)


def test_nothing_is_decoded_before_it_is_asked_for(host):
    (host.input / "a.mp4").write_bytes(b"no video")
    video = load("a.mp4")
    with pytest.raises(PiyingError, match=r"Cannot read .*a\.mp4"):
        run("GetVideoComponents", video=video)


@pytest.mark.parametrize("size", [0, 40, 2000])
def test_videos_cut_short(host, size):
    make(host.input / "a.mp4", KINDS["a.mp4"])
    path = host.input / "a.mp4"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(PiyingError, match=r"a\.mp4"):
        parts("a.mp4")
    with pytest.raises(PiyingError, match=r"a\.mp4"):
        saved(host, load("a.mp4"))
    assert list(host.output.iterdir()) == []


def test_playlists_reach_no_other_file(host):
    make(host.input / "secret.mp4", KINDS["silent.mp4"])
    (host.input / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{host.input / 'secret.mp4'}'\n")
    (host.input / "list.mkv").write_text(f"#EXTM3U\n#EXTINF:1,\n{host.input / 'secret.mp4'}\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list.mkv"):
        with pytest.raises(PiyingError, match="Cannot read"):
            parts(name)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
@pytest.mark.parametrize("name", ["-i.mp4", "a%d.mp4", "concat:a.mp4", "a|b.mp4"])
def test_names_mean_nothing_to_ffmpeg(host, name):
    make(host.temp / "x.mp4", KINDS["a.mp4"])
    (host.temp / "x.mp4").rename(host.input / name)
    assert parts(name)[0].shape[0] == 8
    assert video.probe(saved(host, load(name))).has_audio


def test_more_than_the_memory_is_refused(host, monkeypatch):
    make(host.input / "a.mp4", KINDS["silent.mp4"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50_000))
    with pytest.raises(PiyingError, match=r"8 frames of 32×24: they need 0\.0 GiB"):
        parts("a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "ten.mp4", "silent.mp4"])
def test_loaded_streams_are_kept(host, name):
    make(host.input / name, KINDS[name])
    path = saved(host, load(name))
    assert np.array_equal(frames(path), frames(host.input / name))
    assert video.probe(path).has_audio == ("-an" not in KINDS[name])
    assert json.loads(metadata.read_workflow(path)["workflow"]) == HIDDEN["extra_pnginfo"]["workflow"]


@pytest.mark.parametrize(
    ("name", "format", "codec", "kept"),
    [
        ("a.mp4", "mp4", "h264", True),
        ("a.webm", "auto", "h264", False),
        ("a.webm", "mp4", "auto", False),
        ("a.mkv", "auto", "auto", False),
        ("a.gif", "auto", "auto", False),
    ],
)
def test_when_streams_are_kept(host, name, format, codec, kept):
    make(host.input / name, KINDS[name])
    assert mp4.can_copy(host.input / name, format, codec) is kept
    path = saved(host, load(name), format=format, codec=codec)
    before, after = video.probe(host.input / name), video.probe(path)
    assert (after.frames, after.has_audio) == (before.frames, before.has_audio)
    assert np.abs(frames(path) - frames(host.input / name)).mean() < 3


def test_the_newer_workflow_replaces_the_file_s_own(host):
    make(host.input / "a.mp4", KINDS["a.mp4"])
    first = saved(host, load("a.mp4"))
    first.rename(host.input / "b.mp4")
    remake(host.input / "b.mp4", host.input / "c.mp4", "", "-c copy -movflags use_metadata_tags -metadata title=kept")
    second = saved(host, load("c.mp4"), prompt={"2": {}})
    texts = metadata.read_workflow(second)
    assert (json.loads(texts["prompt"]), texts["title"]) == ({"2": {}}, "kept")


def test_made_videos_keep_their_sound(host):
    tone = torch.sin(torch.arange(22050) / 8)[None, None].repeat(1, 2, 1) / 2
    given = {"waveform": tone, "sample_rate": 22050}
    (video,) = run("CreateVideo", images=torch.rand(8, 24, 32, 3), fps=16.0, audio=given)
    _, sound, fps, bits = run("GetVideoComponents", video=video)
    assert (sound, fps, bits, video.frame_rate) == (given, 16.0, 8, Fraction(16))
    wave = audio.read_audio(saved(host, video))
    assert wave["sample_rate"] == 22050
    assert 0 <= wave["waveform"].shape[2] - 11025 < 1024, "cut where the video ends"
    assert (wave["waveform"][..., :11025] - tone[..., :11025]).abs().mean() < 0.01
    assert video.get_duration() == 0.5


@pytest.mark.parametrize("codec", ["vp9", "av1"])
@pytest.mark.parametrize("size", [(24, 32), (67, 65)])
def test_webm(host, codec, size):
    images = torch.linspace(0, 1, 4)[:, None, None, None].repeat(1, *size, 4)
    given = {"filename_prefix": "w", "codec": codec, "fps": 12.5, "crf": 10.0, **HIDDEN}
    result = run("SaveWEBM", images=images, **given)
    assert result["ui"]["animated"] == (True,)
    path = host.output / "w_00001_.webm"
    found = video.probe(path)
    assert (found.height, found.width, found.fps, found.frames) == (*size, Fraction(25, 2), 4)
    assert np.abs(frames(path)[:, 0, 0, 0] - [0, 85, 170, 255]).max() <= 3
    assert json.loads(metadata.read_workflow(path)["prompt"]) == HIDDEN["prompt"]


def test_a_codec_that_this_ffmpeg_lacks(host, monkeypatch):
    monkeypatch.setattr(ffmpeg, "output", lambda *_: b" V..... libvpx-vp9 libvpx VP9")
    given = {"images": torch.rand(1, 8, 8, 3), "filename_prefix": "w", "fps": 8.0, "crf": 10.0}
    with pytest.raises(PiyingError, match="cannot write av1 of 8×8 with libsvtav1 or libaom-av1"):
        run("SaveWEBM", codec="av1", **given)
    with pytest.raises(PiyingError, match="codec is 'vp8'. Choose one of: vp9, av1"):
        run("SaveWEBM", codec="vp8", **given)
    assert list(host.output.iterdir()) == []


def test_another_pack_s_video_is_saved(host):
    class Foreign:
        def get_dimensions(self):
            return 32, 24

        def get_components(self):
            return SimpleNamespace(images=torch.rand(3, 24, 32, 3), frame_rate=Fraction(8), audio=None)

    assert frames(saved(host, Foreign())).shape == (3, 24, 32, 3)


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("GetVideoComponents", {"video": 3}, "Connect a node that gives VIDEO"),
        ("CreateVideo", {"images": torch.zeros(0, 2, 2, 3), "fps": 8.0}, "it is empty"),
    ],
)
def test_impossible_input_is_told_in_a_sentence(host, name, inputs, words):
    with pytest.raises(PiyingError, match=words):
        run(name, **inputs)


def test_formats_that_are_not_written(host):
    (video,) = run("CreateVideo", images=torch.rand(1, 8, 8, 3), fps=8.0)
    with pytest.raises(PiyingError, match="format is 'avi'. Choose one of: auto, mp4"):
        saved(host, video, format="avi")
    assert list(host.output.iterdir()) == []
