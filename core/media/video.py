"""Video decoding: size, rate and length of a file, its frames one at a time, and all of them as one tensor.

Frames are as players show them: upright, with square pixels, deinterlaced, in BT.709 colours, over black where
transparent. Everything is read with ffmpeg but animated WebP, which many ffmpegs cannot decode: that is Pillow's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING, NamedTuple

from ..errors import PiyingError, explain_os_errors
from ..files.file_state import cached_by_state
from ..main_memory import available_bytes
from . import ffmpeg
from .colour import PRECISE, UNKNOWN, Colour, to_rgb
from .metadata import is_webp
from .webp import webp_frames, webp_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

log = logging.getLogger("piying")

_PACKETS = split(f"-map {ffmpeg.PICTURE} {ffmpeg.SOUNDS_AND_TEXTS} -c copy -f framecrc pipe:1")
# At the level at which `showinfo` and the summary of the file speak.
_FIRST_FRAME = split(f"-map {ffmpeg.PICTURE} -vf showinfo -frames:v 1 -f null -v level+info pipe:1")
_NO_TIME = -(1 << 63)  # What ffmpeg prints for a packet without a time, in AVI for one.
_DISCARD = 4  # the flag of packets that an edit list leaves out
# Decoders that read transparency; ffmpeg's own of the same formats leave it out.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
ANIMATED_AVIF = b"ftypavis"  # behind the length of the first box
MOST_ANIMATED = 4 << 30  # pixels in all frames of a GIF or WebP: 2000 frames of 1920×1080
MOST_ASPECT = 4  # of a pixel: anamorphic lenses squeeze by 2, and anything beyond this is a damaged header


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, as `read_frames` yields it.

    Attributes:
        width, height: of a frame as players show it.
        fps: frames per second: the declared rate, or the mean where times say otherwise.
        frames: how many there are.
        duration: seconds from the beginning of the first frame to the end of the last.
        has_audio: whether there is sound.
        start: when the first frame is shown, in seconds from the file's beginning; sound may begin before it.
        decoder: ffmpeg's arguments before the input.
        filters: ffmpeg's filters that make frames of what is stored; empty for animated WebP.
        has_alpha: whether a frame may be transparent.
        has_subtitles: whether there are some.
        is_timed: whether each frame has its time in the file, without which its stream cannot be copied.
        tracks: how many videos there are; the first is taken.
        notes: what the frames and the sound do not keep of the file, or have converted: words for "clip.mp4: …".
    """

    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    has_audio: bool
    start: float = 0.0
    # How it is read does not tell two files apart.
    decoder: tuple[str, ...] = field(default=(), compare=False)
    filters: tuple[str, ...] = field(default=(), compare=False)
    has_alpha: bool = False
    has_subtitles: bool = False
    is_timed: bool = field(default=False, compare=False)
    tracks: int = field(default=1, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


def probe(path: Path) -> VideoInfo:
    """Return size, rate and length of the first video stream, without decoding more than one frame.

    Raises PiyingError when the file is missing, damaged or no video.
    """
    with explain_os_errors(f"Cannot read {path}"):
        return _probe_once(path)


@cached_by_state
def _probe_once(path: Path) -> VideoInfo:
    with path.open("rb") as file:
        head = file.read(12)
    if is_webp(head):
        return _probe_webp(path)
    if head[4:] == ANIMATED_AVIF:
        raise PiyingError(
            f"{path} is an animated AVIF, of which ffmpeg reads the first picture alone. Load Image reads all. "
            "Or save it as MP4."
        )
    doing = f"Cannot read {path}"
    heard: list[str] = []
    packets = ffmpeg.output([*ffmpeg.source(path), *_PACKETS], doing, heard=heard).decode("ascii", "replace")
    first, decoder = _first_frame(path, doing)
    lines = re.findall(r"^0,[^,]*,\s*(-?\d+),\s*(\d+),[^,]*,[^,\n]*(?:, F=0x(\w+))?", packets, re.MULTILINE)
    times = sorted((int(start), int(span)) for start, span, flags in lines if not int(flags or "0", 16) & _DISCARD)
    if first is None or not times:
        raise PiyingError(f"{doing}: it holds no picture. Give a video.")
    count, start, length = len(times), Fraction(0), Fraction(0)
    base = re.search(r"^#tb 0: (\d+/\d+)", packets, re.MULTILINE)
    if base is not None and times[0][0] != _NO_TIME:
        start = times[0][0] * Fraction(base[1])
        length = max(map(sum, times)) * Fraction(base[1]) - start
        # Less is the delay of a sound encoder, by which some versions shift the picture.
        start = start if start >= Fraction(1, 50) else Fraction(0)
    fps = first.rate or (count / length if length else Fraction(1))
    # Timestamps in milliseconds make the mean rate inexact: the declared rate is taken where the two agree, and where
    # frames are missing that damage took.
    is_whole = first.rate == 0 or ffmpeg.complaint(heard) is None
    if length and is_whole and abs(count / length / fps - 1) >= Fraction(1, 50):
        fps = (count / length).limit_denominator(1001) or count / length
    width, height = first.shown_size()
    if head.startswith(b"GIF8"):
        _check_animation(path, count, width, height)
    kinds = re.findall(r"^#media_type \d+: (\w+)", packets, re.MULTILINE)
    sounds = kinds.count("audio")
    filters, notes = _filters(first, width, height)
    if base is not None and length:
        tick = float(Fraction(base[1]))
        notes += _uneven([(begin - times[0][0]) * tick for begin, _ in times], fps)
    if sounds and start >= Fraction(1, 20):
        notes.append(f"its picture begins at {float(start):.2f} s: sound before that is left out")
    if sounds > 1:
        notes.append(f"the first of its {sounds} sound tracks is taken")
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        frames=count,
        duration=float(length or count / fps),
        has_audio=sounds > 0,
        start=float(start),
        decoder=decoder,
        filters=tuple(filters),
        has_alpha=first.colour.has_alpha,
        has_subtitles="subtitle" in kinds,
        tracks=first.tracks,
        is_timed=all(begin != _NO_TIME for begin, _ in times),
        notes=tuple(notes),
    )


def read_frames(path: Path, info: VideoInfo | None = None) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield every frame once, as a uint8 array [H,W,3], as players show it.

    One frame at a time is in memory. Closing the generator early ends the ffmpeg that reads. What a damaged file makes
    ffmpeg complain of is logged, and so is transparency, which a frame does not have.

    Args:
        info: from `probe`, where it is known.

    Raises:
        PiyingError: the file is missing, damaged beyond reading, or no video.
    """
    import numpy as np

    info = info or probe(path)
    transparent = False
    # Closed at once, and with it the ffmpeg that reads.
    with closing(webp_frames(path) if not info.filters else _stored_frames(path, info)) as frames:
        for frame in frames:
            if frame.shape[2] == 4:
                opacity = frame[..., 3:]
                if opacity.min() < 255:
                    transparent = True
                    # Rounded, in 16 bits: 255 · 255 is the largest product.
                    frame = ((frame[..., :3].astype(np.uint16) * opacity + 127) // 255).astype(np.uint8)
                frame = np.ascontiguousarray(frame[..., :3])
            yield frame
    if transparent:
        log.warning("%s: its transparency is left out: frames are over black.", path.name)


def load_frames(path: Path, info: VideoInfo) -> torch.Tensor:
    """Return all frames as IMAGE, float32 [N,H,W,3].

    Raises PiyingError when the file is damaged, or holds more than the free memory.
    """
    import torch

    # Both at once: uint8 while decoding, since the frame count in a header may be wrong, then float32.
    each = info.width * info.height * 3 * (1 + 4)
    free = available_bytes()

    def check(count: int) -> None:
        if count * each > free:
            raise PiyingError(
                f"{path} has {count} frames of {info.width}×{info.height}: they need {count * each / 2**30:.1f} GiB "
                f"of memory, and {free / 2**30:.1f} are free. Cut it, or scale it down first."
            )

    check(info.frames)
    frames: list[torch.Tensor] = []
    for frame in read_frames(path, info):
        frames.append(torch.from_numpy(frame))
        check(len(frames))
    if not frames:
        raise PiyingError(f"Cannot read {path}: it holds no picture. Give a video.")
    images = torch.empty(len(frames), *frames[0].shape, dtype=torch.float32)
    for image, pixels in zip(images, frames, strict=True):
        torch.div(pixels, 255.0, out=image)
    return images


class _FirstFrame(NamedTuple):
    """What ffmpeg's filter `showinfo` says of a decoded frame: rotated by then, not scaled."""

    width: int
    height: int
    aspect: Fraction  # width of a pixel over its height
    is_interlaced: bool
    colour: Colour
    rate: Fraction
    tracks: int  # of video in the file

    @property
    def has_known_aspect(self) -> bool:
        """Whether some lens or format has pixels of that aspect."""
        return Fraction(1, MOST_ASPECT) <= self.aspect <= MOST_ASPECT

    def shown_size(self) -> tuple[int, int]:
        """Return width and height in square pixels: one of them grows, so that nothing is lost."""
        aspect = self.aspect if self.has_known_aspect else Fraction(1)
        return round(self.width * max(aspect, Fraction(1))), round(self.height / min(aspect, Fraction(1)))


def _first_frame(path: Path, doing: str) -> tuple[_FirstFrame | None, tuple[str, ...]]:
    """Return the first frame, or None where there is none, and the arguments for a decoder that reads it whole."""

    def shown(decoder: tuple[str, ...]) -> str:
        heard: list[str] = []
        ffmpeg.output([*decoder, *ffmpeg.source(path), *_FIRST_FRAME], doing, heard=heard)
        return "\n".join(heard)

    decoder: tuple[str, ...] = ()
    text = shown(decoder)
    codec = re.search(r"Stream #0:\d+\S*: Video: (vp[89])\b(?:(?!Stream #).)*alpha_mode +: 1", text, re.DOTALL)
    if codec is not None and _ALPHA_DECODERS[codec[1]] in ffmpeg.names("decoders"):
        decoder = ("-c:v", _ALPHA_DECODERS[codec[1]])
        text = shown(decoder)
    # From the beginning of a line: the summary quotes titles and comments, which can hold anything.
    said = r"^\[Parsed_showinfo_0 @ \w+\] \[info\] "
    sizes = r"fmt:(\w+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+) i:(\w)"
    frame = re.search(rf"{said}n: *0 .*?{sizes}", text, re.MULTILINE)
    if frame is None:
        return None, decoder
    across, down, width, height = map(int, frame.groups()[1:5])
    properties = [rf"color_{name}:([\w-]+)" for name in ("range", "space", "primaries", "trc")]
    tags = re.search(said + " ".join(properties), text, re.MULTILINE)
    known = {"unspecified": UNKNOWN, "reserved": UNKNOWN}
    colour = Colour(frame[1], *(known.get(tag, tag) for tag in (tags.groups() if tags else ())))
    tracks = re.findall(
        r"^\[info\]   Stream #0:\d+\S*: Video: (?!.*\(attached pic\))",
        text.partition("Stream mapping:")[0],
        re.MULTILINE,
    )
    rate = re.search(rf"{said}config in time_base: \S+ frame_rate: (\d+)/([1-9]\d*)", text, re.MULTILINE)
    return (
        _FirstFrame(
            width=width,
            height=height,
            aspect=Fraction(across, down) if across and down else Fraction(1),
            is_interlaced=frame[6] in "TB",
            colour=colour,
            rate=Fraction(int(rate[1]), int(rate[2])) if rate else Fraction(0),
            tracks=len(tracks),
        ),
        decoder,
    )


def _filters(first: _FirstFrame, width: int, height: int) -> tuple[list[str], list[str]]:
    """Return ffmpeg's filters for frames of that size, and what to say about them."""
    filters, notes = list[str](), list[str]()
    # bwdif takes no less.
    if first.is_interlaced and first.width >= 3 and first.height >= 4:
        filters.append("bwdif=mode=send_frame:deint=interlaced")
        notes.append("it is interlaced: its frames are deinterlaced")
    convert, said = to_rgb(first.colour, first.width, first.height)
    filters += convert
    notes += said
    ratio = f"{first.aspect.numerator}:{first.aspect.denominator}"
    if not first.has_known_aspect:
        notes.append(f"it says that its pixels are {ratio}, which is ignored: up to {MOST_ASPECT}:1 is known")
    elif (width, height) != (first.width, first.height):
        notes.append(
            f"its pixels are not square ({ratio}): its frames are scaled from "
            f"{first.width}×{first.height} to {width}×{height}, as players show them"
        )
    if first.tracks > 1:
        notes.append(f"the first of its {first.tracks} video tracks is taken")
    pixels = "rgba" if first.colour.has_alpha else "rgb24"
    # The size is named because a stream may change its own on the way.
    return [*filters, f"scale={width}:{height}:{PRECISE}", f"format={pixels}"], notes


def _stored_frames(path: Path, info: VideoInfo) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield the frames that ffmpeg reads, [H,W,3] or [H,W,4] with alpha; log what it complained of."""
    import numpy as np

    channels, heard, count = 4 if info.has_alpha else 3, list[str](), 0
    size = info.width * info.height * channels
    every = ["-vf", ",".join(info.filters), *ffmpeg.passthrough(), *split("-f rawvideo pipe:1")]
    arguments = [*info.decoder, *ffmpeg.source(path), "-map", ffmpeg.PICTURE, *every]
    with ffmpeg.running(arguments, f"Cannot read {path}", heard) as process:
        assert process.stdout is not None
        while len(data := process.stdout.read(size)) == size:
            count += 1
            # A writable copy, which torch.from_numpy requires.
            yield np.frombuffer(bytearray(data), np.uint8).reshape(info.height, info.width, channels)
    if (said := ffmpeg.complaint(heard)) is not None:
        # Where its sound is what is cut, more may be read than the count, for which both are read.
        most = max(count, info.frames)
        log.warning("%s is damaged: %d of %d frames could be read. %s.", path, count, most, said)


def _probe_webp(path: Path) -> VideoInfo:
    width, height, spans = webp_size(path)
    count, seconds = len(spans), Fraction(sum(spans), 1000)
    _check_animation(path, count, width, height)
    fps = (count / seconds).limit_denominator(1001) if seconds else Fraction(1)
    notes = _uneven([begin / 1000 for begin in accumulate(spans[:-1], initial=0)], fps) if seconds else []
    return VideoInfo(width, height, fps, count, float(seconds or count), has_audio=False, notes=tuple(notes))


def _uneven(times: list[float], fps: Fraction) -> list[str]:
    """Return a note on frames that a constant rate shows at other times than the file, which are in seconds."""
    frame = float(1 / fps)
    drift = max(abs(time - index * frame) for index, time in enumerate(times))
    if drift < 1.5 * frame:
        return []
    return [
        f"its frames have uneven durations: each is one frame at the mean rate of {float(fps):.5g} per second, up to "
        f"{drift:.2f} s from its time"
    ]


def _check_animation(path: Path, count: int, width: int, height: int) -> None:
    """Refuse a picture file, where a few bytes make a frame of any size, that would take hours."""
    if count * width * height > MOST_ANIMATED:
        raise PiyingError(
            f"{path} has {count} frames of {width}×{height}: allowed are {MOST_ANIMATED >> 20} million pixels in all "
            "frames together. Scale it down, or cut it."
        )
