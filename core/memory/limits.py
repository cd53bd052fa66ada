"""What a plan may use of a machine, and what it may not choose."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .machine import Machine
from .planned import PhasePlan


@dataclass(frozen=True)
class Limits:
    """The machine, less what is not to be touched.

    Attributes:
        budget: bytes of the card that may be used.
        refused: keys of ways that ran out of memory before.
    """

    machine: Machine
    budget: int
    refused: Collection[str] = ()

    def allow(self, planned: PhasePlan) -> bool:
        """Return whether a way of running a phase fits."""
        on_card = self.machine.is_cpu or planned.vram <= self.budget
        return on_card and planned.ram <= self.machine.ram_free
