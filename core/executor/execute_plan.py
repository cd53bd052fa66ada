"""Plan execution: the best plan is shown, tried, stepped down from where it fails, and compared with what happened."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

from ..accelerator import card_module
from ..main_memory import usable_cores
from ..parallel.cards import cards_of
from ..parallel.second_card import second_card
from ..parallel.ways import on_one_card
from ..planner.cost import offered_computes
from ..planner.machine import (
    ALLOCATOR_SETTINGS,
    allocator_of,
    allocator_settings,
    of_several_cards,
    read_machine,
)
from ..planner.measured import WORTH_MEASURING, PhaseTimes, with_rates
from ..planner.plan import plan
from ..planner.plan_types import PhaseMeasurement, gigabytes
from ..planner.report import after, table
from .model_cache import is_cached, uses
from .retry import (
    FailedPlans,
    Overflow,
    catch_out_of_memory,
    exclude_overflows,
    retry_after_overflow,
    retry_with_next_plan,
)

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle
    from ..host.base import Host
    from ..planner.machine import Machine
    from ..planner.phases import Phase
    from ..planner.plan_types import Compute, PhaseName, PhasePlan, Plan, Storage

log = logging.getLogger("piying")


Result = TypeVar("Result", covariant=True)


class Run(Protocol[Result]):
    """Work that a plan says how to do.

    Attributes:
        meter: measures its phases.
    """

    meter: Meter

    def attempt(self, plan: Plan) -> Result:
        """Do it; raises `PhaseOutOfMemoryError` where a phase does not fit."""


class OneCardRecord(TypedDict):
    """How a run went, fit for JSON: it is written into files and shown in the browser.

    `dtype` and `storage` are the sampling phase's, `computes` and `seconds` say of each phase what it computed in and
    how long it took.
    """

    device: str
    dtype: Compute
    storage: Storage
    computes: dict[PhaseName, Compute]
    plan: str
    predicted_seconds: float
    predicted_vram_gb: float
    seconds: dict[str, float]
    peak_vram_gb: float


class SecondRecord(TypedDict):
    """What a run did on its second card: which phases, in which order, and the largest of their peaks."""

    device: str
    phases: list[PhaseName]
    peak_vram_gb: float


class RunRecord(OneCardRecord, total=False):
    """The same, with `second` where phases ran on a second card."""

    second: SecondRecord


def execute_plan(
    phases: tuple[Phase, ...],
    handle: ModelHandle,
    host: Host,
    run: Run[Result],
    *,
    what_fits: Callable[[Machine], str] | None = None,
    logged_plans: set[str] | None = None,
    causes: Sequence[str] = (),
) -> tuple[Result, RunRecord]:
    """Do a run by the best plan that holds on this machine.

    Args:
        phases: what the run consists of, for the planner.
        handle: the user's wishes for number types and placement.
        what_fits: returns a sentence on what would fit, where nothing does.
        logged_plans: keys of plans that were logged for runs much like this one; they are not logged again, and this
            run's is added.
        causes: settings of this run from which values that are no numbers may come while it samples, and what to do
            about each, as sentences.

    Returns:
        The run's result, and a record of how it went.

    Raises:
        PiyingError: nothing fits; the text has the numbers, and the largest size or length that would. Or a result
            is not finite; the text has the phase, the likely cause and what to try.
    """
    device, cache = run.meter.device, host.cache_folder()
    logged = set() if logged_plans is None else logged_plans
    second = _second_card(phases, handle, host, logged)
    machine = with_rates(read_machine(host, second), cache, measure=False)
    if not _is_measured(machine):
        rough = plan(phases, machine, precision=handle.precision, memory=handle.memory)
        with thread_limit(device):
            machine = with_rates(machine, cache, measure=rough.fits and rough.seconds > WORTH_MEASURING)
    cards = cards_of(handle, host)
    machine = of_several_cards(machine, cards)
    if cards is not None:
        _say_once(cards.note, logged)
    if cards is not None and cards.count > 1 and not handle.family.can_share:
        log.info("%s", on_one_card(handle.family.title, cards))
    times = PhaseTimes(cache, machine, partial(_is_cached, handle.family.key))

    def next_plan(refused: frozenset[str], overflows: Collection[Overflow]) -> Plan:
        best = plan(
            exclude_overflows(phases, overflows),
            machine,
            refused,
            precision=handle.precision,
            memory=handle.memory,
            advise=None if what_fits is None else lambda: what_fits(machine),
            expected=times.expected,
        )
        if best.fits and best.key not in logged:
            log.info("%s", table(best, machine))
        return best

    failures = FailedPlans(cache / "failed_plans", machine, phases, machine.second)

    def attempt(overflows: Collection[Overflow]) -> tuple[Result, Plan]:
        return retry_with_next_plan(lambda refused: next_plan(refused, overflows), run.attempt, failures)

    def wider(overflow: Overflow) -> bool:
        phase = next(one for one in phases if one.name == overflow[0])
        return any(name != overflow[1] for name in offered_computes(phase, machine, handle.precision))

    loras = [f"LoRA {one.name!r} at strength {one.strength:g}: lower it, or leave it out." for one in handle.loras]
    limits = [(device, host.memory_rules()), *([(second, host.memory_rules(second))] if second else [])]
    with ExitStack() as settings:
        for one, rules in limits:
            settings.enter_context(memory_limit(one, rules.vram))
        settings.enter_context(compact_allocation(device))
        settings.enter_context(thread_limit(device))
        result, done = retry_after_overflow(attempt, wider, [*loras, *causes])
    if done.key not in logged:
        log.info("%s", after(done, run.meter.phases, machine))
    logged.add(done.key)
    times.add(done, phases, run.meter.phases)
    return result, _record(device, done, run.meter.phases)


def _second_card(phases: tuple[Phase, ...], handle: ModelHandle, host: Host, logged: set[str]) -> str:
    """Return the second card of a run, "" for none; why one that was named is not taken is said once."""
    if not any(phase.movable for phase in phases):
        return ""
    second, note = second_card(handle.second_device, host)
    _say_once(note, logged)
    return second


def _say_once(note: str, logged: set[str]) -> None:
    """Log a sentence, "" for none, unless that was done for a run much like this one."""
    if note and note not in logged:
        log.warning("%s", note)
        logged.add(note)


def _is_measured(machine: Machine) -> bool:
    return machine.rates is not None and (machine.second is None or machine.second.rates is not None)


def _is_cached(family: str, planned: PhasePlan) -> bool:
    return is_cached(f"{family}/{planned.component}", (planned.compute, planned.storage))


def _record(device: str, plan: Plan, measured: list[PhaseMeasurement]) -> RunRecord:
    # The last phase decodes, where there is more than one.
    sampled = plan.phases[-2] if len(plan.phases) > 1 else plan.phases[-1]
    moved = {phase.phase: phase.device for phase in plan.phases if phase.device}
    record: RunRecord = {
        "device": device,
        "dtype": sampled.compute,
        "storage": sampled.storage,
        "computes": {phase.phase: phase.compute for phase in plan.phases},
        "plan": plan.key,
        "predicted_seconds": round(plan.seconds, 1),
        "predicted_vram_gb": gigabytes(plan.peak_vram),
        "seconds": {phase.phase: round(phase.seconds, 3) for phase in measured},
        "peak_vram_gb": gigabytes(max((phase.vram for phase in measured if phase.phase not in moved), default=0)),
    }
    if moved:
        (second,) = set(moved.values())
        peak = max((phase.vram for phase in measured if phase.phase in moved), default=0)
        record["second"] = {"device": second, "phases": list(moved), "peak_vram_gb": gigabytes(peak)}
    return record


@contextmanager
def memory_limit(device: str, allowed: int | None) -> Iterator[None]:
    """Hold torch to `allowed` bytes of the card inside the block; None leaves it all of the card.

    The limit is one of the process, so it is undone: what runs next in the process may be another pack's.
    """
    module = card_module(device)
    if allowed is None or module is None:
        yield
        return
    total = module.get_device_properties(device).total_memory
    # torch tells its limit since 2.7; before that it is taken for the default, all of the card.
    get_limit = getattr(module, "get_per_process_memory_fraction", lambda device: 1.0)
    before = get_limit(device)
    module.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    try:
        yield
    finally:
        module.set_per_process_memory_fraction(before, device)


@contextmanager
def compact_allocation(device: str) -> Iterator[None]:
    """Have torch's allocator leave fewer gaps on the card inside the block, where nobody else has set it up.

    Its settings are those of the process, so they are undone, as the limit is. What was allocated under other ones
    stays good.
    """
    import torch

    if not device.startswith("cuda") or allocator_settings():
        yield
        return
    # The name since torch 2.10, and the one before.
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    torch.cuda.empty_cache()  # blocks of the old kind would be of no use, and stay
    change(ALLOCATOR_SETTINGS[allocator_of("")])
    try:
        yield
    finally:
        # Each change begins with the defaults of all settings but this one.
        change("expandable_segments:False")


@contextmanager
def thread_limit(device: str) -> Iterator[None]:
    """Hold torch to the cores that this process may keep busy inside the block, where it computes on the CPU.

    torch asks the machine how many there are: in a container with a quota of two its 64 threads wait for each other.
    """
    import torch

    before, cores = torch.get_num_threads(), usable_cores()
    if device != "cpu" or before <= cores:
        yield
        return
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Meter:
    """Measures the phases of one run.

    Attributes:
        device: the torch device the run computes on; phases on the second card are measured there.
        phases: measurements, in the order in which the phases ended.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.phases: list[PhaseMeasurement] = []

    @contextmanager
    def phase(self, choice: PhasePlan) -> Iterator[None]:
        """Measure what happens inside the block.

        Raises:
            PhaseOutOfMemoryError: memory ran out inside the block; its key is that of `choice`.
        """
        import psutil

        device = choice.device or self.device
        card = card_module(device)
        start, before = time.perf_counter(), replace(uses)
        if card is not None:
            card.reset_peak_memory_stats(device)
        with catch_out_of_memory(choice.key):
            yield
        seconds = time.perf_counter() - start
        peak = 0 if card is None else card.max_memory_allocated(device)
        ram = int(psutil.Process().memory_info().rss)
        loads = uses.loads - before.loads if uses.requests > before.requests else None
        loading = uses.seconds - before.seconds
        self.phases.append(PhaseMeasurement(choice.phase, seconds, peak, ram, loads, loading))
