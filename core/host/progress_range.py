"""Progress range: a reporter for one portion of a longer piece of work, whose phases move one bar over the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .base import Preview, Progress, Reporter

STEPS_PER_PORTION = 1000  # of the bar over the whole


@dataclass
class ProgressRange:
    """The reporter of one portion.

    Attributes:
        parent: asked whether the user has cancelled.
        bar: of the whole work, `STEPS_PER_PORTION` steps for each portion.
        index: which portion this is, from 0.
        shares: for each phase where it begins and ends within the portion, 0..1; others do not move the bar.
    """

    parent: Reporter
    bar: Progress
    index: int
    shares: Mapping[str, tuple[float, float]]
    _done: int = field(default=0, init=False)

    def progress(self, phase: str, total: int) -> Progress:
        """Return a phase that moves its share of the bar."""
        return _PhaseProgress(self, *self.shares.get(phase, (0.0, 0.0)), total)

    def check_cancelled(self) -> None:
        """Stop the run here where the user has cancelled it."""
        self.parent.check_cancelled()

    def move(self, share: float, preview: Preview | None = None) -> None:
        """Bring the bar to a share of the portion; a phase that is run again does not move it back."""
        self._done = max(self._done, round(share * STEPS_PER_PORTION))
        self.bar.step(self.index * STEPS_PER_PORTION + self._done, preview)


@dataclass
class _PhaseProgress:
    portion: ProgressRange
    begin: float
    end: float
    total: int

    def step(self, done: int, preview: Preview | None = None) -> None:
        self.portion.move(self.begin + (self.end - self.begin) * done / max(1, self.total), preview)

    def text(self, text: str) -> None:
        self.portion.bar.text(text)
