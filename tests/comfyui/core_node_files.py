"""Pictures and videos of every kind that loaders meet, and the calls that load and save them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shlex import split
from typing import Any

import numpy as np
from PIL import Image
from piying.core.media.ffmpeg import ffmpeg_exe

Call = dict[str, Any]

EXIF_ORIENTATION = 0x0112
HIDDEN = {"prompt": {"1": {"class_type": "Größe"}}, "extra_pnginfo": {"workflow": {"nodes": ["皮影"]}, "more": 1}}
VIDEOS = {
    "h264.mp4": "-c:v libx264 -pix_fmt yuv420p -c:a aac",
    "444.mp4": "-c:v libx264 -pix_fmt yuv444p -c:a aac -ac 2",
    "lossless.mkv": "-c:v ffv1 -pix_fmt bgr0 -c:a flac -sample_fmt s16",
    "vp9.webm": "-c:v libvpx-vp9 -pix_fmt yuv420p -c:a libopus",
    "prores.mov": "-c:v prores_ks -pix_fmt yuv422p10le -c:a pcm_f32le",
    "ten_bits.mp4": "-c:v libx265 -pix_fmt yuv420p10le -x265-params log-level=none -an",
    "silent.mp4": "-c:v libx264 -pix_fmt yuv420p -an",
    "still.gif": "-an -f gif",
    "uneven.mkv": "-vf \"select='not(mod(n,3))+lt(n,3)'\" -fps_mode vfr -c:v ffv1 -pix_fmt bgr0 -c:a pcm_f32le",
}


def make_pictures(folder: Path) -> list[str]:
    """Write pictures of many modes, and return their names."""
    random = np.random.default_rng(5)
    noise = random.integers(0, 256, (19, 27, 4), np.uint8)
    rgba = Image.fromarray(noise)
    rgb = rgba.convert("RGB")
    palette = rgb.quantize(7)
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    grey = Image.fromarray(random.integers(0, 65536, (19, 27), np.uint16))
    frames = [Image.fromarray(random.integers(0, 256, (19, 27, 3), np.uint8)) for _ in range(3)]
    many = {"save_all": True, "append_images": frames[1:], "duration": 100}
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgba, {}),
        "grey.png": (rgb.convert("L"), {}),
        "grey_alpha.png": (rgba.convert("LA"), {}),
        "one_bit.png": (rgb.convert("1"), {}),
        "palette.png": (palette, {}),
        "palette_hole.png": (palette, {"transparency": 3}),
        "colour_hole.png": (rgb, {"transparency": tuple(int(v) for v in noise[2, 3, :3])}),
        "photo.jpg": (rgb, {"quality": 90}),
        "turned.jpg": (rgb, {"quality": 90, "exif": turned}),
        "ink.jpg": (rgb.convert("CMYK"), {"quality": 90}),
        "deep.png": (grey, {}),
        "picture.webp": (rgba, {"lossless": True}),
        "frames.gif": (frames[0], many),
        "frames.webp": (frames[0], {**many, "lossless": True}),
        "frames.png": (frames[0], many),
        "picture.bmp": (rgb, {}),
        "pages.tiff": (frames[0], {"save_all": True, "append_images": frames[1:]}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(folder / name, **options)
    (folder / "sub").mkdir(exist_ok=True)
    rgb.save(folder / "sub" / "rgb.png")
    return [*pictures, "sub/rgb.png"]


def make_videos(folder: Path) -> list[str]:
    """Write videos of many kinds, and return their names."""
    raw = folder.parent / "raw"
    raw.write_bytes(source_frames().tobytes())
    smooth = f"-f rawvideo -pix_fmt rgb24 -s 66x50 -framerate 8 -i {raw.as_posix()}"
    for name, options in VIDEOS.items():
        picture = "-f lavfi -i testsrc=s=65x49:d=2:r=10" if name == "uneven.mkv" else smooth
        tone = "-f lavfi -i sine=440:d=1:r=44100"
        run_ffmpeg(*split(picture), *split(tone), *split(options), str(folder / name))
    run_ffmpeg("-display_rotation", "90", "-i", str(folder / "444.mp4"), "-c", "copy", str(folder / "turned.mp4"))
    return [*VIDEOS, "turned.mp4"]


def run_ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def picture_calls(names: list[str]) -> list[Call]:
    loads = [{"node": "LoadImage", "inputs": {"image": name}} for name in (*names, "rgb.png [input]")]
    channels = ("alpha", "red", "green", "blue")
    masks = [
        {"node": "LoadImageMask", "inputs": {"image": name, "channel": channel}}
        for name in names
        for channel in channels
    ]
    return [*loads, *masks]


def video_calls(names: list[str], start: int) -> list[Call]:
    """Return a load and a taking apart per name; `start` is the number of the first call."""
    calls: list[Call] = []
    for name in names:
        calls.append({"node": "LoadVideo", "inputs": {"file": name}})
        video = {"$of": start + len(calls) - 1, "slot": 0}
        calls.append({"node": "GetVideoComponents", "inputs": {"video": video}})
    return calls


def saver_calls(start: int) -> list[Call]:
    images = {"images": {"$array": "beyond"}}
    calls: list[Call] = [
        {"node": "SaveImage", "inputs": {**images, "filename_prefix": "still/%width%x%height%"}},
        {"node": "PreviewImage", "inputs": images},
    ]
    for method in ("default", "fastest", "slowest"):
        for lossless, quality in ((True, 80), (False, 80), (False, 5)):
            settings = {"fps": 7.5, "lossless": lossless, "quality": quality, "method": method}
            calls.append(
                {
                    "node": "SaveAnimatedWEBP",
                    "inputs": {"images": {"$array": "clip"}, "filename_prefix": "a", **settings},
                }
            )
    for codec in ("vp9", "av1"):
        given = {"images": {"$array": "clip"}, "filename_prefix": "w", "codec": codec, "fps": 12.5, "crf": 20.0}
        calls.append({"node": "SaveWEBM", "inputs": given})
    sound = {"$audio": "sound", "rate": 44100}
    calls.append({"node": "CreateVideo", "inputs": {"images": {"$array": "clip"}, "fps": 12.5, "audio": sound}})
    made = {"$of": start + len(calls) - 1, "slot": 0}
    calls.append({"node": "GetVideoComponents", "inputs": {"video": made}})
    for format, codec in (("auto", "auto"), ("mp4", "h264")):
        given = {"video": made, "filename_prefix": "video/made", "format": format, "codec": codec}
        calls.append({"node": "SaveVideo", "inputs": given})
    for name in ("h264.mp4", "vp9.webm", "lossless.mkv"):
        calls.append({"node": "LoadVideo", "inputs": {"file": name}})
        loaded = {"$of": start + len(calls) - 1, "slot": 0}
        format = "auto" if name == "h264.mp4" else "mp4"
        given = {"video": loaded, "filename_prefix": "video/loaded", "format": format, "codec": "auto"}
        calls.append({"node": "SaveVideo", "inputs": given})
    return [{**call, "hidden": HIDDEN} for call in calls]


def source_frames() -> Any:
    """What all smooth videos are made of, uint8."""
    return (np.pad(clip(), [(0, 0), (1, 1), (1, 1), (0, 0)], "edge") * 255).astype(np.uint8)


def clip() -> Any:
    """Eight smooth frames of an even size."""
    height, width = 48, 64
    y, x = np.mgrid[:height, :width].astype(np.float32)
    shades = [np.stack([(x + 3 * n) / 90, (y + 2 * n) / 70, 0.5 + 0 * x], -1) for n in range(8)]
    return np.stack(shades).clip(0, 1).astype(np.float32)


def sound() -> Any:
    """Two channels for the time of `clip`."""
    time = np.arange(int(44100 * 8 / 12.5)) / 44100
    return np.stack([np.sin(time * 2 * np.pi * 440), np.sin(time * 2 * np.pi * 660)])[None].astype(np.float32) / 2
