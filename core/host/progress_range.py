"""A piece of a longer piece of work, whose phases move one bar over the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .base import FolderKind, Host, MemoryRules, Preview, Progress

PARTS = 1000  # steps of the bar for one portion


@dataclass
class ProgressRange:
    """The host of one portion: all is as with the host behind it, but for the bar.

    Attributes:
        whole: the host behind it.
        bar: of the whole work, `PARTS` steps for each portion.
        index: which portion this is, from 0.
        shares: for each phase where it begins and ends within the portion, 0..1; others do not move the bar.
    """

    whole: Host
    bar: Progress
    index: int
    shares: Mapping[str, tuple[float, float]]
    _done: int = field(default=0, init=False)

    def progress(self, phase: str, total: int) -> Progress:
        """Return a phase that moves its share of the bar."""
        return _Share(self, *self.shares.get(phase, (0.0, 0.0)), total)

    def move(self, share: float, preview: Preview | None = None) -> None:
        """Bring the bar to a share of the portion; a phase that is done again does not move it back."""
        self._done = max(self._done, round(share * PARTS))
        self.bar.step(self.index * PARTS + self._done, preview)

    def folder(self, kind: FolderKind) -> Path:
        """Ask the host."""
        return self.whole.folder(kind)

    def model_folders(self) -> list[tuple[str, Path]]:
        """Ask the host."""
        return self.whole.model_folders()

    def device(self) -> str:
        """Ask the host."""
        return self.whole.device()

    def check_cancelled(self) -> None:
        """Ask the host."""
        self.whole.check_cancelled()

    def make_room(self, size: int) -> None:
        """Ask the host."""
        self.whole.make_room(size)

    def memory_rules(self) -> MemoryRules:
        """Ask the host."""
        return self.whole.memory_rules()

    def cache_folder(self) -> Path:
        """Ask the host."""
        return self.whole.cache_folder()

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Tell the host."""
        self.whole.on_eviction(evict, size)

    def video_file(self, path: Path) -> Any:
        """Ask the host."""
        return self.whole.video_file(path)


@dataclass
class _Share:
    portion: ProgressRange
    begin: float
    end: float
    total: int

    def step(self, done: int, preview: Preview | None = None) -> None:
        self.portion.move(self.begin + (self.end - self.begin) * done / max(1, self.total), preview)

    def text(self, text: str) -> None:
        self.portion.bar.text(text)
