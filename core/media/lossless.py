"""Frames on disk without loss, to be read back by `video.read_frames`."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING

from .encoding import encode, scratch_folder, texts_input

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# FFV1 in RGB: exact, half the size of the pixels, and fast. Each frame stands alone.
_FFV1 = split("-c:v ffv1 -level 3 -g 1 -pix_fmt bgr0 -fflags +bitexact -flags:v +bitexact -f matroska")
RATE = Fraction(16)


def write_lossless(path: Path, frames: Iterable[npt.NDArray[np.uint8]], doing: str) -> int:
    """Write uint8 frames [H,W,3] to `path`, and return how many there were.

    Raises PiyingError, beginning with `doing`, for no frames, frames of unequal size, and when the disk or
    ffmpeg fails.
    """
    with scratch_folder(path.parent, doing) as scratch:
        return encode(path, frames, RATE, texts_input(scratch, {}, doing), _FFV1, doing, even=False)
