"""A plan carried out: made, shown, tried, stepped down from, and compared with what happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import PiyingError
from ..planner.machine import read_machine
from ..planner.plan import plan
from ..planner.plan_types import gigabytes
from ..planner.report import after, table
from .measure import Meter
from .retry import FailedPlans, Overflow, retry_after_overflow, retry_with_next_plan, without

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle
    from ..host.base import Host
    from ..planner.machine import Machine
    from ..planner.phases import Phase
    from ..planner.plan_types import Plan

log = logging.getLogger("piying")


Result = TypeVar("Result", covariant=True)


class Run(Protocol[Result]):
    """Work that a plan tells how to do."""

    def attempt(self, plan: Plan) -> Result:
        """Do it; raises `PhaseOutOfMemoryError` where a phase does not fit."""


def execute_plan(
    work: tuple[Phase, ...],
    handle: ModelHandle,
    host: Host,
    make_run: Callable[[str, Meter], Run[Result]],
    advise: Callable[[Machine], str] | None = None,
    told: set[str] | None = None,
) -> tuple[Result, dict[str, Any]]:
    """Do `work` by the best plan that holds on this machine.

    Args:
        work: the phases.
        handle: the user's wishes for number types and placement.
        host: the program around the pack.
        make_run: gives the run, from the device and the meter it reports to.
        advise: asked what would fit, where nothing does.
        told: the plans that were shown before, in pieces of work that are much alike; one of them is not shown again.

    Returns:
        What the run gives, and a record of how it ran, fit for JSON.

    Raises:
        PiyingError: nothing fits; the text has the numbers, and the largest size or length that would.
    """
    machine = read_machine(host)
    told = set() if told is None else told
    device = host.device()
    _limit(device, host)
    meter = Meter(device)
    run = make_run(device, meter)

    def next_plan(refused: frozenset[str], overflows: Collection[Overflow]) -> Plan:
        chosen = plan(
            without(work, overflows),
            machine,
            refused,
            precision=handle.precision,
            memory=handle.memory,
            advise=None if advise is None else lambda: advise(machine),
        )
        if chosen.fits and chosen.key not in told:
            log.info("%s", table(chosen, machine))
        return chosen

    failures = FailedPlans(host.cache_folder() / "failed_plans.json", machine, work)

    def attempt(overflows: Collection[Overflow]) -> tuple[Result, Plan]:
        return retry_with_next_plan(lambda refused: next_plan(refused, overflows), run.attempt, failures, _too_large)

    result, chosen = retry_after_overflow(attempt)
    if chosen.key not in told:
        log.info("%s", after(chosen, meter.phases, machine))
    told.add(chosen.key)
    sampled = chosen.phases[-2] if len(chosen.phases) > 1 else chosen.phases[-1]
    return result, {
        "device": device,
        "dtype": sampled.compute,
        "storage": sampled.storage,
        "computes": {phase.phase: phase.compute for phase in chosen.phases},
        "plan": chosen.key,
        "predicted_seconds": round(chosen.seconds, 1),
        "predicted_vram_gb": gigabytes(chosen.peak_vram),
        "seconds": {phase.phase: round(phase.seconds, 3) for phase in meter.phases},
        "peak_vram_gb": gigabytes(max((phase.vram for phase in meter.phases), default=0)),
    }


def _limit(device: str, host: Host) -> None:
    """Hold torch to the part of the card that the user allows."""
    import torch

    allowed = host.memory_rules().vram
    if allowed is not None and device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)


def _too_large(tried: Plan) -> PiyingError:
    return PiyingError(" ".join(tried.reasons))
