"""MP4 out, any video in: colours, rates, sizes, sound, metadata, and every way to fail."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.media import ffmpeg, metadata, mp4, video

PREAMBLE = f"""
import importlib.util, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
spec = importlib.util.spec_from_file_location("conftest", {str(Path(__file__).parents[1] / "conftest.py")!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
from piying.core.errors import PiyingError
from piying.core.media import mp4, naming
"""
noise = np.random.default_rng(3)


def clip(count: int = 5, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Flat frames, each with a grey of its own."""
    return [np.full((height, width, 3), 40 + 20 * (index % 10), np.uint8) for index in range(count)]


def ffprobe(path: Path, *arguments: str) -> dict:
    program = shutil.which("ffprobe")
    if program is None:
        pytest.skip("ffprobe is not installed")
    command = [program, "-v", "error", "-of", "json", *arguments, f"file:{path}"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def ours(*arguments: str) -> None:
    subprocess.run([ffmpeg.ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def boxes(data: bytes) -> list[str]:
    names, place = [], 0
    while place < len(data):
        names.append(data[place + 4 : place + 8].decode())
        place += int.from_bytes(data[place : place + 4], "big")
    return names


@pytest.mark.parametrize("rate", [Fraction(16), Fraction(24000, 1001), Fraction(25, 2), Fraction(1, 2), Fraction(120)])
def test_format_rate_and_count(tmp_path, rate):
    mp4.write_mp4(tmp_path / "a.mp4", clip(7), rate)
    stream = ffprobe(tmp_path / "a.mp4", "-show_streams", "-count_frames")["streams"][0]
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    assert Fraction(stream["r_frame_rate"]) == Fraction(stream["avg_frame_rate"]) == rate
    assert (stream["nb_frames"], stream["nb_read_frames"]) == ("7", "7")
    assert float(stream["duration"]) == pytest.approx(float(7 / rate), abs=0.001)
    tags = ("color_range", "color_space", "color_transfer", "color_primaries")
    assert [stream[tag] for tag in tags] == ["tv", "bt709", "bt709", "bt709"]


def test_the_index_comes_first(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(), Fraction(16), metadata={"prompt": "{}"})
    assert [name for name in boxes((tmp_path / "a.mp4").read_bytes()) if name != "free"] == [
        "ftyp",
        "moov",
        "mdat",
    ]


@pytest.mark.parametrize(
    "colour",
    [
        (220, 40, 40),
        (40, 220, 40),
        (40, 40, 220),
        (255, 255, 255),
        (0, 0, 0),
        (128, 128, 128),
        (240, 220, 30),
    ],
)
def test_colours_come_back(tmp_path, colour):
    frame = np.tile(np.array(colour, np.uint8), (48, 64, 1))
    mp4.write_mp4(tmp_path / "a.mp4", [frame] * 3, Fraction(16))
    for back in video.read_frames(tmp_path / "a.mp4"):
        assert np.abs(back.astype(int) - colour).max() <= 1


def test_colours_are_bt709_in_the_bytes_not_only_in_the_tags(tmp_path):
    frame = np.tile(np.array((220, 40, 40), np.uint8), (48, 64, 1))
    mp4.write_mp4(tmp_path / "a.mp4", [frame], Fraction(16))
    ours("-i", str(tmp_path / "a.mp4"), "-f", "rawvideo", "-pix_fmt", "yuv420p", str(tmp_path / "raw"))
    raw = np.fromfile(tmp_path / "raw", np.uint8)
    red, green, blue = (part / 255 for part in (220, 40, 40))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    planes = np.split(raw, [64 * 48, 64 * 48 + 32 * 24])
    assert [plane.mean() for plane in planes] == pytest.approx(expected, abs=1.5)


def test_detail_survives(tmp_path):
    rows, columns = np.mgrid[0:96, 0:128]
    frame = np.stack([rows * 2, columns * 2 - 1, 128 + 100 * np.sin(rows / 6)], -1).clip(0, 255).astype(np.uint8)
    mp4.write_mp4(tmp_path / "a.mp4", [frame] * 4, Fraction(16))
    for back in video.read_frames(tmp_path / "a.mp4"):
        error = np.mean((back.astype(float) - frame) ** 2)
        assert 10 * math.log10(255**2 / error) > 36  # x264's default quality stays below that.


@pytest.mark.parametrize(("height", "width"), [(49, 64), (48, 65), (49, 65), (1, 1), (2, 2)])
def test_odd_sizes_grow_by_their_edge(tmp_path, height, width):
    frame = np.full((height, width, 3), 60, np.uint8)
    frame[-1], frame[:, -1] = 200, 200
    mp4.write_mp4(tmp_path / "a.mp4", [frame] * 2, Fraction(16))
    back = next(video.read_frames(tmp_path / "a.mp4"))
    assert back.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(back[-1].astype(int) - 200).max() < 12 and np.abs(back[:, -1].astype(int) - 200).max() < 12
    if height > 40:
        assert np.abs(back[4:40, 4:56].astype(int) - 60).max() < 12


def test_order_of_frames_and_one_frame(tmp_path):
    for count in (1, 9):
        mp4.write_mp4(tmp_path / "a.mp4", clip(count), Fraction(16))
        greys = [int(back.mean().round()) for back in video.read_frames(tmp_path / "a.mp4")]
        assert greys == pytest.approx([40 + 20 * index for index in range(count)], abs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_equal_arrays(tmp_path, dtype):
    tensor = torch.rand(4, 48, 64, 3, generator=torch.Generator().manual_seed(2)).to(dtype) * 1.4 - 0.2
    arrays = [(frame.float() * 255).clamp(0, 255).byte().numpy() for frame in tensor]
    mp4.write_mp4(tmp_path / "a.mp4", tensor, Fraction(16))
    mp4.write_mp4(tmp_path / "b.mp4", iter(arrays), Fraction(16))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_same_input_same_bytes_and_no_version_of_ours(tmp_path):
    frames = [noise.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(6)]
    sound = {"waveform": torch.rand(1, 2, 8000) - 0.5, "sample_rate": 16000}
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        mp4.write_mp4(folder / name, frames, Fraction(16), metadata={"prompt": '{"a":1}'}, audio=sound)
    data = (tmp_path / "a" / "a").read_bytes()
    assert data == (tmp_path / "b" / "b").read_bytes()
    assert b"Lavf" not in data


def test_frames_are_streamed(tmp_path):
    alive, most = 0, 0

    class Frame(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def frames():
        nonlocal alive, most
        for _ in range(40):
            frame = Frame((256, 256, 3), np.uint8)
            frame[:] = 0
            alive += 1
            most = max(most, alive)
            yield frame

    mp4.write_mp4(tmp_path / "a.mp4", frames(), Fraction(16))
    assert 1 <= most <= 4


NASTY = {
    "prompt": json.dumps({"text": "a=b;c#d\\e\"f\n\r\t'皮影😀\u2028", "half": "\ud83d"}, ensure_ascii=False, indent=1),
    "workflow": '{"a": "\\\\", "b": "=;#", \r\n ";c": "#", "[STREAM]": "\n[STREAM]\nprompt=x\n"}',
    "extra = key; #1 \\": "\n\n;FFMETADATA1\ntrailing \\\n",
    "empty": "",
}


def test_metadata_that_looks_like_syntax(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(), Fraction(16), metadata=NASTY)
    back = metadata.read_workflow(tmp_path / "a.mp4")
    for key in ("prompt", "workflow", "extra = key; #1 \\"):
        assert back[key] == NASTY[key].replace("\ud83d", "\\ud83d")
    assert json.loads(back["prompt"])["half"] == "\ud83d"


@pytest.mark.parametrize("seed", range(6))
def test_random_metadata(tmp_path, seed):
    chance = random.Random(seed)
    ranges = [(1, 127), (1, 0x2FF), (0x3000, 0x9FFF), (0x10000, 0x1FFFF)]

    def text(length: int) -> str:
        picks = (chance.choice(["\\", "=", ";", "#", "\n", "\r", '"', None]) for _ in range(length))
        return "".join(pick or chr(chance.randint(*chance.choice(ranges))) for pick in picks) + "."

    texts = {
        "prompt": text(chance.randint(1, 2000)),
        "workflow": text(chance.choice([1, 1023, 1024, 1025, 70_000])),
    }
    mp4.write_mp4(tmp_path / "a.mp4", clip(1), Fraction(16), metadata=texts)
    back = metadata.read_workflow(tmp_path / "a.mp4")
    assert {key: back[key] for key in texts} == texts


def test_a_megabyte_of_metadata_as_others_read_it(tmp_path):
    text = json.dumps({"nodes": ["节点=\\;#\n" * 5] * 24_000}, ensure_ascii=False)
    assert len(text.encode()) > 1_000_000
    mp4.write_mp4(tmp_path / "a.mp4", clip(1), Fraction(16), metadata={"workflow": text})
    assert metadata.read_workflow(tmp_path / "a.mp4")["workflow"] == text
    assert ffprobe(tmp_path / "a.mp4", "-show_format")["format"]["tags"]["workflow"] == text


def test_without_metadata_there_is_none(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(), Fraction(16))
    with pytest.raises(PiyingError, match="carries no workflow"):
        metadata.read_workflow(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "name", ["-y.mp4", "a:b%03d.mp4", "皮影 戏'\"$(x).mp4", "x" * 200, "file:a.mp4", "concat:a|b"]
)
def test_file_names_mean_nothing_to_ffmpeg(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mp4.write_mp4(Path(name), clip(3), Fraction(16), metadata={"prompt": "{}"})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(list(video.read_frames(Path(name)))) == video.probe(Path(name)).frames == 3
    assert metadata.read_workflow(Path(name))["prompt"] == "{}"


def tone(seconds: float, rate: int, channels: int = 2, batch: int = 1) -> dict:
    phase = torch.arange(int(seconds * rate)) / rate * 2 * math.pi
    wave = torch.stack([0.5 * torch.sin(440 * (channel + 1) * phase) for channel in range(channels)])
    return {"waveform": wave[None].repeat(batch, 1, 1), "sample_rate": rate}


@pytest.mark.parametrize(("channels", "rate"), [(1, 44100), (2, 48000), (6, 48000), (2, 22050)])
def test_sound(tmp_path, channels, rate):
    mp4.write_mp4(tmp_path / "a.mp4", clip(32), Fraction(16), audio=tone(5, rate, channels), metadata=NASTY)
    pictures, sound = ffprobe(tmp_path / "a.mp4", "-show_streams")["streams"]
    assert (sound["codec_name"], sound["channels"], sound["sample_rate"]) == ("aac", channels, str(rate))
    assert float(sound["duration"]) == pytest.approx(2, abs=0.03)  # Cut where the video ends.
    assert pictures["r_frame_rate"] == "16/1" and pictures["nb_frames"] == "32"
    assert pictures["color_space"] == pictures["color_primaries"] == "bt709"
    assert metadata.read_workflow(tmp_path / "a.mp4")["workflow"] == NASTY["workflow"]
    assert [name for name in boxes((tmp_path / "a.mp4").read_bytes()) if name != "free"] == [
        "ftyp",
        "moov",
        "mdat",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_sound_comes_back_in_place(tmp_path):
    audio = tone(1, 48000, 2, batch=3)
    audio["waveform"][0, :, :24000] = 0
    audio["waveform"][1:] = float("nan")
    mp4.write_mp4(tmp_path / "a.mp4", clip(32), Fraction(16), audio=audio)
    ours("-i", str(tmp_path / "a.mp4"), "-f", "f32le", "-c:a", "pcm_f32le", str(tmp_path / "raw"))
    back = torch.from_numpy(np.fromfile(tmp_path / "raw", np.float32)).reshape(-1, 2).T
    assert 48000 <= back.shape[1] < 52000  # Shorter than the video, and it stays so.
    assert back[:, :23000].abs().max() < 0.02
    assert torch.corrcoef(torch.stack([back[0, 26000:46000], audio["waveform"][0, 0, 26000:46000]]))[0, 1] > 0.99
    assert len(list(video.read_frames(tmp_path / "a.mp4"))) == 32


def test_broken_samples_are_silenced(tmp_path):
    audio = tone(1, 16000, 1)
    audio["waveform"][0, 0, ::7] = float("nan")
    audio["waveform"][0, 0, 1::7] = float("inf")
    mp4.write_mp4(tmp_path / "a.mp4", clip(16), Fraction(16), audio=audio)
    assert video.probe(tmp_path / "a.mp4").has_audio


def test_no_samples_are_no_sound(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(), Fraction(16), audio=tone(0, 16000))
    assert not video.probe(tmp_path / "a.mp4").has_audio


@pytest.mark.parametrize("shape", [(2, 100), (1, 0, 100), (1, 9, 100), (0, 2, 100)])
def test_sound_of_a_wrong_shape_is_refused_before_encoding(tmp_path, shape):
    def frames():
        pytest.fail("a frame was asked for")
        yield

    with pytest.raises(PiyingError, match=r"The audio is a waveform \[.*1 to 8 channels"):
        mp4.write_mp4(
            tmp_path / "a.mp4",
            frames(),
            Fraction(16),
            audio={"waveform": torch.zeros(shape), "sample_rate": 8000},
        )


@pytest.mark.parametrize("fps", [0, -1, 1001, Fraction(1, 100_000)])
def test_rates_out_of_range(tmp_path, fps):
    with pytest.raises(PiyingError, match=r"fps is .*Allowed: above 0, up to 1000"):
        mp4.write_mp4(tmp_path / "a.mp4", clip(), Fraction(fps))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "there are no frames"),
        ([*clip(2), *clip(1, 48, 62)], "Frame 2 of the video is 62×48, the first is 64×48"),
        ([clip(1)[0].astype(np.float32)], r"Frame 0 of the video is float32 \[48, 64, 3\]"),
        (clip(1)[0], r"Frame 0 of the video is uint8 \[64, 3\]"),
        ([np.zeros((48, 64, 4), np.uint8)], r"\[48, 64, 4\]"),
        ([np.zeros((0, 64, 3), np.uint8)], r"\[0, 64, 3\]"),
    ],
)
def test_wrong_frames(tmp_path, frames, words):
    with pytest.raises(PiyingError, match=words):
        mp4.write_mp4(tmp_path / "a.mp4", frames, Fraction(16))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_file_that_was_there(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(3), Fraction(16))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(PiyingError, match="Frame 2"):
        mp4.write_mp4(tmp_path / "a.mp4", [*clip(2), *clip(1, 48, 62)], Fraction(16))
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("with_audio", [False, True])
def test_an_error_among_the_frames_ends_ffmpeg(tmp_path, with_audio):
    started = []

    def frames():
        for index, frame in enumerate(clip(40, 256, 256)):
            if index == 30:
                started.extend(path for path in tmp_path.rglob("*"))
                raise OSError("the source is gone")
            yield frame

    threads = threading.active_count()
    with pytest.raises(OSError, match="the source is gone"):
        mp4.write_mp4(tmp_path / "a.mp4", frames(), Fraction(16), audio=tone(1, 8000) if with_audio else None)
    assert started and list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    assert children(os.getpid()) == []


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_on_the_terminal(tmp_path):
    code = PREAMBLE + (
        "import time\n"
        "def frames():\n"
        "    for index in range(1000):\n"
        "        yield np.zeros((256, 256, 3), np.uint8)\n"
        "        if index == 60: print('ready', flush=True); time.sleep(60)\n"
        "with naming.writing(Path(sys.argv[1]), 'video/a', '.mp4') as out:\n"
        "    mp4.write_mp4(out.path, frames(), Fraction(16))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=-1, stderr=-1, start_new_session=True
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        (encoder,) = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert list((tmp_path / "video").iterdir()) == []
    assert not Path(f"/proc/{encoder}").exists()


LARGE = PREAMBLE + (
    "source = np.random.default_rng(1)\n"
    "frames = (source.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(200))\n"
    "try:\n"
    "    with naming.writing(Path(sys.argv[1]), 'a', '.mp4') as out:\n"
    "        mp4.write_mp4(out.path, frames, Fraction(16))\n"
    "except PiyingError as error: print(error)\n"
    "print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))\n"
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_file_larger_than_allowed(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    ran = subprocess.run(
        [sys.executable, "-c", limit + LARGE, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert ran.stderr == ""
    sentence, names = ran.stdout.splitlines()
    assert f"Cannot save the video in {tmp_path}: the file would be larger than" in sentence
    assert names == "[]"


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare to mount a small disk")
def test_a_full_disk(tmp_path):
    mount = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        'mount -t tmpfs -o size=200k none "$2" && exec "$0" -c "$1" "$2"',
    ]
    ran = subprocess.run([*mount, sys.executable, LARGE, str(tmp_path)], capture_output=True, text=True, timeout=60)
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip("a small disk cannot be mounted here")
    assert ran.stderr == ""
    sentence, names = ran.stdout.splitlines()
    assert f"Cannot save the video in {tmp_path}: the disk is full. Free some space" in sentence
    assert names == "[]"


def test_a_folder_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PiyingError, match=r"Cannot save the video in .*file: a file stands where"):
        mp4.write_mp4(tmp_path / "file" / "a.mp4", clip(), Fraction(16))
    with pytest.raises(PiyingError, match=r"no such file or folder"):
        mp4.write_mp4(tmp_path / "gone" / "a.mp4", clip(), Fraction(16))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["missing", "no program", "folder"])
def test_an_ffmpeg_that_cannot_run(tmp_path, monkeypatch, kind):
    program = tmp_path / "ffmpeg"
    if kind == "no program":
        program.write_text("x")
        program.chmod(0o755)
    elif kind == "folder":
        program.mkdir()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    (tmp_path / "out").mkdir()
    with pytest.raises(PiyingError, match=r"The ffmpeg program .*/ffmpeg cannot be run: .*IMAGEIO_FFMPEG_EXE"):
        mp4.write_mp4(tmp_path / "out" / "a.mp4", clip(), Fraction(16))
    assert list((tmp_path / "out").iterdir()) == []


def test_no_ffmpeg_at_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(PiyingError, match="pip install imageio-ffmpeg.*IMAGEIO_FFMPEG_EXE"):
        ffmpeg.ffmpeg_exe()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo \"[x @ 0x1] Unknown encoder 'libx264'\" >&2; exit 1",
            "ffmpeg says: Unknown encoder 'libx264'. Unset",
        ),
        ("cat > /dev/null; kill -9 $$", "ended by signal 9"),
        ("exit 3", "it failed with code 3"),
        ("yes bad | head -c 1000000 >&2; exit 1", "ffmpeg says: bad"),
    ],
)
def test_what_ffmpeg_says_is_passed_on(tmp_path, monkeypatch, script, words):
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(PiyingError, match=r"Cannot save the video in ") as caught:
        mp4.write_mp4(tmp_path / "a.mp4", clip(20, 256, 256), Fraction(16))
    assert words in str(caught.value)


def test_probe(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(9), Fraction(24000, 1001), audio=tone(1, 16000))
    info = video.probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.fps, info.frames) == (64, 48, Fraction(24000, 1001), 9)
    assert info.duration == pytest.approx(9 * 1001 / 24000)
    assert (info.has_audio, info.start, info.notes) == (True, 0, ())


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mov", "a.gif"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(10)])
def test_probe_and_read_other_containers(tmp_path, name, rate):
    if name == "a.gif" and rate != 10:
        pytest.skip("a GIF counts in hundredths of a second")
    mp4.write_mp4(tmp_path / "a.mp4", clip(6), rate)
    codec = {"a.webm": ["-c:v", "libvpx", "-b:v", "1M"], "a.gif": []}.get(name, ["-c:v", "copy"])
    ours("-i", str(tmp_path / "a.mp4"), *codec, str(tmp_path / name))
    info = video.probe(tmp_path / name)
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (64, 48, rate, 6, False)
    assert info.duration == pytest.approx(float(6 / rate), abs=0.01)
    assert len(list(video.read_frames(tmp_path / name))) == 6


def test_a_changing_rate_gives_each_frame_once(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(8), Fraction(8))
    uneven = "setpts='if(lt(N,4),N*0.1,0.4+(N-4)*0.5)/TB'"
    ours(
        "-i",
        str(tmp_path / "a.mp4"),
        "-vf",
        uneven,
        "-enc_time_base",
        "1/100",
        "-r",
        "100",
        "-vf",
        uneven,
        str(tmp_path / "b.mkv"),
    )
    count = len(list(video.read_frames(tmp_path / "b.mkv")))
    info = video.probe(tmp_path / "b.mkv")
    assert info.frames == count
    assert float(info.fps) == pytest.approx(count / info.duration, rel=0.03)


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_frames_of_uneven_durations_are_said_for_animations_too(tmp_path, ending):
    from PIL import Image

    frames = [Image.new("RGB", (16, 16), (number * 30, 0, 0)) for number in range(8)]
    for name, spans in (("even", [100] * 8), ("uneven", [50] * 4 + [500] * 4)):
        path = tmp_path / f"{name}.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=spans, lossless=True)
        notes = [note for note in video.probe(path).notes if "uneven" in note]
        assert len(notes) == (name == "uneven"), notes
    # Frame 4 is shown at 0.2 s; at 8 frames in 2.2 s it would be at 1.1 s.
    assert notes == [
        "its frames have uneven durations: each is one frame at the mean rate of 3.6364 per second, up to 0.90 s from "
        "its time"
    ]


def test_a_turned_video_is_read_upright(tmp_path):
    frame = np.full((48, 64, 3), 30, np.uint8)
    frame[:, :32] = 220
    mp4.write_mp4(tmp_path / "a.mp4", [frame], Fraction(16))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    # The track's matrix, as a phone held upright writes it.
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    info = video.probe(tmp_path / "a.mp4")
    assert (info.width, info.height) == (48, 64)
    (back,) = video.read_frames(tmp_path / "a.mp4")
    assert back.shape == (64, 48, 3)
    assert back[:28].min() > 200 and back[36:].max() < 50


def test_reading_can_stop_early(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(200, 256, 256), Fraction(16))
    frames = video.read_frames(tmp_path / "a.mp4")
    assert next(frames).shape == (256, 256, 3)
    frames.close()
    assert children(os.getpid()) == []


@pytest.mark.parametrize("read", [video.probe, lambda path: list(video.read_frames(path))])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no such file or folder. Check the name"),
        (b"", "ffmpeg says"),
        (b"not a video at all, " * 50, "damaged, cut short or no video"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(4000), "damaged, cut short or no video"),
    ],
)
def test_no_video(tmp_path, read, data, words):
    if data is not None:
        (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(PiyingError, match=r"Cannot read .*a\.mp4: ") as caught:
        read(tmp_path / "a.mp4")
    assert words in str(caught.value)


def test_a_video_cut_short(tmp_path):
    mp4.write_mp4(tmp_path / "a.mp4", clip(), Fraction(16))
    ours("-i", str(tmp_path / "a.mp4"), "-c", "copy", str(tmp_path / "b.mp4"))  # With the index last.
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(PiyingError, match="cut short"):
        list(video.read_frames(tmp_path / "b.mp4"))


def test_sound_without_pictures(tmp_path):
    ours("-f", "lavfi", "-i", "sine=duration=0.2", str(tmp_path / "a.m4a"))
    with pytest.raises(PiyingError, match="holds no picture"):
        list(video.read_frames(tmp_path / "a.m4a"))


def test_a_playlist_cannot_read_other_files(tmp_path):
    mp4.write_mp4(tmp_path / "secret.mp4", clip(), Fraction(16))
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "b.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(PiyingError):
            list(video.read_frames(tmp_path / name))
        with pytest.raises(PiyingError):
            metadata.read_workflow(tmp_path / name)


def test_an_animated_avif_is_not_taken_for_a_still(tmp_path):
    from PIL import Image, features

    if not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    first, second = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "x.avif", save_all=True, append_images=[second], duration=100)
    with pytest.raises(PiyingError, match="is an animated AVIF.* Load Image reads all"):
        video.probe(tmp_path / "x.avif")
    first.save(tmp_path / "still.avif")
    assert video.probe(tmp_path / "still.avif").frames == 1
