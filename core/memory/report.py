"""A plan as a table for terminal and log, and what was measured beside it."""

from __future__ import annotations

from collections.abc import Sequence

from .explain import duration
from .machine import Machine
from .measure import Measured
from .planned import Plan, amount

HEAD = ("phase", "model", "computes in", "stored as", "where", "how", "card", "memory", "copied", "time")
AFTER = ("phase", "card, predicted", "card, measured", "time, estimated", "time, measured")
OF_CARDS = ("where", "card", "copied", "card, predicted", "card, measured")  # columns that say nothing without one


def table(plan: Plan, machine: Machine) -> str:
    """Return what would be where, and why, as lines of text."""
    rows = [
        (
            phase.phase,
            f"{phase.component} {amount(phase.weights)}",
            phase.compute + (" (FP8 matmul)" if phase.fp8_matmul else ""),
            phase.storage,
            phase.placement,
            phase.variant,
            amount(phase.vram),
            amount(phase.ram),
            amount(phase.moved),
            duration(phase.seconds),
        )
        for phase in plan.phases
    ]
    lines = columns(_for([HEAD, *rows], machine))
    return "\n".join([_verdict(plan, machine), *lines, *(f"- {reason}" for reason in plan.reasons)])


def after(plan: Plan, measured: Sequence[Measured], machine: Machine) -> str:
    """Return predicted beside measured for each phase that was measured."""
    predicted = {phase.phase: phase for phase in plan.phases}
    rows = [
        (
            phase.phase,
            amount(predicted[phase.phase].vram),
            amount(phase.vram),
            duration(predicted[phase.phase].seconds),
            duration(phase.seconds),
        )
        for phase in measured
        if phase.phase in predicted
    ]
    return "\n".join(columns(_for([AFTER, *rows], machine)))


def _for(rows: Sequence[Sequence[str]], machine: Machine) -> list[list[str]]:
    """Return a table, on a CPU without the columns about a card."""
    hidden = OF_CARDS if machine.is_cpu else ()
    wanted = [index for index, name in enumerate(rows[0]) if name not in hidden]
    return [[row[index] for index in wanted] for row in rows]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose cells stand below each other."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _verdict(plan: Plan, machine: Machine) -> str:
    place = machine.name if machine.is_cpu else f"{machine.name} ({amount(machine.vram_free)} free)"
    memory = f"{amount(machine.ram_free)} of main memory free"
    if not plan.fits:
        return f"This does not fit {place}, {memory}."
    card = "" if machine.is_cpu else f"{amount(plan.peak_vram)} of the card and "
    return (
        f"Plan for {place}, {memory}: peak {card}{amount(plan.peak_ram)} of main memory, "
        f"about {duration(plan.seconds)}."
    )
