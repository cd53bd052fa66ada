"""WebM files: VP9, or AV1 in 10 bits, as ComfyUI's SaveWEBM writes them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING

from ..errors import PiyingError
from . import ffmpeg
from .colour import bt709
from .encoding import RESULT, encode, scratch_folder, texts_input
from .frame_rate import exact_rate

if TYPE_CHECKING:
    from .encoding import Frames

CODECS = ("vp9", "av1")

# In order of preference: SVT-AV1 is faster than libaom, but not every ffmpeg includes it.
_ENCODERS = {"vp9": ("libvpx-vp9",), "av1": ("libsvtav1", "libaom-av1")}
_PIXELS = {"vp9": "yuv420p", "av1": "yuv420p10le"}
_OPTIONS = {
    "libvpx-vp9": split("-row-mt 1"),
    "libsvtav1": split("-preset 6"),
    "libaom-av1": split("-cpu-used 6 -row-mt 1"),
}
# libvpx uses CRF for constant quality only with a bit rate of 0.
_WEBM = split("-b:v 0 -flags:v +bitexact -fflags +bitexact -f webm")


def write_webm(
    path: Path,
    frames: Frames,
    fps: Fraction,
    *,
    codec: str = "vp9",
    crf: float = 32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames [H,W,3] to `path`, one at a time, in BT.709. Odd sizes stay as they are.

    An existing file is replaced; after a failure it is as it was.

    Args:
        frames: as `write_mp4` takes them.
        fps: above 0, up to 1000.
        codec: one of CODECS.
        crf: 0 (best) to 63.
        metadata: JSON texts by key (`prompt`, `workflow`), stored where ComfyUI stores them.

    Raises:
        PiyingError: no frames, frames of unequal size, a bad rate, a codec that this ffmpeg lacks, or the disk or
            ffmpeg fails.
    """
    doing = f"Cannot save the video in {path.parent}"
    rate = exact_rate("fps", fps)
    # The choice of the encoder depends on the frame size.
    remaining = iter(frames)
    first = list(islice(remaining, 1))
    encoder = _encoder(codec, (first[0].shape[0], first[0].shape[1]) if first else (64, 64))
    video = [*bt709(_PIXELS[codec]), "-c:v", encoder, "-crf", f"{crf:g}", *_OPTIONS[encoder], *_WEBM]
    with scratch_folder(path, doing) as scratch:
        texts = texts_input(scratch, metadata or {}, doing)
        every = chain(first, remaining)
        encode(scratch / RESULT, every, rate, texts=texts, arguments=video, doing=doing, even=False)


def _encoder(codec: str, size: tuple[int, int]) -> str:
    if codec not in CODECS:
        raise PiyingError(f"codec is {codec!r}. Choose one of: {', '.join(CODECS)}.")
    known = ffmpeg.names("encoders")
    found = next((name for name in _ENCODERS[codec] if name in known and _takes(name, size)), None)
    if found is None:
        raise PiyingError(
            f"This ffmpeg ({ffmpeg.ffmpeg_exe()}) cannot write {codec} of {size[1]}×{size[0]} with "
            f"{' or '.join(_ENCODERS[codec])}. Choose the other codec, another size, or set IMAGEIO_FFMPEG_EXE to an "
            "ffmpeg that can."
        )
    return found


def _takes(encoder: str, size: tuple[int, int]) -> bool:
    # Older versions of SVT-AV1 reject odd sizes, and those below 64: encoding one blank frame tells.
    if encoder != "libsvtav1" or (min(size) >= 64 and not any(side % 2 for side in size)):
        return True
    blank = f"-f lavfi -i color=size={size[1]}x{size[0]} -vf scale=w={size[1]}:h={size[0]},format=yuv420p10le"
    try:
        ffmpeg.output(split(f"{blank} -frames:v 1 -c:v {encoder} -f null -"), "Cannot try the encoder")
    except PiyingError:
        return False
    return True
