"""Frames into ffmpeg: one at a time, checked, with a rate, colours and embedded texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING

from ..errors import PiyingError
from . import disk, ffmpeg
from .images import to_uint8
from .metadata import to_ffmetadata

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

PRECISE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def frame_rate(fps: Fraction) -> Fraction:
    """Return `fps` as video files hold it. Raises PiyingError outside 0..1000."""
    rate = Fraction(fps).limit_denominator(1001)
    if not 0 < rate <= 1000:
        raise PiyingError(f"fps is {float(fps):g}. Allowed: above 0, up to 1000. Most videos have 16 to 30.")
    return rate


def bt709(pixels: str) -> list[str]:
    """Return the arguments that bring frames to `pixels` (such as yuv420p) in BT.709, and say so in the file."""
    # Newer ffmpegs take the tags from the frames, which setparams marks, older ones from the options.
    marks = "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    scale = f"scale=out_color_matrix=bt709:out_range=tv:{PRECISE}"
    options = split("-colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv")
    return ["-vf", f"{scale},format={pixels},setparams={marks}", *options]


@contextmanager
def scratch_folder(folder: Path, doing: str) -> Iterator[Path]:
    """Yield a folder for the time of the body, beside the video to be."""
    import tempfile

    # System folders for temporary files are often small, or in memory.
    with disk.explained(doing):
        scratch = tempfile.TemporaryDirectory(prefix=".piying-", dir=folder.absolute(), ignore_cleanup_errors=True)
    with scratch as name:
        yield Path(name)


def texts_input(scratch: Path, metadata: Mapping[str, str], doing: str) -> list[str]:
    """Return the arguments of a further input, a file in `scratch` that holds `metadata`."""
    file = scratch / "metadata"
    with disk.explained(doing):
        file.write_bytes(to_ffmetadata(metadata))
    return ["-f", "ffmetadata", "-i", ffmpeg.url(file)]


def encode(
    path: Path,
    frames: Iterable[npt.NDArray[np.uint8] | torch.Tensor],
    rate: Fraction,
    texts: list[str],
    arguments: list[str],
    doing: str,
    *,
    even: bool,
) -> int:
    """Write frames to `path` without sound, and return how many there were.

    frames: [H,W,3] each, uint8 arrays or float tensors 0..1.
    texts: from `texts_input`.
    arguments: pixel format, codec and container.
    even: let an odd height or width grow by one, by repeating its edge.
    Raises PiyingError for no frames, frames of unequal size, and when the disk or ffmpeg fails.
    """
    pixels = _checked_frames(frames, even)
    first = next(pixels, None)
    if first is None:
        raise PiyingError(f"{doing}: there are no frames. Give at least one image.")
    size = f"{first.shape[1]}x{first.shape[0]}"
    raw = split(f"-y -f rawvideo -pix_fmt rgb24 -s {size} -framerate {rate} -i pipe:0")
    tags = [*texts, "-map", "0:v", "-map_metadata", "1"]
    with ffmpeg.running([*raw, *tags, *arguments, ffmpeg.url(path)], doing) as process:
        return ffmpeg.feed(process, (frame.data for frame in chain([first], pixels)))


def _checked_frames(
    frames: Iterable[npt.NDArray[np.uint8] | torch.Tensor], even: bool
) -> Iterator[npt.NDArray[np.uint8]]:
    import numpy as np

    size = None
    for index, frame in enumerate(frames):
        pixels = frame if isinstance(frame, np.ndarray) else to_uint8(frame)
        size = size or pixels.shape
        _check_frame(index, pixels, size)
        odd = [(0, size[0] % 2), (0, size[1] % 2), (0, 0)]
        grown = np.pad(pixels, odd, mode="edge") if even and any(map(sum, odd)) else pixels
        yield np.ascontiguousarray(grown)


def _check_frame(index: int, pixels: npt.NDArray[np.uint8], size: tuple[int, ...]) -> None:
    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PiyingError(
            f"Frame {index} of the video is {pixels.dtype} {list(pixels.shape)}. Give uint8 arrays [H,W,3] "
            "or float tensors [H,W,3]."
        )
    if pixels.shape != size:
        raise PiyingError(
            f"Frame {index} of the video is {pixels.shape[1]}×{pixels.shape[0]}, the first is "
            f"{size[1]}×{size[0]}. Bring all frames to one size first."
        )
