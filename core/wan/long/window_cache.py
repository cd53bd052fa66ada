"""Window cache: finished windows on disk, without loss. A long video needs memory for one; a stopped run resumes."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...disk_cache import DiskCache, entry_name
from ...errors import PiyingError, explain_os_errors
from ...executor.tensor_cache import digest
from ...media.encoding import write_lossless
from ...media.video import probe, read_frames
from .colour_match import Colours, colours_of_all

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


KEPT_BYTES = 8 * 2**30  # of finished windows beside those of the run; minutes of 720p


@dataclass(frozen=True, eq=False)
class FinishedWindow:
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
    eight = torch.empty(frames.shape, dtype=torch.uint8)
    for frame, target in zip(frames, eight, strict=True):
        target.copy_((frame.clamp(0, 1) * 255).round())
    return eight


@dataclass(frozen=True)
class WindowCache:
    """A folder of windows, named by what made them: the frames as a video, and the latents where they are needed."""

    folder: Path

    @property
    def _frames(self) -> DiskCache:
        return DiskCache(self.folder, ".mkv", max_bytes=KEPT_BYTES)

    @property
    def _latents(self) -> DiskCache:
        return DiskCache(self.folder, ".safetensors")

    def has(self, key: str, count: int, latents: bool = False) -> bool:
        """Return whether a window of so many frames is there, whole; its frames then count as used now.

        Args:
            latents: whether its latents have to be there too.
        """
        path = self._frames.find(key)
        if path is None or (latents and self._latents.find(key) is None):
            return False
        try:
            return probe(path).frames == count
        except (OSError, PiyingError):
            return False

    def put(self, key: str, window: FinishedWindow) -> None:
        """Keep a window. It is there when this returns, and not before.

        Raises:
            PiyingError: the disk or ffmpeg fails.
        """
        from safetensors.torch import save

        doing = f"Cannot keep a finished window in {self.folder}"
        with explain_os_errors(doing):
            if window.latents is not None:
                with self._latents.writing(key) as path:
                    path.write_bytes(save({"latents": window.latents.contiguous()}))
            with self._frames.writing(key) as path:
                write_lossless(path, iter(window.frames.numpy()), doing)

    def get(self, key: str) -> FinishedWindow:
        """Return a window that is there. Raises PiyingError when it cannot be read."""
        from safetensors.torch import load

        frames = torch.stack([torch.from_numpy(frame) for frame in self.read(key)])
        latents = self._latents.get(key)
        return FinishedWindow(frames, None if latents is None else load(latents)["latents"])

    def read(self, key: str) -> Generator[npt.NDArray[np.uint8], None, None]:
        """Yield a window's frames, uint8 [h, w, 3], one at a time. Raises PiyingError when they cannot be read."""
        path = self._frames.find(key)
        if path is None:
            raise PiyingError(
                f"{self._frames.path(key)}: this finished window is damaged, or was deleted during the run. "
                "Run again to regenerate it."
            )
        yield from read_frames(path)

    def evict(self, needed: Collection[str]) -> None:
        """Delete the windows least recently used beyond `KEPT_BYTES`; those of the run stay."""
        for key in self._frames.evict(needed):
            self._latents.delete(key)


def window_key(decides: Mapping[str, Any], tensors: Iterable[torch.Tensor]) -> str:
    """Return the name of what is made from values and tensors on the CPU."""
    return entry_name({**decides, "tensors": digest(tensors)})


@dataclass
class PreviousWindows:
    """Windows by their key. One is in memory: the last that was made."""

    cache: WindowCache
    _key: str | None = None
    _window: FinishedWindow | None = None
    _colours: dict[str, Colours] = field(default_factory=dict)
    _first: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def set_current(self, key: str, window: FinishedWindow) -> None:
        """Keep a window that was made, in place of the one before it."""
        self._key, self._window = key, window

    def window(self, key: str) -> FinishedWindow:
        """Return a window. Raises PiyingError when it cannot be read."""
        return self._window if self._window is not None and key == self._key else self.cache.get(key)

    def colours(self, key: str) -> Colours:
        """Return the colours of a window; it is looked at once."""
        if key not in self._colours:
            with closing(self._frames(key)) as frames:
                self._colours[key] = colours_of_all(frames)
        return self._colours[key]

    def first_frames(self, key: str, count: int) -> torch.Tensor:
        """Return the first frames of a window, float32 [count, h, w, 3] in 0..1; they are looked at once."""
        if (key, count) not in self._first:
            with closing(self._frames(key)) as frames:
                found = [torch.from_numpy(frame) for frame in islice(frames, count)]
            self._first[key, count] = torch.stack(found).float() / 255
        return self._first[key, count]

    def _frames(self, key: str) -> Generator[npt.NDArray[np.uint8], None, None]:
        if self._window is not None and key == self._key:
            yield from self._window.frames.numpy()
        else:
            yield from self.cache.read(key)
