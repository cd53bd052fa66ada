"""Where everything goes: the fastest way of running all phases that fits the machine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ..quantization.registry import weight_format
from .cost import choices, cost, is_last_resort
from .machine import SHARDED, Limits, Machine
from .phases import Phase
from .plan_types import PhasePlan, Plan, Rejected, amount
from .report import explain, memory_limits_in_words, out_of_ways, too_large, where_it_runs, why_rejected

__all__ = ["PhasePlan", "Plan", "Rejected", "plan"]

# What a phase may take longer on the second card, as a factor and in seconds, and still go there: it leaves the first
# one to the rest. Estimates are no better than that.
NEARLY_EQUAL, SOON_OVER = 1.05, 1.0


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
    rank: tuple[float, ...]


def plan(
    work: tuple[Phase, ...],
    machine: Machine,
    refused: Collection[str] = (),
    *,
    precision: str = "auto",
    memory: str = "auto",
    margin: int | None = None,
    advise: Callable[[], str] | None = None,
    expected: Callable[[Phase, PhasePlan], tuple[float, float]] | None = None,
) -> Plan:
    """Return the fastest plan that fits; of equally fast ones the best quality, then the least copying.

    Pure arithmetic: the same arguments give the same plan. More memory never gives a slower one, but see `_best`.

    Args:
        work: the phases of the run.
        machine: what there is.
        refused: keys of `PhasePlan`s that ran out of memory before; none of them is chosen.
        precision: one of `machine.PRECISIONS`: `auto`, or the number type to compute in.
        memory: one of `machine.MEMORY_CHOICES`: `auto`, or the placement or format to hold the plan to.
        margin: bytes of each card to leave alone, in place of what libraries and the allocator take of it.
        advise: called where nothing fits; returns a sentence on what would.
        expected: returns the seconds of a phase's chosen way by what was measured, and those of loading among them;
            the choice does not go by it.
    """
    limits = _limits(machine, refused, margin)
    phases: list[PhasePlan] = []
    reasons: list[str] = []
    problems: list[str] = []
    rejected: list[Rejected] = []
    too_small = short_of_ram = False
    for phase in work:
        candidates = _candidates(phase, machine, precision, memory)
        ways = [candidate.plan for candidate in candidates]
        chosen, fits = _choose(candidates, limits)
        if chosen is not None and expected is not None and chosen.seconds:
            # All ways by the same ratio, so that what is said of them compares as it was compared.
            seconds, loading = expected(phase, chosen)
            ratio, before = seconds / chosen.seconds, chosen
            chosen = replace(chosen, seconds=seconds, loading=loading)
            ways = [chosen if way is before else replace(way, seconds=way.seconds * ratio) for way in ways]
        if chosen is None:
            problems.append(out_of_ways(phase, machine))
        elif not fits:
            problems.append(too_large(chosen, limits))
        else:
            reasons += explain(phase, chosen, ways, limits)
            reasons += where_it_runs(phase, chosen, _elsewhere(candidates, ways, chosen, limits), limits)
        if chosen is not None:
            # What does not fit is shown too, with its numbers: it is what the error is about.
            phases.append(chosen)
            too_small |= not fits
        short_of_ram |= not limits.allow_ram(chosen) if chosen is not None else machine.is_cpu
        rejected += [
            Rejected(phase.name, way.choice, why_rejected(phase, way, chosen, limits)) for way in ways if way != chosen
        ]
    if problems and short_of_ram:
        problems += memory_limits_in_words(machine)
    if too_small and advise is not None:
        problems.append(advise())
    reasons += _in_vain(memory, work)
    phases = _with_cached(phases, machine)
    reasons += [
        f"{phase.phase}: {amount(phase.cached)} of models of the phases before stay in memory; they leave where room "
        "is needed."
        for phase in phases
        if phase.cached
    ]
    return Plan(
        phases=tuple(phases),
        fits=not problems,
        peak_vram=max((phase.vram for phase in phases if not phase.device), default=0),
        peak_ram=max((phase.ram + phase.cached for phase in phases), default=0),
        seconds=sum(phase.seconds for phase in phases),
        moved=sum(phase.moved for phase in phases),
        reasons=tuple(problems or reasons),
        rejected=tuple(rejected),
    )


def _limits(machine: Machine, refused: Collection[str], margin: int | None) -> Limits:
    budget = machine.vram_budget if margin is None else max(0, machine.vram_free - margin)
    second = None if machine.second is None else _limits(machine.second, refused, margin)
    return Limits(machine, budget, refused, second)


def _in_vain(memory: str, work: tuple[Phase, ...]) -> list[str]:
    """Return a sentence where no phase can be held to `memory`."""
    if weight_format(memory) is not None and not any(memory in phase.storages for phase in work):
        return [f"memory is {memory}: no part of this model can be held so, and it counts as auto."]
    if memory == SHARDED and not any(phase.shards > 1 for phase in work):
        return ["memory is sharded: no cards share the sequence of this run, and it counts as auto."]
    return []


def _with_cached(phases: list[PhasePlan], machine: Machine) -> list[PhasePlan]:
    """Return phases with what models of those before them hold, as the model cache keeps and evicts them."""
    found: list[PhasePlan] = []
    cached: dict[str, PhasePlan] = {}  # by component, from the least to the most recently used
    for phase in phases:
        cached.pop(phase.component, None)
        while cached and phase.ram + sum(one.copied for one in cached.values()) > machine.ram_free:
            cached.pop(next(iter(cached)))
        found.append(replace(phase, cached=sum(one.copied for one in cached.values())))
        cached[phase.component] = phase
    return found


def _candidates(phase: Phase, machine: Machine, precision: str, memory: str) -> list[Candidate]:
    found = _on_one(phase, machine, precision, memory)
    second = machine.second
    if second is not None and phase.movable:
        # The CPU is beside both cards once.
        ways = [way for way in _on_one(phase, second, precision, memory) if way.plan.placement != "cpu"]
        found += [replace(way, plan=replace(way.plan, device=second.device)) for way in ways]
    return found


def _on_one(phase: Phase, machine: Machine, precision: str, memory: str) -> list[Candidate]:
    """Return the ways of running a phase on the first of a machine's cards, or without one."""
    found = []
    computes: list[str] = []
    for choice in choices(phase, machine, precision, memory):
        if choice.compute not in computes:
            computes.append(choice.compute)
        planned = cost(phase, choice, machine)
        # What the file has in a format is rounded no further by staying in it.
        cast = None if phase.component.stored == choice.storage else weight_format(choice.storage)
        lesser = (computes.index(choice.compute), int(cast is not None and phase.cast_last_resort))
        if is_last_resort(choice, machine):
            lesser = (len(phase.computes), 0)
        # Of equally fast ways the one that rounds least: neither weights nor inputs, then the better format.
        rounded = (cast is not None) + choice.native_matmul
        error = 0.0 if cast is None else cast.rounding_error
        variant = phase.variants.index(choice.variant)
        rank = (rounded, error, planned.moved, variant, planned.vram, planned.ram)
        found.append(Candidate(planned, lesser, rank))
    credited = []
    for way in found:
        # A lesser number type counts as no faster than any better one: it is taken where memory is short, and if it
        # counted as faster, more memory would make a plan slower.
        better = [other.plan.seconds for other in found if other.lesser < way.lesser]
        credited.append(replace(way, plan=replace(way.plan, seconds=max([way.plan.seconds, *better]))))
    return credited


def _choose(ways: list[Candidate], limits: Limits) -> tuple[PhasePlan | None, bool]:
    """Return the best way that fits, else the one that needs least; and whether it fits."""
    usable = [way for way in ways if way.plan.key not in limits.refused]
    fitting = [way for way in usable if limits.allow(way.plan)]
    if fitting:
        return _best(fitting).plan, True
    if usable:
        # Nothing fits: the leanest way says how much is missing at least.
        return min((way.plan for way in usable), key=lambda one: (limits.excess(one), one.vram, one.ram)), False
    return None, False


def _elsewhere(
    candidates: list[Candidate], ways: list[PhasePlan], chosen: PhasePlan, limits: Limits
) -> PhasePlan | None:
    """Return the best of ways on the other card, the leanest where none fits; None without another card."""
    best, _ = _choose([one for one in candidates if one.plan.device != chosen.device], limits)
    return next((way for way in ways if best is not None and way.key == best.key), None)


def _best(ways: list[Candidate]) -> Candidate:
    """Return the best of ways that fit; of nearly equal ones that on the second card, which leaves the first free."""
    by_card = [[way for way in ways if bool(way.plan.device) is second] for second in (False, True)]
    best = [min(each, key=lambda way: (way.lesser, way.plan.seconds, way.rank)) for each in by_card if each]
    if len(best) == 1 or best[0].lesser != best[-1].lesser:
        return min(best, key=lambda way: way.lesser)
    first, second = best
    return second if second.plan.seconds <= first.plan.seconds * NEARLY_EQUAL + SOON_OVER else first


def largest(fits: Callable[[int], bool], low: int, high: int, step: int) -> int | None:
    """Return the largest of low, low + step, … high for which `fits`; None where not even `low` does.

    What fits must also fit made smaller.
    """
    if not fits(low):
        return None
    below, above = 0, (high - low) // step + 1  # in steps: fits, and does not fit or lies beyond `high`
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(low + middle * step) else (below, middle)
    return low + below * step
