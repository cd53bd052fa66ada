"""Finished windows on disk, without loss: a long video needs memory for one, and a stopped run goes on behind them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PiyingError
from ...media import disk
from ...media.lossless import write_lossless
from ...media.video import probe, read_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

KEPT_BYTES = 8 * 2**30  # of finished windows beside those of the run; minutes of 720p
SUFFIX, LATENTS = ".mkv", ".safetensors"


@dataclass(frozen=True)
class Shelf:
    """A folder of windows, named by what made them."""

    folder: Path

    def has(self, key: str, count: int) -> bool:
        """Return whether a window is there, whole; its frames then count as used now."""
        path = self._path(key)
        try:
            whole = path.is_file() and probe(path).frames == count
            if whole:
                os.utime(path)
        except (OSError, PiyingError):
            return False
        return whole

    def put(self, key: str, frames: torch.Tensor, latents: torch.Tensor | None = None) -> None:
        """Keep a window's frames [n, h, w, 3] in 0..1, to eight bits, and its latents where there are any.

        Raises:
            PiyingError: the disk or ffmpeg fails.
        """
        doing = f"Cannot keep a finished window in {self.folder}"
        part = self.folder / f".{key}.{os.getpid()}.part"
        with disk.explained(doing), disk.removed_on_failure(part):
            self.folder.mkdir(parents=True, exist_ok=True)
            if latents is not None:
                _write_latents(part, latents)
                part.replace(self._path(key, LATENTS))
            write_lossless(part, _rounded(frames), doing)
            part.replace(self._path(key))  # the last: a window that has its frames has everything

    def read(self, key: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield a window's frames, uint8 [h, w, 3], one at a time."""
        return read_frames(self._path(key))

    def last(self, key: str, count: int) -> torch.Tensor:
        """Return the last frames of a window, float32 [count, h, w, 3] in 0..1."""
        import torch

        frames = deque(self.read(key), maxlen=count)
        return torch.stack([torch.from_numpy(frame) for frame in frames]).float() / 255

    def first(self, key: str) -> torch.Tensor:
        """Return the first frame of a window, float32 [h, w, 3] in 0..1."""
        import torch

        return torch.from_numpy(next(self.read(key))).float() / 255

    def latents(self, key: str) -> torch.Tensor | None:
        """Return a window's latents [1, z, T, h, w]; None where it was kept without."""
        from safetensors.torch import load_file

        path = self._path(key, LATENTS)
        return load_file(path)["latents"] if path.is_file() else None

    def let_go(self, needed: Collection[str]) -> None:
        """Delete the windows least recently used beyond `KEPT_BYTES`; those of the run stay."""
        with suppress(OSError):
            others = [path for path in self.folder.glob(f"*{SUFFIX}") if path.stem not in needed]
            others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            size = 0
            for path in others:
                size += path.stat().st_size
                if size > KEPT_BYTES:
                    path.unlink()
                    path.with_suffix(LATENTS).unlink(missing_ok=True)

    def _path(self, key: str, suffix: str = SUFFIX) -> Path:
        return self.folder / f"{key}{suffix}"


def _write_latents(path: Path, latents: torch.Tensor) -> None:
    from safetensors.torch import save

    path.write_bytes(save({"latents": latents.contiguous()}))


def _rounded(frames: torch.Tensor) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield frames in eight bits; cut off instead of rounded they would darken from window to window."""
    for frame in frames:
        yield (frame.clamp(0, 1) * 255).round().byte().numpy()


def key_of(decides: Mapping[str, Any], tensors: Iterable[torch.Tensor]) -> str:
    """Return the name of what is made from values and tensors on the CPU."""
    text = json.dumps(decides, sort_keys=True, ensure_ascii=True, default=str)
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        # A frame at a time: a canvas may be one value seen as gigabytes.
        for part in tensor:
            digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:40]
