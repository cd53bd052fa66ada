"""The answer to "what would this run need?": a plan, and what it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .machine import Machine
from .planned import Plan, gigabytes
from .report import table


@dataclass(frozen=True)
class Answer:
    """A plan for one model on one machine."""

    model: str
    plan: Plan
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """Return it fit for JSON; sizes in GB of 2**30 bytes."""
        machine = self.machine
        return {
            "model": self.model,
            **self.plan.to_json(),
            "machine": {
                "name": machine.name,
                "vram_gb": gigabytes(machine.vram_total),
                "vram_free_gb": gigabytes(machine.vram_free),
                "ram_gb": gigabytes(machine.ram_total),
                "ram_free_gb": gigabytes(machine.ram_free),
            },
        }

    def to_text(self) -> str:
        """Return it as lines for people."""
        return f"{self.model}\n{table(self.plan, self.machine)}"
