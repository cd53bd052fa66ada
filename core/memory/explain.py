"""Why a plan is as it is, in sentences with numbers."""

from __future__ import annotations

from collections.abc import Iterator

from .cost import bottleneck, reread_every_pass
from .limits import Limits
from .planned import PhasePlan, amount
from .work import Phase

LIMITED_BY = {
    "arithmetic": "computing",
    "copying": "copying weights to the card",
    "disk": "reading weights from disk",
    "memory": "reading weights from memory",
}
IN_VARIANT = {"tiled": "in pieces", "whole": "one prompt after the other"}
CHOICES = ("placement", "storage", "variant", "compute", "fp8_matmul")


def explain(phase: Phase, chosen: PhasePlan, ways: list[PhasePlan], limits: Limits) -> Iterator[str]:
    """Yield sentences on what was chosen for a phase.

    Args:
        ways: all ways of running it.
    """
    name, machine = phase.name, limits.machine
    where = "" if machine.is_cpu else f" {amount(chosen.vram)} of the card at its peak,"
    busy = LIMITED_BY[bottleneck(phase, chosen, machine)]
    yield f"{name}: {chosen.choice};{where} about {duration(chosen.seconds)}, most of it {busy}."
    if chosen.storage == "fp8" and phase.component.stored != "fp8":
        yield f"{name}: weights in FP8, because {_against('storage', chosen, ways, limits)}."
    if chosen.placement == "streamed":
        yield f"{name}: weights are streamed, because {_against('placement', chosen, ways, limits)}."
    if chosen.variant != phase.variants[0].name:
        yield f"{name}: done {IN_VARIANT[chosen.variant]}, because {_against('variant', chosen, ways, limits)}."
    if chosen.compute != phase.computes[0] == "fp32":
        yield f"{name}: fp32 is advised and does not fit."
    if phase.why and chosen.compute == phase.computes[0]:
        yield f"{name}: {phase.why}"
    yield from (f"{name}: {note}" for note in phase.notes)
    if reread_every_pass(phase, chosen.storage, chosen.placement, machine.ram_free - chosen.ram):
        size = amount(phase.component.file_bytes())
        yield (
            f"{name}: main memory cannot hold the file of {size}, so each of the {phase.passes} passes "
            "reads it from disk."
        )


def _against(field: str, chosen: PhasePlan, ways: list[PhasePlan], limits: Limits) -> str:
    """Return why the way that differs from the chosen one in `field`, and least in all else, was passed over."""
    different = [way for way in ways if getattr(way, field) != getattr(chosen, field)]
    if not different:
        return "that was asked for"

    def likeness(way: PhasePlan) -> tuple[int, int]:
        return sum(getattr(way, name) == getattr(chosen, name) for name in CHOICES), -way.vram

    nearest = max(different, key=likeness)
    return f"{nearest.choice} {why_rejected(nearest, chosen, limits)}"


def why_rejected(way: PhasePlan, chosen: PhasePlan | None, limits: Limits) -> str:
    """Return why a way of running a phase was passed over, to follow its name in a sentence."""
    machine, budget = limits.machine, limits.budget
    if way.key in limits.refused:
        return "ran out of memory before"
    if not machine.is_cpu and way.vram > budget:
        return f"needs {amount(way.vram)} of the card, {amount(budget)} can be used"
    if way.ram > machine.ram_free:
        return f"needs {amount(way.ram)} of main memory, {amount(machine.ram_free)} can be used"
    return "was passed over" if chosen is None else _why_worse(way, chosen)


def _why_worse(way: PhasePlan, chosen: PhasePlan) -> str:
    """Return why a way that fits was passed over."""
    if way.compute != chosen.compute:
        return "computes in a lesser number type"
    if way.storage == "fp8" != chosen.storage:
        gained = "is no faster" if way.seconds >= chosen.seconds else "is hardly faster"
        return f"{gained} and rounds the weights"
    if way.seconds > chosen.seconds:
        return f"takes {duration(way.seconds)} instead of {duration(chosen.seconds)}"
    if way.fp8_matmul and not chosen.fp8_matmul:
        return "is no faster and rounds weights and inputs"
    if way.moved > chosen.moved:
        return f"is no faster and copies {amount(way.moved)} instead of {amount(chosen.moved)}"
    return "is no faster"


def too_large(phase: Phase, least: PhasePlan, limits: Limits) -> str:
    """Return a sentence on a phase that fits in no way, with the numbers of the leanest."""
    machine, parts = limits.machine, []
    if not machine.is_cpu and least.vram > limits.budget:
        parts.append(f"{amount(least.vram)} of the card, of which {amount(limits.budget)} can be used")
    if least.ram > machine.ram_free:
        parts.append(f"{amount(least.ram)} of main memory, of which {amount(machine.ram_free)} can be used")
    return f"{phase.name} does not fit {machine.name}: it needs at least {' and '.join(parts)}."


def duration(seconds: float) -> str:
    """Return a time for people: "0.4 s", "75 s", "12 min", "3.1 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
