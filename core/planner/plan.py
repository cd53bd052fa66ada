"""Where everything goes: the fastest way of running all phases that fits the machine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from .cost import choices, cost, is_last_resort
from .machine import Machine
from .phases import Phase
from .plan_types import PhasePlan, Plan, Rejected, amount
from .report import Limits, explain, too_large, why_rejected

__all__ = ["MARGIN", "PhasePlan", "Plan", "Rejected", "plan"]

# Bytes of the card's free memory that no plan counts on: workspaces of cuDNN and cuBLAS, and gaps between
# blocks of memory. An allowance; with CUDA's own context the 0.8 GiB that practice in this field leaves free.
MARGIN = 520 * 2**20


@dataclass(frozen=True)
class Candidate:
    """One way of running a phase.

    Attributes:
        plan: the way and its cost.
        lesser: how far its number types are from the best; compared before time.
        rank: its place among equally fast ones.
    """

    plan: PhasePlan
    lesser: tuple[int, int]
    rank: tuple[int, ...]


def plan(
    work: tuple[Phase, ...],
    machine: Machine,
    refused: Collection[str] = (),
    *,
    precision: str = "auto",
    memory: str = "auto",
    margin: int = MARGIN,
    advise: Callable[[], str] | None = None,
) -> Plan:
    """Return the fastest plan that fits; of equally fast ones the best quality, then the least copying.

    Pure arithmetic: the same arguments give the same plan. More memory never gives a slower one.

    Args:
        work: the phases of the run.
        machine: what there is.
        refused: keys of `PhasePlan`s that ran out of memory before; none of them is chosen.
        precision: `auto`, or the number type to compute in.
        memory: `auto`, or what to hold the plan to: `resident`, `streamed`, `fp8`.
        margin: bytes of the card to leave alone.
        advise: called where nothing fits; returns a sentence on what would.
    """
    limits = Limits(machine, max(0, machine.vram_free - margin), refused)
    phases: list[PhasePlan] = []
    reasons: list[str] = []
    problems: list[str] = []
    rejected: list[Rejected] = []
    too_small = False
    for phase in work:
        ways = _candidates(phase, machine, precision, memory)
        chosen, fitting = _choose(ways, limits)
        (reasons if fitting else problems).extend(_reasons(phase, chosen, fitting, ways, limits))
        if chosen is not None:
            phases.append(chosen)
            too_small |= not fitting
        rejected += _rejected(phase, chosen, ways, limits)
    if too_small and advise is not None:
        problems.append(advise())
    return _assembled(phases, not problems, problems or reasons, rejected)


def _candidates(phase: Phase, machine: Machine, precision: str, memory: str) -> list[Candidate]:
    found = []
    computes: list[str] = []
    for choice in choices(phase, machine, precision, memory):
        if choice.compute not in computes:
            computes.append(choice.compute)
        planned = cost(phase, choice, machine)
        rounded = choice.storage == "fp8"
        lesser = (computes.index(choice.compute), int(rounded and phase.patient))
        if is_last_resort(choice, machine):
            lesser = (len(phase.computes), 0)
        variant = phase.variants.index(choice.variant)
        rank = (rounded + choice.fp8_matmul, planned.moved, variant, planned.vram, planned.ram)
        found.append(Candidate(planned, lesser, rank))
    return [_without_credit(candidate, found) for candidate in found]


def _without_credit(candidate: Candidate, ways: list[Candidate]) -> Candidate:
    """Return a way with a lesser number type as no faster than any with a better one.

    It is taken where memory is short. If it counted as faster, more memory would make a plan slower.
    """
    better = [other.plan.seconds for other in ways if other.lesser < candidate.lesser]
    seconds = max([candidate.plan.seconds, *better])
    return replace(candidate, plan=replace(candidate.plan, seconds=seconds))


def _choose(ways: list[Candidate], limits: Limits) -> tuple[PhasePlan | None, bool]:
    """Return the best way that fits, else the one that needs least; and whether it fits."""
    usable = [way for way in ways if way.plan.key not in limits.refused]
    fitting = [way for way in usable if limits.allow(way.plan)]
    if fitting:
        return min(fitting, key=lambda way: (way.lesser, way.plan.seconds, way.rank)).plan, True
    if usable:
        return min(usable, key=lambda way: _excess(way.plan, limits)).plan, False
    return None, False


def _excess(planned: PhasePlan, limits: Limits) -> tuple[int, int, int]:
    """Return how much a way needs beyond what there is, then how much it needs at all."""
    over = max(0, planned.vram - limits.budget) + max(0, planned.ram - limits.machine.ram_free)
    return over, planned.vram, planned.ram


def _reasons(
    phase: Phase, chosen: PhasePlan | None, fitting: bool, ways: list[Candidate], limits: Limits
) -> list[str]:
    if chosen is None:
        machine = limits.machine
        room = f"{amount(machine.ram_free if machine.is_cpu else machine.vram_free)} free"
        return [
            f"{phase.name} ran out of memory on {machine.name} ({room}) in every way it can be run. Close other "
            "programs, or choose a smaller size or length."
        ]
    if not fitting:
        return [too_large(phase, chosen, limits)]
    return list(explain(phase, chosen, [way.plan for way in ways], limits))


def _rejected(phase: Phase, chosen: PhasePlan | None, ways: list[Candidate], limits: Limits) -> list[Rejected]:
    others = [way.plan for way in ways if way.plan != chosen]
    return [Rejected(phase.name, other.choice, why_rejected(other, chosen, limits)) for other in others]


def _assembled(phases: list[PhasePlan], fits: bool, reasons: list[str], rejected: list[Rejected]) -> Plan:
    return Plan(
        phases=tuple(phases),
        fits=fits,
        peak_vram=max((phase.vram for phase in phases), default=0),
        peak_ram=max((phase.ram for phase in phases), default=0),
        seconds=sum(phase.seconds for phase in phases),
        moved=sum(phase.moved for phase in phases),
        reasons=tuple(reasons),
        rejected=tuple(rejected),
    )


def largest(fits: Callable[[int], bool], low: int, high: int, step: int) -> int | None:
    """Return the largest of low, low + step, … high for which `fits`; None where not even `low` does.

    What fits must also fit made smaller.
    """
    if not fits(low):
        return None
    below, above = 0, (high - low) // step + 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(low + middle * step) else (below, middle)
    return low + below * step
