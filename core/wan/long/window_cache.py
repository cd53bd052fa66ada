"""Finished windows on disk, without loss: a long video needs memory for one, and a stopped run goes on behind them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...atomic_write import write_bytes
from ...errors import PiyingError, explain_os_errors
from ...executor.tensor_cache import digest
from ...media.encoding import write_lossless
from ...media.video import probe, read_frames
from .colour_match import Colours, colours_of_all

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


KEPT_BYTES = 8 * 2**30  # of finished windows beside those of the run; minutes of 720p
SUFFIX, LATENTS = ".mkv", ".safetensors"


@dataclass(frozen=True, eq=False)
class Finished:
    """A window in the eight bits that are kept of it, so that what follows is the same whether it was made or read.

    Attributes:
        frames: uint8 [n, h, w, 3].
        latents: float32 [1, z, T, h, w], where the next window is sampled from them.
    """

    frames: torch.Tensor
    latents: torch.Tensor | None = None

    def last(self, count: int) -> torch.Tensor:
        """Return the last frames, float32 [count, h, w, 3] in 0..1."""
        return self.frames[-count:].float() / 255


def rounded(frames: torch.Tensor) -> torch.Tensor:
    """Return frames [n, h, w, 3] in 0..1 as uint8. Cut off instead, they would darken from window to window."""
    import torch

    eight = torch.empty(frames.shape, dtype=torch.uint8)
    for frame, target in zip(frames, eight, strict=True):
        target.copy_((frame.clamp(0, 1) * 255).round())
    return eight


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

    def put(self, key: str, window: Finished) -> None:
        """Keep a window. It is there when this returns, and not before.

        Raises:
            PiyingError: the disk or ffmpeg fails.
        """
        from safetensors.torch import save

        doing = f"Cannot keep a finished window in {self.folder}"
        with explain_os_errors(doing):
            self.folder.mkdir(parents=True, exist_ok=True)
            if window.latents is not None:
                write_bytes(self._path(key, LATENTS), save({"latents": window.latents.contiguous()}))
            # The frames last: a window that has them has everything.
            write_lossless(self._path(key), iter(window.frames.numpy()), doing)

    def get(self, key: str) -> Finished:
        """Return a window that is there. Raises PiyingError when it cannot be read."""
        import torch

        frames = torch.stack([torch.from_numpy(frame) for frame in self.read(key)])
        return Finished(frames, self._latents(key))

    def read(self, key: str) -> Generator[npt.NDArray[np.uint8], None, None]:
        """Yield a window's frames, uint8 [h, w, 3], one at a time."""
        return read_frames(self._path(key))

    def _latents(self, key: str) -> torch.Tensor | None:
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


def key_of(decides: Mapping[str, Any], tensors: Iterable[torch.Tensor]) -> str:
    """Return the name of what is made from values and tensors on the CPU."""
    text = json.dumps(decides, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(f"{text} {digest(tensors)}".encode()).hexdigest()[:40]


@dataclass
class Earlier:
    """Windows by their key. One is in memory: the last that was made."""

    shelf: Shelf
    _key: str | None = None
    _window: Finished | None = None
    _colours: dict[str, Colours] = field(default_factory=dict)
    _pictures: dict[str, torch.Tensor] = field(default_factory=dict)

    def hold(self, key: str, window: Finished) -> None:
        """Keep a window that was made, in place of the one before it."""
        self._key, self._window = key, window

    def window(self, key: str) -> Finished:
        """Return a window. Raises PiyingError when it cannot be read."""
        return self._window if self._window is not None and key == self._key else self.shelf.get(key)

    def colours(self, key: str) -> Colours:
        """Return the colours of a window; it is looked at once."""
        if key not in self._colours:
            with closing(self._frames(key)) as frames:
                self._colours[key] = colours_of_all(frames)
        return self._colours[key]

    def first_frame(self, key: str) -> torch.Tensor:
        """Return the first frame of a window, float32 [h, w, 3] in 0..1; it is looked at once."""
        if key not in self._pictures:
            with closing(self._frames(key)) as frames:
                self._pictures[key] = torch.from_numpy(next(frames)).float() / 255
        return self._pictures[key]

    def _frames(self, key: str) -> Generator[npt.NDArray[np.uint8], None, None]:
        if self._window is not None and key == self._key:
            yield from self._window.frames.numpy()
        else:
            yield from self.shelf.read(key)
