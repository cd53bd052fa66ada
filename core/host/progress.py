"""Progress: the seconds left of a phase, and phases that are shown where they take long."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Progress, Reporter

STEPS_REMEMBERED = 64
FEW_STEPS = 3
MEGABYTE = 10**6
SECONDS_BEFORE_SHOWN = 1.0  # what is over sooner needs no bar


class TimeLeft:
    """Tells the seconds left of a phase: by its estimate at first, then by the median of its steps.

    The first step is never taken at face value: in it weights are read, kernels chosen, and code is compiled.

    Args:
        total: steps of the phase.
        clock: gives seconds.

    Attributes:
        expected: seconds that the phase was estimated to take; 0 where nobody has estimated it.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.expected = 0.0
        self._total, self._clock = total, clock
        self._begun = self._last = clock()
        self._done, self._has_begun = 0, False
        self._steps: deque[float] = deque(maxlen=STEPS_REMEMBERED)

    def step(self, done: int) -> None:
        """Note that `done` steps are done."""
        now = self._clock()
        if done > self._done:
            if self._has_begun:
                self._steps.append((now - self._last) / (done - self._done))
            self._last, self._done, self._has_begun = now, done, True

    def seconds(self) -> float | None:
        """Return the seconds left; None where neither an estimate nor a step after the first tells them."""
        now, left = self._clock(), self._total - self._done
        if left <= 0:
            return 0.0
        if self._steps:
            # Of a few steps the slow one would decide: the estimate counts as two of them.
            prior = [self.expected / self._total] * 2 if self.expected and len(self._steps) < FEW_STEPS else []
            # Where the step that is under way is longer than those before it, those that follow it are still to come.
            each = median([*prior, *self._steps])
            return max(each * left - (now - self._last), each * (left - 1))
        taken = now - self._begun
        if not self.expected or taken > 2 * self.expected:
            return None  # nobody has estimated it, or the estimate is refuted
        # Beyond its estimate a phase goes on for at least a share of it.
        return max(self.expected - taken, self.expected * left / self._total / 4)


class LongProgress:
    """A phase that is shown once it takes longer than a moment.

    Args:
        reporter: shows it, and stops the run where the user has cancelled.
        phase: its name, for people.
        unit: what a step of those that are shown stands for, such as bytes of a megabyte.
    """

    def __init__(self, reporter: Reporter, phase: str, unit: int = 1) -> None:
        self._reporter, self._phase, self._unit = reporter, phase, unit
        self._begun = time.monotonic()
        self._progress: Progress | None = None
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` are done."""
        # The last step is shown when all is done, and none twice: many small tensors lie within a megabyte.
        steps = -(-total // self._unit)
        step = steps if done >= total else min(done // self._unit, steps - 1)
        if self._progress is None:
            if step >= steps - 1 or time.monotonic() - self._begun < SECONDS_BEFORE_SHOWN:
                return
            self._progress = self._reporter.progress(self._phase, steps)
        if step > self._shown:
            self._shown = step
            self._progress.step(step)
