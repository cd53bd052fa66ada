"""Reports: a plan as table, sentences and JSON, and what was measured beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..quantization.registry import weight_format
from .cost import bottleneck, reread_every_pass
from .machine import SHARDED, Limits, Machine
from .phases import Phase
from .plan_types import PhaseMeasurement, PhasePlan, Plan, amount, gigabytes


@dataclass(frozen=True)
class Estimate:
    """A plan for one model on one machine.

    Attributes:
        model: its name.
        plan: what was chosen.
        machine: what it was chosen for.
        fitting: where nothing fits, smaller works of the model's family that would.
        warnings: sentences on what the model was not trained to do.
    """

    model: str
    plan: Plan
    machine: Machine
    fitting: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def caution(self) -> str:
        """The warnings, with the time that a run would take to find out; "" where there are none."""
        if not self.warnings or not self.plan.fits:
            return " ".join(self.warnings)
        return " ".join([*self.warnings, f"The run takes about {duration(self.plan.seconds)}."])

    def to_json(self) -> dict[str, Any]:
        """Return it fit for JSON; sizes in GB of 2**30 bytes."""
        machine = self.machine
        return {
            "model": self.model,
            **self.plan.to_json(),
            "caution": self.caution,
            "machine": {
                "name": machine.name,
                "vram_gb": gigabytes(machine.vram_total),
                "vram_free_gb": gigabytes(machine.vram_free),
                "ram_gb": gigabytes(machine.ram_total),
                "ram_free_gb": gigabytes(machine.ram_free),
                **({} if machine.second is None else {"second": self._second(machine.second)}),
            },
        }

    def _second(self, card: Machine) -> dict[str, Any]:
        return {
            "device": card.device,
            "name": card.name,
            "vram_gb": gigabytes(card.vram_total),
            "vram_free_gb": gigabytes(card.vram_free),
            "peak_vram_gb": gigabytes(self.plan.peak_second),
        }

    def to_text(self) -> str:
        """Return it as lines for people."""
        caution = f"\n- {self.caution}" if self.warnings else ""
        return f"{self.model}\n{table(self.plan, self.machine)}{caution}"


LIMITED_BY = {
    "arithmetic": "computing",
    "copying": "copying weights to the card",
    "gathering": "gathering weights from the other cards",
    "disk": "reading weights from disk",
    "memory": "reading weights from memory",
    "casting": "casting weights",
    "unpacking": "unpacking weights",
}
CHOICES = ("placement", "storage", "variant", "compute", "native_matmul")


def explain(phase: Phase, chosen: PhasePlan, ways: list[PhasePlan], limits: Limits) -> Iterator[str]:
    """Yield sentences on what was chosen for a phase.

    Args:
        phase: what is run.
        chosen: the way it is run.
        ways: all ways of running it.
        limits: what there is.
    """
    name, machine, stored = phase.name, limits.of(chosen).machine, weight_format(chosen.storage)
    beside = [way for way in ways if way.device == chosen.device]
    against = partial(_against, phase, chosen=chosen, ways=beside, limits=limits)
    yield in_short(chosen, machine, bottleneck(phase, chosen, machine))
    if stored is not None and phase.component.stored != chosen.storage:
        yield f"{name}: weights in {stored.title}, because {against('storage')}."
    if chosen.placement == "streamed":
        yield f"{name}: weights are streamed, because {against('placement')}."
    if chosen.placement == SHARDED:
        yield f"{name}: each of {phase.shards} cards has a share of the weights, because {against('placement')}."
    if chosen.variant != phase.variants[0].name:
        words = next(variant.words for variant in phase.variants if variant.name == chosen.variant)
        yield f"{name}: done {words}, because {against('variant')}."
    if chosen.compute != phase.computes[0] == "fp32":
        yield f"{name}: fp32 is advised and does not fit."
    if phase.why and chosen.compute == phase.computes[0]:
        yield f"{name}: {phase.why}"
    yield from (f"{name}: {note}" for note in phase.notes)
    free = machine.ram_free - chosen.ram
    if reread_every_pass(phase, chosen.compute, chosen.storage, placement=chosen.placement, cache=free):
        size = amount(phase.component.mapped(chosen.compute, chosen.storage))
        yield (
            f"{name}: main memory cannot hold the file of {size}, so each of the {phase.passes} passes "
            "reads it from disk."
        )


def where_it_runs(phase: Phase, chosen: PhasePlan, other: PhasePlan | None, limits: Limits) -> Iterator[str]:
    """Yield a sentence on why a phase runs on this card and not on the other one, where it could.

    Args:
        other: the best way on the other card, the fastest that fits or else the leanest; None where there is none.
    """
    second = limits.second
    if second is None or other is None or not phase.movable:
        return
    why = f"{other.choice.partition(', on ')[0]} {why_rejected(phase, other, chosen, limits)}"
    if chosen.device:
        yield f"{phase.name}: on the second card, because on the first {why}."
    elif chosen.placement == "cpu":
        yield f"{phase.name}: on the CPU, because on the second card {why}."
    else:
        yield f"{phase.name}: on the first card, because on the second {why}."


def in_short(chosen: PhasePlan, machine: Machine, busy: str) -> str:
    """Return a sentence on how a phase is run and what that takes; `busy` is a key of `LIMITED_BY`."""
    name, where = chosen.phase, "" if machine.is_cpu else f" {amount(chosen.vram)} of the card at its peak,"
    where = f" {amount(chosen.vram)} of the second card at its peak," if chosen.device else where
    busy = LIMITED_BY[busy]
    return f"{name}: {chosen.choice};{where} about {duration(chosen.seconds)}, most of it {busy}."


def _against(phase: Phase, field: str, *, chosen: PhasePlan, ways: list[PhasePlan], limits: Limits) -> str:
    """Return why the way that differs from the chosen one in `field`, and least in all else, was passed over."""
    different = [way for way in ways if getattr(way, field) != getattr(chosen, field)]
    if not different:
        return "that was asked for"

    def likeness(way: PhasePlan) -> tuple[int, int]:
        return sum(getattr(way, name) == getattr(chosen, name) for name in CHOICES), -way.vram

    # Compared with a way that differs in more, the reason could be the other difference's.
    nearest = max(different, key=likeness)
    return f"{nearest.choice} {why_rejected(phase, nearest, chosen, limits)}"


def shortages(way: PhasePlan, limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield what a way needs of each kind of memory that is too small for it, and how much of it can be used."""
    limits = limits.of(way)
    machine = limits.machine
    if not machine.is_cpu and way.vram > limits.budget:
        need, room = _apart(way.vram, limits.budget)
        yield f"{need} of the second card" if way.device else f"{need} of the card", room
    if way.ram > machine.ram_free:
        need, room = _apart(way.ram, machine.ram_free)
        yield f"{need} of main memory", room
    if machine.map_limit is not None and limits.unmappable(way):
        need, room = _apart(way.address_space, machine.map_limit.free)
        yield f"{need} of address space with its mapped files", room


def _apart(need: int, room: int) -> tuple[str, str]:
    """Return bytes that are needed and the fewer that can be used, for people, in figures that differ."""
    if amount(need) != amount(room):
        return amount(need), amount(room)
    # One rounded up and the other down, so that they differ however near they are.
    return f"{math.ceil(need / 2**20)} MB", f"{room // 2**20} MB"


def why_rejected(phase: Phase, way: PhasePlan, chosen: PhasePlan | None, limits: Limits) -> str:
    """Return why a way of running a phase was passed over, to follow its name in a sentence."""
    if way.key in limits.refused:
        return "ran out of memory before"
    for need, room in shortages(way, limits):
        return f"needs {need}, {room} can be used"
    if chosen is None:
        return "was passed over"
    # It fits and is worse: in the order in which the planner compares ways.
    if way.compute != chosen.compute:
        return "computes in a lesser number type"
    unrounded = (way.compute, phase.component.stored)
    if way.storage not in unrounded and chosen.storage in unrounded:
        gained = "is no faster" if way.seconds >= chosen.seconds else "is hardly faster"
        return f"{gained} and rounds the weights"
    if chosen.device and not way.device and way.seconds <= chosen.seconds:
        gained = "is hardly faster" if way.seconds < chosen.seconds else "is no faster"
        return f"{gained}, and the first card is left free"
    if way.seconds > chosen.seconds:
        return f"takes {duration(way.seconds)} instead of {duration(chosen.seconds)}"
    if way.native_matmul and not chosen.native_matmul:
        return "is no faster and rounds weights and inputs"
    if way.moved > chosen.moved:
        return f"is no faster and copies {amount(way.moved)} instead of {amount(chosen.moved)}"
    return "is no faster"


def out_of_ways(phase: Phase, machine: Machine) -> str:
    """Return a sentence on a phase that ran out of memory in every way it can be run."""
    room = f"{amount(machine.ram_free if machine.is_cpu else machine.vram_free)} free"
    return (
        f"{phase.name} ran out of memory on {machine.name} ({room}) in every way it can be run. Close other "
        "programs, or choose a smaller size or length."
    )


def memory_limits_in_words(machine: Machine) -> Iterator[str]:
    """Yield a sentence on each limit that holds main memory below what the machine has."""
    for limit in (machine.ram_limit, machine.map_limit):
        if limit is not None:
            held = "Memory and mapped files are" if limit.counts_mapped else "Main memory is"
            yield f"{held} limited to {amount(limit.total)} by {limit.source}: raise the limit, or run outside it."


def too_large(least: PhasePlan, limits: Limits) -> str:
    """Return a sentence on a phase that fits in no way, with the numbers of the leanest."""
    needs = " and ".join(f"{need}, of which {room} can be used" for need, room in shortages(least, limits))
    return f"{least.phase} does not fit {limits.of(least).machine.name}: it needs at least {needs}."


def duration(seconds: float) -> str:
    """Return a time for people: "0.4 s", "75 s", "12 min", "3.1 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


HEAD = ("phase", "model", "computes in", "stored as", "where", "how", "card", "memory", "copied", "time")
AFTER = ("phase", "card, predicted", "card, measured", "time, estimated", "time, measured")
OF_CARDS = ("where", "card", "copied", "card, predicted", "card, measured")  # columns that say nothing without one


def table(plan: Plan, machine: Machine) -> str:
    """Return what would be where, and why, as lines of text."""
    rows = [
        (
            phase.phase,
            f"{phase.component} {amount(phase.weights)}",
            phase.compute + (f" ({phase.matmul})" if phase.matmul else ""),
            phase.storage,
            _place(phase),
            phase.variant,
            amount(phase.vram),
            amount(phase.ram + phase.cached),
            amount(phase.moved),
            duration(phase.seconds),
        )
        for phase in plan.phases
    ]
    lines = columns(_for([HEAD, *rows], machine))
    (place, memory), ram, time = place_and_memory(machine), amount(plan.peak_ram), duration(plan.seconds)
    if not plan.fits:
        verdict = f"This does not fit {place}, {memory}."
    elif machine.is_cpu:
        verdict = f"Plan for {place}, {memory}: peak {ram} of main memory, about {time}."
    elif machine.second is not None:
        peak, other = amount(plan.peak_vram), amount(plan.peak_second)
        verdict = (
            f"Plan for {place}, {memory}: peak {peak} of the card, {other} of the second one and {ram} of main "
            f"memory, about {time}."
        )
    else:
        verdict = (
            f"Plan for {place}, {memory}: peak {amount(plan.peak_vram)} of the card and {ram} of main memory, "
            f"about {time}."
        )
    return "\n".join([verdict, *lines, *(f"- {reason}" for reason in plan.reasons)])


def _place(phase: PhasePlan) -> str:
    """Return where a phase's weights are, in a cell of the table."""
    if not phase.device:
        return phase.placement
    return f"streamed on {phase.device}" if phase.placement == "streamed" else f"resident on {phase.device}"


def place_and_memory(machine: Machine) -> tuple[str, str]:
    """Return a machine, and the main memory that is free, for people."""
    place = machine.name if machine.is_cpu else f"{machine.name} ({amount(machine.vram_free)} free)"
    if machine.second is not None:
        card, free = machine.second, amount(machine.second.vram_free)
        place = f"{place} beside {card.name} on {card.device} ({free} free)"
    memory = f"{amount(machine.ram_free)} of main memory free"
    for limit in (machine.ram_limit, machine.map_limit):
        if limit is not None:
            memory += f" ({amount(limit.free)} left of {amount(limit.total)} by {limit.source})"
    return place, memory


def after(plan: Plan, measured: Sequence[PhaseMeasurement], machine: Machine) -> str:
    """Return predicted beside measured for each phase that was measured."""
    predicted = {phase.phase: phase for phase in plan.phases}
    rows = [
        (
            " on ".join(filter(None, (phase.phase, predicted[phase.phase].device))),
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
    # Rows are made for all columns; zeros under "copied" would look like a finding.
    hidden = OF_CARDS if machine.is_cpu else ()
    wanted = [index for index, name in enumerate(rows[0]) if name not in hidden]
    return [[row[index] for index in wanted] for row in rows]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose cells stand below each other."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
