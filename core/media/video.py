"""Video decoding: size, rate and length of a file, its frames one at a time, and all of them as one tensor.

Everything is read with ffmpeg but animated WebP, which many ffmpegs cannot decode: that is Pillow's.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING

from ..errors import PiyingError, explain_os_errors
from . import ffmpeg
from .images import opened
from .metadata import is_webp

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

# One frame per 1000 seconds, so that no version of ffmpeg duplicates or drops frames. The options for it differ:
# -vsync is deprecated in new versions, and old ones lack -fps_mode.
_ONCE = f"settb=1000,setpts=N,scale={ffmpeg.PRECISE},format=rgb24"
_EVERY_FRAME = split(f"-map 0:v:0 -vf {_ONCE} -r 1/1000 -c:v ppm -f image2pipe pipe:1")
_PACKETS = split("-map 0:v:0 -map 0:a? -c copy -f framecrc pipe:1")
_FIRST_FRAME = split("-map 0:v:0 -frames:v 1 -pix_fmt yuv420p -f yuv4mpegpipe pipe:1")
_NO_TIME = -(1 << 63)  # What ffmpeg prints for a packet without a time, in AVI for one.


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: frames as `read_frames` yields them, seconds, frames per second."""

    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    has_audio: bool


def probe(path: Path) -> VideoInfo:
    """Return size, rate and length of the first video stream, without decoding more than one frame.

    Raises PiyingError when the file is missing, damaged or no video.
    """
    if _is_webp(path):
        return _probe_webp(path)
    doing = f"Cannot read {path}"
    packets = ffmpeg.output([*ffmpeg.source(path), *_PACKETS], doing).decode("ascii", "replace")
    # From a decoded frame: the size in the container is the one before the camera's rotation.
    header = ffmpeg.output([*ffmpeg.source(path), *_FIRST_FRAME], doing)[:100].decode("ascii", "replace")
    size = re.search(r" W(\d+) H(\d+) F(\d+):(\d+)", header)
    lines = re.findall(r"^0,[^,]*,\s*(-?\d+),\s*(\d+),", packets, re.MULTILINE)
    times = [(int(start), int(span)) for start, span in lines]
    if size is None or not times:
        raise PiyingError(f"{doing}: it holds no picture. Give a video.")
    count, length = len(times), Fraction(0)
    base = re.search(r"^#tb 0: (\d+/\d+)", packets, re.MULTILINE)
    if base is not None and min(times)[0] != _NO_TIME:
        length = (max(map(sum, times)) - min(times)[0]) * Fraction(base[1])
    fps = declared = Fraction(int(size[3]), int(size[4]))
    # Timestamps in milliseconds make the mean rate inexact: the declared rate is taken where the two agree.
    if length and abs(count / length / declared - 1) >= Fraction(1, 50):
        fps = (count / length).limit_denominator(1001)
    return VideoInfo(
        width=int(size[1]),
        height=int(size[2]),
        fps=fps,
        frames=count,
        duration=float(length or count / fps),
        has_audio="#media_type 1: audio" in packets,
    )


def read_frames(path: Path) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield every frame once, as a uint8 array [H,W,3], turned the way its camera noted.

    One frame at a time is in memory. Closing the generator early ends the ffmpeg that reads. Raises PiyingError when
    the file is missing, damaged or no video.
    """
    import numpy as np

    if _is_webp(path):
        from PIL import ImageSequence

        with opened(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield np.array(frame.convert("RGB"))
        return
    with ffmpeg.running([*ffmpeg.source(path), *_EVERY_FRAME], f"Cannot read {path}") as process:
        stream = process.stdout
        assert stream is not None
        # PPM, frame by frame: "P6", width and height, the highest value, each on a line, then the pixels.
        while stream.readline():
            width, height = map(int, stream.readline().split())
            stream.readline()
            size = width * height * 3
            data = stream.read(size)
            if len(data) == size:
                # A writable copy, which torch.from_numpy requires.
                yield np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3)


def load_frames(path: Path, info: VideoInfo) -> torch.Tensor:
    """Return all frames as IMAGE, float32 [N,H,W,3].

    Raises PiyingError when the file is damaged, or holds more than the free memory.
    """
    import psutil
    import torch

    # Both at once: uint8 while decoding, since the frame count in a header may be wrong, then float32.
    needed = info.frames * info.width * info.height * 3 * (1 + 4)
    free = psutil.virtual_memory().available
    if needed > free:
        raise PiyingError(
            f"{path} has {info.frames} frames of {info.width}×{info.height}: they need {needed / 2**30:.1f} GiB of "
            f"memory, and {free / 2**30:.1f} are free. Cut it, or scale it down first."
        )
    frames = [torch.from_numpy(frame) for frame in read_frames(path)]
    if not frames:
        raise PiyingError(f"Cannot read {path}: it holds no picture. Give a video.")
    images = torch.empty(len(frames), *frames[0].shape, dtype=torch.float32)
    for image, frame in zip(images, frames, strict=True):
        torch.div(frame, 255.0, out=image)
    return images


def _is_webp(path: Path) -> bool:
    with explain_os_errors(f"Cannot read {path}"), path.open("rb") as file:
        return is_webp(file.read(12))


def _probe_webp(path: Path) -> VideoInfo:
    milliseconds = 0
    with opened(path) as image:
        width, height = image.size
        count: int = getattr(image, "n_frames", 1)
        for index in range(count):
            image.seek(index)
            # Pillow sets the duration of a WebP frame only when it decodes it.
            image.load()
            milliseconds += int(image.info.get("duration", 0))
    duration = Fraction(milliseconds, 1000)
    fps = (count / duration).limit_denominator(1001) if duration else Fraction(1)
    return VideoInfo(width, height, fps, count, float(duration or count), has_audio=False)
