"""What a phase really took: the card's peak, the process's memory, time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .retry import guarded

if TYPE_CHECKING:
    from ..planner.plan_types import PhasePlan


@dataclass(frozen=True)
class Measured:
    """One phase of a run.

    Attributes:
        phase: its name.
        seconds: wall-clock time.
        vram: peak bytes torch allocated on the card; 0 without one.
        ram: bytes of the process in memory at the phase's end, mapped files included.
    """

    phase: str
    seconds: float
    vram: int
    ram: int


class Meter:
    """Measures the phases of one run."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.phases: list[Measured] = []

    @contextmanager
    def phase(self, choice: PhasePlan) -> Iterator[None]:
        """Measure what happens inside the block, and tell by the plan's choice where memory ran out.

        Raises:
            PhaseOutOfMemoryError: memory ran out inside the block.
        """
        start = time.perf_counter()
        self._reset()
        with guarded(choice.key):
            yield
        seconds = time.perf_counter() - start
        self.phases.append(Measured(choice.phase, seconds, self._peak(), _process_bytes()))

    def _reset(self) -> None:
        import torch

        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self._device)

    def _peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated(self._device) if self._device.startswith("cuda") else 0


def _process_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
