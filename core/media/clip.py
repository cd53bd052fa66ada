"""Any video file, animated WebP included: what it holds, its frames, and all of them as one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PiyingError
from .animation import is_webp, probe_webp, read_webp
from .video import VideoInfo, probe, read_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


def probe_clip(path: Path) -> VideoInfo:
    """Return size, rate and length of a video. Raises PiyingError when the file is missing, damaged or no video."""
    return probe_webp(path) if is_webp(path) else probe(path)


def clip_frames(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield every frame as a uint8 array [H,W,3], upright. Raises PiyingError as `probe_clip` does."""
    return read_webp(path) if is_webp(path) else read_frames(path)


def load_clip(path: Path, info: VideoInfo) -> torch.Tensor:
    """Return all frames as IMAGE, float32 [N,H,W,3].

    Raises PiyingError when the file is damaged, or holds more than the free memory.
    """
    import torch

    _check_room(path, info)
    frames = [torch.from_numpy(frame) for frame in clip_frames(path)]
    if not frames:
        raise PiyingError(f"Cannot read {path}: it holds no picture. Give a video.")
    images = torch.empty(len(frames), *frames[0].shape, dtype=torch.float32)
    for image, frame in zip(images, frames, strict=True):
        torch.div(frame, 255.0, out=image)
    return images


def _check_room(path: Path, info: VideoInfo) -> None:
    import psutil

    # Whole numbers while they are read, then float32.
    needed = info.frames * info.width * info.height * 3 * (1 + 4)
    free = psutil.virtual_memory().available
    if needed > free:
        raise PiyingError(
            f"{path} has {info.frames} frames of {info.width}×{info.height}: they need {needed / 2**30:.1f} GiB of "
            f"memory, and {free / 2**30:.1f} are free. Cut it, or scale it down first."
        )
