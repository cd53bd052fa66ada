"""Footage as cameras, phones and editors write it, through Load Video: what players show, or a line that says what."""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from piying.core.errors import PiyingError
from piying.core.media import colour, ffmpeg, video
from piying.core.media.audio import read_audio
from piying.runner.core_nodes import CORE_NODE_CLASSES

H264 = "-c:v libx264 -crf 1 -pix_fmt yuv420p"
CLIP = "-f lavfi -i testsrc2=s=96x64:r=10:d=2"
TONE = "-f lavfi -i sine=f=440:d=1.5:r=8000"
RED = (200, 60, 40)


def run(name, **inputs):
    node = CORE_NODE_CLASSES[name]()
    return getattr(node, node.FUNCTION)(**inputs)


def make(path: Path, *parts: str, stdin: bytes = b"") -> None:
    command = [ffmpeg.ffmpeg_exe(), "-v", "error", "-y", *" ".join(parts).split(), str(path)]
    subprocess.run(command, check=True, input=stdin)


def read(path: Path) -> tuple[np.ndarray, dict | None, float]:
    """Return frames in 0..255, sound and rate as Get Video Components gives them."""
    images, sound, fps, *_ = run("GetVideoComponents", video=run("LoadVideo", file=path.name)[0])
    return (images.numpy() * 255).round().astype(int), sound, fps


def written(host, video) -> Path:
    result = run("SaveVideo", video=video, filename_prefix="v", format="auto", codec="auto")
    return host.output / result["ui"]["images"][0]["filename"]


def saved(host, path: Path) -> Path:
    return written(host, run("LoadVideo", file=path.name)[0])


def loud_at(sound: dict) -> float:
    """Return the seconds at which sound begins to be heard."""
    heard = (sound["waveform"][0, 0].abs() > 0.05).nonzero()
    return float(heard[0]) / sound["sample_rate"]


def lines(caplog) -> list[str]:
    return [f"{entry.levelname} {entry.getMessage()}" for entry in caplog.records if entry.name == "piying"]


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO, "piying")


def stored(matrix: str, pixels: str = "yuv420p", levels: str = "tv") -> str:
    return f"-vf scale=out_color_matrix={matrix}:out_range={levels}:{colour.PRECISE},format={pixels}"


def zscaled(pixels: str, tags: str) -> str:
    return f"-vf format=gbrp,zscale=pin=bt709:tin=bt709:min=gbr:r=tv:{tags},format={pixels}"


X265 = "-c:v libx265 -x265-params log-level=none:crf=1:"
COLOURS = {
    "bt709.mp4": f"{stored('bt709')} -colorspace bt709 -c:v libx264 -crf 1",
    "bt601.mp4": f"{stored('bt601')} -colorspace smpte170m -c:v libx264 -crf 1",
    "bt240.mp4": f"{stored('smpte240m')} -colorspace smpte240m -c:v libx264 -crf 1",
    "full.mp4": f"{stored('bt709', levels='pc')} -colorspace bt709 -color_range pc -c:v libx264 -crf 1",
    "jpeg.mkv": f"{stored('bt601', 'yuvj420p', 'pc')} -c:v mjpeg -q:v 1",
    "untagged.mp4": f"{stored('bt601')} -c:v libx264 -crf 1",
    "ten.mp4": f"{stored('bt709', 'yuv420p10le')} -colorspace bt709 -c:v libx264 -crf 1",
    "twelve.mov": f"{stored('bt601', 'yuv444p12le')} -c:v prores_ks -profile:v 4444",
    "rgb.mp4": "-c:v libx264rgb -crf 0",
    "ycgco.mkv": f"{zscaled('yuv444p', 'm=ycgco:p=709:t=709')} -colorspace ycgco -c:v ffv1",
    "bt2020.mp4": f"{zscaled('yuv420p10le', 'm=2020_ncl:p=2020:t=2020_10')} {X265}colorprim=bt2020:"
    "transfer=bt2020-10:colormatrix=bt2020nc",
    "p3.mp4": f"{zscaled('yuv420p10le', 'm=709:p=smpte432:t=709')} {X265}colorprim=smpte432:transfer=bt709:"
    "colormatrix=bt709",
}
CONVERTED = {"bt2020.mp4": "its wide gamut BT.2020 is converted", "p3.mp4": "its wide gamut Display P3 is converted"}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_those_that_were_filmed(host, caplog, name):
    pixels = bytes(RED) * (96 * 64 * 2)
    make(host.input / name, "-f rawvideo -pix_fmt rgb24 -s 96x64 -r 10 -i pipe:0", COLOURS[name], stdin=pixels)
    frames, _, _ = read(host.input / name)
    assert frames.shape == (2, 64, 96, 3)
    assert np.abs(frames - RED).max() <= 2
    found = lines(caplog)
    assert len(found) == (name in CONVERTED)
    assert CONVERTED.get(name, "") in "".join(found)


def test_a_large_picture_without_a_matrix_is_bt709_as_in_players(host, caplog):
    untagged = "-bsf:v h264_metadata=matrix_coefficients=2:colour_primaries=2:transfer_characteristics=2"
    source = "-f rawvideo -pix_fmt rgb24 -s 1280x720 -r 10 -i pipe:0"
    make(host.input / "a.mp4", source, stored("bt709"), "-c:v libx264", untagged, stdin=bytes(RED) * 1280 * 720)
    frames, _, _ = read(host.input / "a.mp4")
    assert np.abs(frames - RED).max() <= 2
    assert lines(caplog) == [
        "INFO a.mp4: it does not say its colour matrix: BT.709 is assumed, as in players at this size."
    ]


def perceptual_quantizer(nits: float) -> int:
    """Return the code value in 10 bits and limited range of SMPTE ST 2084."""
    light = (nits / 10000) ** (2610 / 16384)
    signal = ((3424 / 4096 + 2413 / 128 * light) / (1 + 2392 / 128 * light)) ** (2523 / 32)
    return round(64 + 876 * signal)


def hdr(path: Path, code: int, transfer: str = "smpte2084", size: str = "96x64", alpha: bool = False) -> None:
    opacity = ":a='if(lt(X,48),1023,512)'" if alpha else ""
    picture = f"nullsrc=s={size}:r=10:d=0.2,format={'yuva444p10le' if alpha else 'yuv420p10le'}"
    tags = f"setparams=range=tv:color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc"
    options = f"-color_primaries bt2020 -color_trc {transfer} -colorspace bt2020nc -color_range tv"
    make(path, f"-f lavfi -i {picture},geq=lum={code}:cb=512:cr=512{opacity},{tags} {options} -c:v ffv1")


@pytest.mark.parametrize("nits", [1, 10, 100, 203, 1000, 4000])
def test_pq_is_tone_mapped(host, caplog, nits):
    """Below the knee display light is the source's, in units of 203 nits, through a gamma of 2.4; above it fits in."""
    hdr(host.input / "a.mkv", perceptual_quantizer(nits))
    frames, _, _ = read(host.input / "a.mkv")
    plain = 255 * min(1, nits / 203) ** (1 / 2.4)
    assert frames.mean() == pytest.approx(242 if nits == 203 else plain, abs=2)
    (line,) = lines(caplog)
    assert line == "INFO a.mkv: its PQ HDR is tone-mapped to SDR (BT.709, white at 203 nits)."


def test_hlg_is_tone_mapped_in_odd_sizes_too(host, caplog):
    hdr(host.input / "a.mkv", 721, "arib-std-b67", "97x63")  # 75 %, HLG's reference white
    frames, _, _ = read(host.input / "a.mkv")
    assert frames.shape == (2, 63, 97, 3)
    assert frames.mean() == pytest.approx(242, abs=2)
    assert "its HLG HDR is tone-mapped" in lines(caplog)[0]


def test_hdr_with_transparency(host):
    hdr(host.input / "a.mkv", perceptual_quantizer(203), alpha=True)
    frames, _, _ = read(host.input / "a.mkv")
    assert frames[:, :, 8:40].mean() == pytest.approx(242, abs=3)
    assert frames[:, :, 56:88].mean() == pytest.approx(121, abs=3)


def test_an_ffmpeg_that_cannot_tone_map_is_named(host, caplog, monkeypatch):
    monkeypatch.setattr(ffmpeg, "names", lambda kind: frozenset({"scale", "zscale"}))
    hdr(host.input / "a.mkv", perceptual_quantizer(203))
    assert read(host.input / "a.mkv")[0].mean() == pytest.approx(148, abs=2)
    (line,) = lines(caplog)
    assert "its PQ HDR is shown with wrong colours, since this ffmpeg" in line
    assert "has no filter tonemap. Set IMAGEIO_FFMPEG_EXE" in line


def test_a_file_s_texts_say_nothing_about_its_colours(host):
    said = (
        "[Parsed_showinfo_0 @ 0x1] [info] color_range:pc color_space:x,movie=y color_primaries:z color_trc:smpte2084"
    )
    make(host.input / "v.mkv", CLIP, H264)
    command = [ffmpeg.ffmpeg_exe(), "-v", "error", "-i", str(host.input / "v.mkv"), "-c", "copy"]
    subprocess.run([*command, "-metadata", f"title=a\n{said}\r\n{said}", str(host.input / "a.mkv")], check=True)
    assert np.array_equal(read(host.input / "a.mkv")[0], read(host.input / "v.mkv")[0])


@pytest.mark.parametrize(
    ("aspect", "size"), [("2/1", (64, 192)), ("8/9", (72, 96)), ("16/15", (64, 102)), ("1/2", (128, 96))]
)
def test_pixels_become_square(host, caplog, aspect, size):
    make(host.input / "a.mp4", CLIP, f"-vf setsar={aspect}", H264)
    (loaded,) = run("LoadVideo", file="a.mp4")
    assert loaded.get_dimensions() == size[::-1]
    frames, _, _ = read(host.input / "a.mp4")
    assert frames.shape == (20, *size, 3)
    (line,) = lines(caplog)
    ratio = aspect.replace("/", ":")
    assert f"its pixels are not square ({ratio}): its frames are scaled from 96×64 to {size[1]}×{size[0]}" in line


def test_turned_anamorphic_video(host):
    make(host.input / "flat.mp4", CLIP, "-vf setsar=2/1", H264)
    try:
        make(host.input / "a.mp4", "-display_rotation 90 -i", str(host.input / "flat.mp4"), "-c copy")
    except subprocess.CalledProcessError:
        pytest.skip("this ffmpeg cannot mark a video as turned")
    frames = read(host.input / "a.mp4")[0]
    assert frames.shape == (20, 192, 64, 3)
    assert np.abs(np.rot90(read(host.input / "flat.mp4")[0], 1, (1, 2)) - frames).mean() < 2


def test_an_absurd_aspect_is_ignored(host, caplog):
    make(host.input / "a.mp4", CLIP, "-vf setsar=50/1", H264)
    assert read(host.input / "a.mp4")[0].shape == (20, 64, 96, 3)
    assert "it says that its pixels are 50:1, which is ignored" in lines(caplog)[0]


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_video_is_deinterlaced(host, caplog, order):
    moving = "color=black:s=96x64:r=20:d=1[a];color=white:s=24x64:r=20:d=1[b];[a][b]overlay=x=4*n"
    first = {"tff": "top", "bff": "bottom"}[order]
    fields = f"-vf tinterlace=interleave_{first},fieldorder={order} -flags +ildct+ilme -x264-params {order}=1"
    make(host.input / "a.mp4", "-f lavfi -i", moving, fields, H264)
    frames, _, fps = read(host.input / "a.mp4")
    assert (len(frames), fps) == (10, 10)
    plain = np.abs(np.diff(frames[3:7, 8:-8, :, 0], axis=1)).mean()
    gray = ["-vf", "format=gray", "-f", "rawvideo", "pipe:1"]
    plane = np.frombuffer(ffmpeg.output([*ffmpeg.source(host.input / "a.mp4"), *gray], "Cannot read"), np.uint8)
    combed = np.abs(np.diff(plane.reshape(10, 64, 96)[3:7, 8:-8].astype(int), axis=1)).mean()
    assert combed > 5 and plain < combed / 3, "a moving edge has no teeth"
    assert lines(caplog) == ["INFO a.mp4: it is interlaced: its frames are deinterlaced."]


OPACITY = "geq=lum='p(X,Y)':cb='p(X,Y)':cr='p(X,Y)':a='if(lt(X,32),255,if(lt(X,64),128,0))'"
GREEN = f"-f lavfi -i color=c=0x00C800:s=96x64:r=10:d=0.2,format=yuva444p,{OPACITY}"
ALPHA = {
    "a.webm": "-pix_fmt yuva420p -c:v libvpx-vp9",
    "vp8.webm": "-pix_fmt yuva420p -c:v libvpx -auto-alt-ref 0",
    "a.mov": "-c:v prores_ks -profile:v 4444",
    "rle.mov": "-pix_fmt argb -c:v qtrle",
}


@pytest.mark.parametrize("name", ALPHA)
def test_transparency_is_over_black(host, caplog, name):
    make(host.input / name, GREEN, ALPHA[name])
    frames, _, _ = read(host.input / name)
    for place, green in ((16, 200), (48, 100), (80, 0)):
        assert np.abs(frames[:, 32, place] - (0, green, 0)).max() <= 4
    assert lines(caplog) == [f"WARNING {name}: its transparency is left out: frames are over black."]
    back = np.stack(list(video.read_frames(saved(host, host.input / name)))).astype(int)
    assert np.abs(back - frames).mean() < 3, "a copy of the streams would lose it"


def test_an_opaque_alpha_channel_needs_no_words(host, caplog):
    make(host.input / "a.gif", "-f lavfi -i testsrc2=s=96x64:r=10:d=0.3")
    make(host.input / "a.mov", "-f lavfi -i color=red:s=96x64:r=10:d=0.2,format=yuva444p10le", ALPHA["a.mov"])
    read(host.input / "a.gif")
    read(host.input / "a.mov")
    assert lines(caplog) == []


def test_transparent_webp_is_over_black(host, caplog):
    pictures = [Image.new("RGBA", (9, 7), (0, 200, 0, opacity)) for opacity in (128, 0, 255)]
    pictures[0].save(host.input / "a.webp", save_all=True, append_images=pictures[1:], duration=[100, 50, 50])
    frames, _, fps = read(host.input / "a.webp")
    assert np.abs(frames[:, 3, 4, 1] - (100, 0, 200)).max() <= 3
    assert fps == 15
    assert "its transparency is left out" in lines(caplog)[0]


def sources(host) -> str:
    make(host.input / "v.mp4", CLIP, H264)
    make(host.input / "a.m4a", TONE, "-c:a aac")
    return f"-i {host.input / 'v.mp4'} -itsoffset 0.5 -i {host.input / 'a.m4a'} -map 0:v -map 1:a -c copy"


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov", "ts"])
def test_late_sound_stays_late(host, container):
    path = host.input / f"late.{container}"
    make(path, sources(host))
    _, sound, _ = read(path)
    assert loud_at(sound) == pytest.approx(0.5, abs=0.02)
    assert loud_at(read_audio(saved(host, path))) == pytest.approx(0.5, abs=0.02)


def test_made_videos_keep_late_sound(host):
    make(host.input / "late.mp4", sources(host))
    images, sound, fps, *_ = run("GetVideoComponents", video=run("LoadVideo", file="late.mp4")[0])
    (made,) = run("CreateVideo", images=images, fps=fps, audio=sound)
    assert loud_at(read_audio(written(host, made))) == pytest.approx(0.5, abs=0.02)


def test_sound_before_the_picture_is_left_out(host, caplog):
    sources(host)
    streams = f"-itsoffset 0.5 -i {host.input / 'v.mp4'} -i {host.input / 'a.m4a'}"
    make(host.input / "early.mp4", streams, "-map 0:v -map 1:a -c copy")
    frames, sound, fps = read(host.input / "early.mp4")
    assert (len(frames), fps) == (20, 10)
    assert sound["waveform"].shape[2] / sound["sample_rate"] == pytest.approx(1.0, abs=0.15)
    assert lines(caplog) == ["INFO early.mp4: its picture begins at 0.50 s: sound before that is left out."]


def test_a_hole_in_the_sound_is_silence(host):
    hole = "-af aselect=lt(t\\,0.5)+gt(t\\,1.2)"
    make(host.input / "a.mkv", CLIP, "-f lavfi -i sine=f=440:d=2:r=8000", hole, H264, "-c:a pcm_s16le")
    _, sound, _ = read(host.input / "a.mkv")
    heard = sound["waveform"][0, 0].abs()
    assert len(heard) / 8000 == pytest.approx(2, abs=0.05)
    assert heard[5600:8800].max() == 0 and heard[11000:].max() > 0.1


def test_the_first_sound_track_is_named(host, caplog):
    sources(host)
    tracks = f"-i {host.input / 'v.mp4'} -i {host.input / 'a.m4a'} -i {host.input / 'a.m4a'}"
    make(host.input / "two.mp4", tracks, "-map 0 -map 1 -map 2 -c copy")
    read(host.input / "two.mp4")
    assert lines(caplog) == ["INFO two.mp4: the first of its 2 sound tracks is taken."]


@pytest.mark.parametrize(("seconds", "told"), [(3, True), (2.05, False), (1, False)])
def test_sound_longer_than_the_picture_is_cut_in_one_line(host, caplog, seconds, told):
    sound = {"waveform": torch.rand(1, 1, int(8000 * seconds)) - 0.5, "sample_rate": 8000}
    (made,) = run("CreateVideo", images=torch.rand(20, 24, 32, 3), fps=10.0, audio=sound)
    assert read_audio(written(host, made))["waveform"].shape[2] / 8000 == pytest.approx(min(seconds, 2), abs=0.2)
    line = "INFO The sound is 1.00 s longer than the picture: it is cut where the picture ends."
    assert lines(caplog) == ([line] if told else [])


def test_alpha_that_no_saver_keeps_is_named(host, caplog):
    (made,) = run("CreateVideo", images=torch.rand(2, 24, 32, 4), fps=10.0)
    written(host, made)
    run("SaveWEBM", images=torch.rand(2, 24, 32, 4), filename_prefix="w", codec="vp9", fps=10.0, crf=30.0)
    assert lines(caplog) == [
        "INFO The images' alpha is left out: H.264 has no place for it.",
        "INFO The images' alpha is left out: Save WEBM writes none.",
    ]


def test_edit_lists(host, caplog):
    make(host.input / "long.mp4", "-f lavfi -i testsrc2=s=96x64:r=10:d=4", H264, "-g 20")
    make(host.input / "a.mp4", "-ss 0.7 -i", str(host.input / "long.mp4"), "-c copy")
    (loaded,) = run("LoadVideo", file="a.mp4")
    frames, _, fps = read(host.input / "a.mp4")
    assert (loaded.info.frames, loaded.get_duration(), fps) == (33, pytest.approx(3.3), 10)
    assert np.array_equal(frames, read(host.input / "long.mp4")[0][7:])
    copied = np.stack(list(video.read_frames(saved(host, host.input / "a.mp4"))))
    assert np.array_equal(copied, frames)
    assert lines(caplog) == []


def test_uneven_frames_are_told(host, caplog):
    uneven = "-vf select=lt(n\\,10)+not(mod(n\\,5)) -fps_mode vfr"
    make(host.input / "a.mp4", "-f lavfi -i testsrc=s=32x24:d=4:r=10", uneven, H264)
    frames, _, fps = read(host.input / "a.mp4")
    assert len(frames) == 16
    assert fps == pytest.approx(16 / 3.6, abs=0.01)
    (line,) = lines(caplog)
    assert (
        "its frames have uneven durations: each is one frame at the mean rate of 4.4444 per second, up to 1.25 s"
        in (line)
    )


def test_milliseconds_are_not_uneven(host, caplog):
    make(host.input / "a.mkv", "-f lavfi -i testsrc=s=32x24:d=2:r=30000/1001", H264)
    assert read(host.input / "a.mkv")[2] == pytest.approx(30000 / 1001)
    assert lines(caplog) == []


def test_a_size_that_changes_on_the_way(host):
    pictures = []
    for size in ("16x16", "64x48"):
        make(host.input / "a.mjpeg", f"-f lavfi -i color=red:s={size}:r=1:d=2 -c:v mjpeg")
        pictures.append((host.input / "a.mjpeg").read_bytes())
    (host.input / "a.mjpeg").write_bytes(b"".join(pictures))
    make(host.input / "a.avi", "-f mjpeg -i", str(host.input / "a.mjpeg"), "-c copy")
    frames, _, _ = read(host.input / "a.avi")
    assert frames.shape == (4, 16, 16, 3)
    assert np.abs(frames - (254, 0, 0)).max() <= 2


def test_a_cover_is_no_video(host):
    sources(host)
    make(host.input / "cover.jpg", "-f lavfi -i color=red:s=64x64 -frames:v 1")
    cover, attached = f"-i {host.input / 'cover.jpg'}", "-c copy -disposition:v:0 attached_pic"
    make(host.input / "a.mp4", cover, f"-i {host.input / 'v.mp4'} -map 0 -map 1 {attached} -disposition:v:1 default")
    assert read(host.input / "a.mp4")[0].shape == (20, 64, 96, 3)
    make(host.input / "b.m4a", cover, f"-i {host.input / 'a.m4a'} -map 0 -map 1 {attached}")
    make(host.input / "silent.mp4", CLIP, "-t 0", H264)
    for name in ("b.m4a", "a.m4a", "silent.mp4"):
        with pytest.raises(PiyingError, match="The file holds no picture"):
            read(host.input / name)


def test_subtitles_that_a_copy_leaves_out_are_named(host, caplog):
    (host.input / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    make(host.input / "a.mkv", CLIP, f"-i {host.input / 'a.srt'}", H264)
    saved(host, host.input / "a.mkv")
    assert lines(caplog) == ["INFO a.mkv: its subtitles are left out."]


def damaged(data: bytes, seed: int) -> bytes:
    """Return a file with some bytes changed, or cut."""
    chance, changed = random.Random(seed), bytearray(data)
    if seed % 4 == 0:
        return data[: chance.randrange(len(data))]
    for _ in range(chance.choice((1, 3, 20, 200))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(video.read_frames(path)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", "-c:v libwebp_anim -lossless 1"),
        ("a.h264", f"{H264} -bf 2 -f h264"),
        ("a.avi", f"{H264} -bf 2"),
        ("a.gif", ""),
        ("a.mkv", f"{H264} -bf 2"),
    ],
)
def test_what_is_loaded_is_saved_with_its_frames_and_times(host, name, options):
    """Streams are copied only where the file has each frame's time; animations are no streams at all."""
    make(host.input / name, CLIP, options)
    path = saved(host, host.input / name)
    info = video.probe(path)
    assert (info.frames, info.fps, info.duration, info.is_timed) == (20, 10, 2.0, True)
    # Chroma is halved where it was not.
    assert np.abs(frames_of(path).astype(int) - frames_of(host.input / name)).mean() < 14
    assert (name == "a.mkv") == np.array_equal(frames_of(path), frames_of(host.input / name))


def test_the_sample_that_is_an_animation_can_be_saved(host):
    sample = Path(__file__).parents[3] / "builtin_models/samples/moving_circle_mask.webp"
    (host.input / sample.name).write_bytes(sample.read_bytes())
    assert video.probe(saved(host, host.input / sample.name)).frames == video.probe(sample).frames


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_further_video_tracks_are_named(host, caplog, container):
    path = host.input / f"a.{container}"
    hostile = "-metadata comment=[info]_Stream_#0:7:_Video:_h264"
    make(path, CLIP, CLIP.replace("testsrc2", "testsrc"), f"-map 0:v -map 1:v {H264} {hostile}")
    frames, _, _ = read(path)
    assert len(frames) == 20
    saved(host, path)
    assert lines(caplog) == [
        f"INFO a.{container}: the first of its 2 video tracks is taken.",
        f"INFO a.{container}: the first of its 2 video tracks is copied.",
    ]


def test_frames_grown_to_even_sides_are_named(host, caplog):
    (made,) = run("CreateVideo", images=torch.rand(3, 25, 33, 3), fps=10.0)
    written(host, made)
    assert lines(caplog) == [
        "INFO The frames are 33×25: they are saved as 34×26, their edge repeated: the codec needs even sides."
    ]


def test_damage_to_the_sound_leaves_the_rate(host, caplog):
    """Reading of both ends where the sound does; the picture goes on, at the rate that the file declares."""
    make(host.input / "whole.mp4", CLIP, TONE, f"{H264} -bf 2 -c:a aac -movflags frag_keyframe+empty_moov")
    data = (host.input / "whole.mp4").read_bytes()
    for part in (0.5, 0.6, 0.7, 0.8, 0.95):
        (host.input / "a.mp4").write_bytes(data[: int(len(data) * part)])
        frames, _, fps = read(host.input / "a.mp4")
        assert fps == 10
        (line,) = [line for line in lines(caplog) if "frames could be read" in line]
        caplog.clear()
        found = re.search(rf"a\.mp4 is damaged: {len(frames)} of (\d+) frames could be read", line)
        assert found is not None and int(found[1]) >= len(frames)


def test_damage_is_told(host, caplog):
    make(host.input / "a.mp4", CLIP, TONE, H264, "-c:a aac -shortest")
    data = bytearray((host.input / "a.mp4").read_bytes())
    middle = data.index(b"mdat") + 2000
    data[middle : middle + 400] = bytes(400)
    (host.input / "b.mp4").write_bytes(data)
    frames, _, _ = read(host.input / "b.mp4")
    assert len(frames) > 10
    (line,) = [line for line in lines(caplog) if "frames could be read" in line]
    assert line.startswith(f"WARNING {host.input / 'b.mp4'} is damaged: {len(frames)} of ")
    assert "ffmpeg says: " in line


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "mkv"])
def test_damaged_videos_are_read_or_refused_in_a_sentence(host, kind):
    codec = {"webm": "-c:v libvpx -an", "gif": "-an", "mkv": "-c:v ffv1 -c:a flac"}.get(kind, f"{H264} -c:a aac")
    make(
        host.input / "good",
        "-f lavfi -i testsrc2=s=32x24:r=10:d=0.5",
        TONE,
        codec,
        f"-f {kind}".replace("mkv", "matroska"),
    )
    data = (host.input / "good").read_bytes()
    for seed in range(8):
        (host.input / f"a.{kind}").write_bytes(damaged(data, seed))
        try:
            frames, _, fps = read(host.input / f"a.{kind}")
        except PiyingError as error:
            assert f"a.{kind}" in str(error)
        else:
            assert frames.ndim == 4 and len(frames) and fps > 0


FRAME = b"\x21\xf9\x04\0\1\0\0\0\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"


def gif(path: Path, side: int, count: int) -> None:
    path.write_bytes(b"GIF89a" + side.to_bytes(2, "little") * 2 + b"\x80\0\0\0\0\0\xff\xff\xff" + FRAME * count + b";")


@pytest.mark.parametrize(("side", "count"), [(1, 100_000), (9000, 200)])
def test_gifs_are_bounded_by_frames_and_pixels(host, side, count):
    gif(host.input / "a.gif", side, count)
    with pytest.raises(PiyingError, match=f"a.gif has {count} frames, which are too many: allowed are"):
        run("LoadImage", image="a.gif")


def test_animations_are_bounded_before_they_are_saved(host):
    gif(host.input / "a.gif", 9000, 200)
    with pytest.raises(PiyingError, match=r"a\.gif has 200 frames of 9000×9000: allowed are 4096 million pixels"):
        saved(host, host.input / "a.gif")
    blank = Image.new("RGB", (12000, 12000))
    blank.save(host.input / "one.webp", lossless=True, method=0)
    picture = (host.input / "one.webp").read_bytes()[12:]
    header = b"VP8X" + (10).to_bytes(4, "little") + b"\x02\0\0\0" + (11999).to_bytes(3, "little") * 2
    loop = b"ANIM" + (6).to_bytes(4, "little") + bytes(6)
    place = bytes(6) + (11999).to_bytes(3, "little") * 2 + (40).to_bytes(3, "little") + b"\0"
    frame = b"ANMF" + (len(place) + len(picture)).to_bytes(4, "little") + place + picture
    body = b"WEBP" + header + loop + frame * 40
    (host.input / "a.webp").write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)
    with pytest.raises(PiyingError, match=r"a\.webp has 40 frames of 12000×12000: allowed are 4096 million pixels"):
        saved(host, host.input / "a.webp")
    with pytest.raises(PiyingError, match=r"a\.webp has 40 frames, which are too many"):
        run("LoadImage", image="a.webp")


def test_the_command_says_it(host, tmp_path):
    hdr(host.input / "a.mkv", perceptual_quantizer(203), size="32x24")
    nodes = (
        '{"1": {"class_type": "LoadVideo", "inputs": {"file": "a.mkv"}}, '
        '"2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}, '
        '"3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}}'
    )
    (tmp_path / "w.json").write_text(nodes)
    folders = ["--input", str(host.input), "--output", str(host.output)]
    command = [sys.executable, "-m", "runner", str(tmp_path / "w.json"), *folders]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert "a.mkv: its PQ HDR is tone-mapped to SDR" in done.stdout + done.stderr
    pixels = torch.from_numpy(np.array(Image.open(host.output / "x_00001_.png")))
    assert float(pixels.float().mean()) == pytest.approx(242, abs=2)
