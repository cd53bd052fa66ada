"""Video files: frames to MP4 with ComfyUI's metadata, and any container back to frames."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from shlex import split
from typing import IO, TYPE_CHECKING, Any

from ..errors import PiyingError
from . import disk, ffmpeg
from .encoding import PRECISE, bt709, encode, frame_rate, scratch_folder, texts_input

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

# Visually lossless for generated footage; x264's own default of 23 shows blocks in flat gradients.
CRF = 17
AUDIO_BIT_RATE = "192k"

_H264 = split(f"-c:v libx264 -preset medium -crf {CRF} -flags:v +bitexact")
_AAC = split(f"-c:a aac -b:a {AUDIO_BIT_RATE} -flags:a +bitexact")
# bitexact leaves version strings out; use_metadata_tags keeps keys that MP4 does not know; faststart moves
# them to the front, where ComfyUI's page looks.
MP4 = split("-fflags +bitexact -movflags +faststart+use_metadata_tags -f mp4")
# One frame per 1000 seconds: with that no ffmpeg repeats or drops a frame. Their own options for it (vsync,
# fps_mode) exist in old and new ones only.
_ONCE = f"settb=1000,setpts=N,scale={PRECISE},format=rgb24"
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


def write_mp4(
    path: Path,
    frames: Iterable[npt.NDArray[np.uint8] | torch.Tensor],
    fps: Fraction,
    *,
    metadata: Mapping[str, str] | None = None,
    audio: Mapping[str, Any] | None = None,
) -> None:
    """Write H.264 (yuv420p, BT.709) and, where there is sound, AAC to `path`, frame by frame.

    frames: [H,W,3] each, uint8 arrays or float tensors 0..1; a tensor [N,H,W,3] is an iterable of those.
        An odd height or width, which 4:2:0 cannot hold, grows by one by repeating its edge.
    fps: exact up to a denominator of 1001; above 0, up to 1000.
    metadata: JSON texts by key (`prompt`, `workflow`), stored where ComfyUI looks for them.
    audio: ComfyUI's AUDIO, {"waveform": float tensor [B,C,T], "sample_rate": int}; the first of the batch is
        taken and cut where the video ends.
    The same input gives the same bytes, but for x264 builds whose macroblock tree is not reproducible with AVX-512.
    An existing file is replaced; after a failure there is none.
    Raises PiyingError for no frames, frames of unequal size, a bad rate, and when the disk or ffmpeg fails.
    """
    doing = f"Cannot save the video in {path.parent}"
    rate, sound = frame_rate(fps), _sound(audio) if audio else None
    with scratch_folder(path.parent, doing) as scratch, disk.removed_on_failure(path):
        silent = scratch / "silent.mp4" if sound else path
        texts = texts_input(scratch, metadata or {}, doing)
        count = encode(silent, frames, rate, texts, [*bt709("yuv420p"), *_H264, *MP4], doing, even=True)
        if sound:
            _add_sound(path, silent, sound.cut(count / rate), doing)


def read_frames(path: Path) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield every frame once, as a uint8 array [H,W,3], turned the way its camera noted.

    One frame at a time is in memory. Closing the generator early ends the ffmpeg that reads. Raises PiyingError when
    the file is missing, damaged or no video.
    """
    import numpy as np

    doing = f"Cannot read {path}"
    _check_is_file(path, doing)
    with ffmpeg.running([*ffmpeg.source(path), *_EVERY_FRAME], doing) as process:
        assert process.stdout is not None
        while (shape := _ppm_shape(process.stdout)) is not None:
            data = process.stdout.read(math.prod(shape))
            if len(data) == math.prod(shape):
                # A copy that may be written to, as torch.from_numpy wants it.
                yield np.frombuffer(bytearray(data), np.uint8).reshape(shape)


def probe(path: Path) -> VideoInfo:
    """Return size, rate and length of the first video stream, without decoding more than one frame.

    Raises PiyingError when the file is missing, damaged or no video.
    """
    doing = f"Cannot read {path}"
    _check_is_file(path, doing)
    packets = ffmpeg.output([*ffmpeg.source(path), *_PACKETS], doing).decode("ascii", "replace")
    header = ffmpeg.output([*ffmpeg.source(path), *_FIRST_FRAME], doing)[:100].decode("ascii", "replace")
    size = re.search(r" W(\d+) H(\d+) F(\d+):(\d+)", header)
    count, length = _timing(packets)
    if size is None or not count:
        raise PiyingError(f"{doing}: it holds no picture. Give a video.")
    fps = _mean_rate(count, length, Fraction(int(size[3]), int(size[4])))
    return VideoInfo(
        width=int(size[1]),
        height=int(size[2]),
        fps=fps,
        frames=count,
        duration=float(length or count / fps),
        has_audio="#media_type 1: audio" in packets,
    )


@dataclass(frozen=True)
class _Sound:
    samples: npt.NDArray[np.float32]  # [T,C], finite, -1..1
    rate: int

    def cut(self, seconds: Fraction) -> _Sound:
        return _Sound(self.samples[: math.ceil(self.rate * seconds)], self.rate)


def _sound(audio: Mapping[str, Any]) -> _Sound | None:
    import torch

    rate, waveform = int(audio["sample_rate"]), audio["waveform"]
    if rate < 1 or waveform.ndim != 3 or not waveform.shape[0] or not 1 <= waveform.shape[1] <= 8:
        raise PiyingError(
            f"The audio is a waveform {list(waveform.shape)} at {rate} Hz. Give [batch, channels, samples] "
            "with 1 to 8 channels, and a rate above 0."
        )
    samples = torch.nan_to_num(waveform[0].detach().to("cpu", torch.float32)).clamp(-1, 1)
    return _Sound(samples.T.contiguous().numpy(), rate) if waveform.shape[2] else None


def _add_sound(path: Path, silent: Path, sound: _Sound, doing: str) -> None:
    file = silent.with_name("sound")
    with disk.explained(doing):
        file.write_bytes(sound.samples.tobytes())
    raw = [*split(f"-f f32le -ar {sound.rate} -ac {sound.samples.shape[1]} -i"), ffmpeg.url(file)]
    copied = split("-map 0:v -map 1:a -map_metadata 0 -c:v copy")
    ffmpeg.output(["-y", "-i", ffmpeg.url(silent), *raw, *copied, *_AAC, *MP4, ffmpeg.url(path)], doing)


def _check_is_file(path: Path, doing: str) -> None:
    with disk.explained(doing), path.open("rb"):
        pass


def _ppm_shape(stream: IO[bytes]) -> tuple[int, int, int] | None:
    if not stream.readline():
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()
    return height, width, 3


def _timing(packets: str) -> tuple[int, Fraction]:
    base = re.search(r"^#tb 0: (\d+/\d+)", packets, re.MULTILINE)
    lines = re.findall(r"^0,[^,]*,\s*(-?\d+),\s*(\d+),", packets, re.MULTILINE)
    times = [(int(start), int(span)) for start, span in lines]
    if base is None or not times or min(times)[0] == _NO_TIME:
        return len(times), Fraction(0)
    return len(times), (max(map(sum, times)) - min(times)[0]) * Fraction(base[1])


def _mean_rate(frames: int, length: Fraction, declared: Fraction) -> Fraction:
    # Containers that count in milliseconds blur the mean: a declared rate that agrees with it is the truth.
    if not length or abs(frames / length / declared - 1) < Fraction(1, 50):
        return declared
    return (frames / length).limit_denominator(1001)
