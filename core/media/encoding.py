"""Encoding with ffmpeg: frames validated and piped one at a time, colour tags, embedded texts; lossless video."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING

from ..errors import PiyingError, explain_os_errors
from . import ffmpeg
from .images import to_uint8
from .metadata import to_ffmetadata

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Frames = Iterable[npt.NDArray[np.uint8] | torch.Tensor]

log = logging.getLogger("piying")

RESULT = "result"

# FFV1 in RGB: lossless, half the size of raw pixels, and fast. Every frame is a key frame: damage costs only one.
_FFV1 = split("-c:v ffv1 -level 3 -g 1 -pix_fmt bgr0 -fflags +bitexact -flags:v +bitexact -f matroska")
# Arbitrary: Matroska requires a rate, and nothing reads it.
_FFV1_RATE = Fraction(16)


@contextmanager
def scratch_folder(path: Path, doing: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; its file `RESULT` replaces `path` when the block ends.

    A video takes more files than itself, so that this is the folder's form of `atomic_write`. Where the block fails,
    `path` is as it was.
    """
    # Beside it: the system's temporary folder is often small, or in memory, and a rename needs the same file system.
    with explain_os_errors(doing):
        folder = tempfile.TemporaryDirectory(prefix=".piying-", dir=path.parent.absolute(), ignore_cleanup_errors=True)
    # Not around the block, whose OSErrors may come from the source of the frames.
    with folder as name:
        yield Path(name)
        with explain_os_errors(doing):
            (Path(name) / RESULT).replace(path)


def texts_input(scratch: Path, metadata: Mapping[str, str], doing: str) -> list[str]:
    """Return the arguments of a further input, a file in `scratch` that holds `metadata`."""
    file = scratch / "metadata"
    with explain_os_errors(doing):
        file.write_bytes(to_ffmetadata(metadata))
    return ["-f", "ffmetadata", "-i", ffmpeg.url(file)]


def encode(
    path: Path, frames: Frames, rate: Fraction, *, texts: list[str], arguments: list[str], doing: str, even: bool
) -> int:
    """Write frames to `path` without sound, and return how many there were.

    Args:
        frames: [H,W,3] each, uint8 arrays or float tensors 0..1.
        texts: from `texts_input`.
        arguments: pixel format, codec and container.
        doing: what an error begins with, such as "Cannot save the video in /out".
        even: let an odd height or width grow by one, by repeating its edge.

    Raises:
        PiyingError: no frames, frames of unequal size, or the disk or ffmpeg fails.
    """
    pixels = _checked_frames(frames, even)
    first = next(pixels, None)
    if first is None:
        raise PiyingError(f"{doing}: there are no frames. Give at least one image.")
    size = f"{first.shape[1]}x{first.shape[0]}"
    raw = split(f"-y -f rawvideo -pix_fmt rgb24 -s {size} -framerate {rate} -i pipe:0")
    # Metadata comes from the second input: the first is raw video, which has none.
    tags = [*texts, "-map", "0:v", "-map_metadata", "1"]
    with ffmpeg.running([*raw, *tags, *arguments, ffmpeg.url(path)], doing) as process:
        return ffmpeg.feed(process, (frame.data for frame in chain([first], pixels)))


def write_lossless(path: Path, frames: Frames, doing: str) -> int:
    """Write frames [H,W,3] to `path` without loss, to be read back by `video.read_frames`; return how many there were.

    An existing file is replaced; after a failure it is as it was.

    Raises:
        PiyingError: beginning with `doing`: no frames, frames of unequal size, or the disk or ffmpeg fails.
    """
    with scratch_folder(path, doing) as scratch:
        texts = texts_input(scratch, {}, doing)
        return encode(scratch / RESULT, frames, _FFV1_RATE, texts=texts, arguments=_FFV1, doing=doing, even=False)


def _checked_frames(frames: Frames, even: bool) -> Iterator[npt.NDArray[np.uint8]]:
    import numpy as np

    size: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        pixels = frame if isinstance(frame, np.ndarray) else to_uint8(frame)
        if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise PiyingError(
                f"Frame {index} of the video is {pixels.dtype} {list(pixels.shape)}. Give uint8 arrays [H,W,3] "
                "or float tensors [H,W,3]."
            )
        size = size or pixels.shape
        if pixels.shape != size:
            raise PiyingError(
                f"Frame {index} of the video is {pixels.shape[1]}×{pixels.shape[0]}, the first is "
                f"{size[1]}×{size[0]}. Bring all frames to one size first."
            )
        odd = [(0, size[0] % 2), (0, size[1] % 2), (0, 0)]
        # Replicated, not black: a border in another colour is visible, and costs bits in every frame.
        grown = np.pad(pixels, odd, mode="edge") if even and any(map(sum, odd)) else pixels
        if not index and grown is not pixels:
            log.info(
                "The frames are %d×%d: they are saved as %d×%d, their edge repeated: the codec needs even sides.",
                *size[1::-1],
                *grown.shape[1::-1],
            )
        yield np.ascontiguousarray(grown)
