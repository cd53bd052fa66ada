"""Retries: out of memory takes the next cheaper plan, an fp16 overflow the next wider number type."""

from __future__ import annotations

import gc
import json
import logging
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..disk_cache import DiskCache, entry_name
from ..errors import PiyingError

if TYPE_CHECKING:
    import torch

    from ..planner.machine import Machine
    from ..planner.phases import Phase
    from ..planner.plan_types import Compute, PhasePlan, Plan

log = logging.getLogger("piying")


Result = TypeVar("Result")

# What allocators say besides raising torch.OutOfMemoryError: cuBLAS and cuDNN handles, the host's
# allocator on Linux and on Windows, and pinned memory.
MESSAGES = (
    "out of memory",
    "ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)


class PhaseOutOfMemoryError(Exception):
    """A phase of a run did not fit.

    Attributes:
        key: the `PhasePlan.key` of the choices that did not fit.
    """

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key}: {detail}")
        self.key = key


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception, or what caused it, says that memory ran out, on the card or in the machine."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def catch_out_of_memory(key: str) -> Iterator[None]:
    """Turn running out of memory inside the block into a `PhaseOutOfMemoryError` that holds no tensors.

    Tensors of the failed attempt live in the frames of the traceback: those are cleared, or the
    next attempt would start on a full card.
    """
    detail = None
    try:
        yield
    except (RuntimeError, MemoryError, PiyingError) as error:
        # Reading files turns what libraries raise into a PiyingError.
        if not is_out_of_memory(error):
            raise
        detail = str(error).strip().partition("\n")[0] or type(error).__name__
        traceback.clear_frames(error.__traceback__)
    if detail is not None:
        raise PhaseOutOfMemoryError(key, detail)


def retry_with_next_plan(
    next_plan: Callable[[frozenset[str]], Plan],
    attempt: Callable[[Plan], Result],
    failures: FailedPlans,
) -> tuple[Result, Plan]:
    """Execute the best plan, and the next one after each that runs out of memory.

    Args:
        next_plan: returns the best plan without the phase choices it is given.
        attempt: executes a plan; raises `PhaseOutOfMemoryError` where a phase does not fit.
        failures: the choices that failed before on this machine and for these phases.

    Raises:
        PiyingError: no plan is left that fits.
    """
    refused = failures.load()
    while True:
        plan = next_plan(refused)
        if not plan.fits:
            raise PiyingError(" ".join(plan.reasons))
        try:
            return attempt(plan), plan
        except PhaseOutOfMemoryError as error:
            failed = error.key
            log.warning("Out of memory (%s). Freeing everything and going on with a cheaper plan.", error)
        free_memory()
        refused |= {failed}
        failures.add(failed)


def free_memory() -> None:
    """Release what nothing refers to any more: Python's reference cycles, then torch's cache of the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


OVERFLOWING = "fp16"  # ends at 65504; bf16 has the range of fp32
Overflow = tuple[str, str]  # a phase and the number type it overflowed in


class PhaseOverflowError(Exception):
    """A phase's result is not finite.

    Attributes:
        overflow: the phase and its number type.
    """

    def __init__(self, choice: PhasePlan) -> None:
        super().__init__(f"{choice.phase}: {choice.component} overflows in {choice.compute}")
        self.overflow: Overflow = (choice.phase, choice.compute)


def overflow_check(choice: PhasePlan) -> Callable[[torch.Tensor], None]:
    """Return a check of a phase's results; in fp16 one that is not finite raises `PhaseOverflowError`.

    An infinity anywhere inside a network becomes a NaN at its next norm, and that spreads to the result.
    """

    def check(result: torch.Tensor) -> None:
        if choice.compute == OVERFLOWING and not result.isfinite().all():
            raise PhaseOverflowError(choice)

    return check


def exclude_overflows(phases: tuple[Phase, ...], overflows: Collection[Overflow]) -> tuple[Phase, ...]:
    """Return the phases without the number types in which they overflowed."""

    def usable(phase: Phase, types: tuple[Compute, ...]) -> tuple[Compute, ...]:
        return tuple(name for name in types if (phase.name, name) not in overflows)

    return tuple(
        replace(phase, computes=usable(phase, phase.computes), on_cpu=usable(phase, phase.on_cpu)) for phase in phases
    )


def retry_after_overflow(attempt: Callable[[Collection[Overflow]], Result]) -> Result:
    """Return what `attempt` returns, called again after each overflow with all that there were."""
    overflows: list[Overflow] = []
    while True:
        try:
            return attempt(overflows)
        except PhaseOverflowError as error:
            log.warning("%s: it is computed again in a wider number type.", error)
            overflows.append(error.overflow)
        free_memory()  # outside the handler: what the failed attempt held went with its exception


MAX_ENTRIES = 200  # pairs of a machine and a piece of work
# A choice that failed is tried again where this much more of the card is free than when it failed.
RETRY_WITH_ROOM = 1.05


@dataclass(frozen=True)
class FailedPlans:
    """The phase choices that ran out of memory on one machine in one piece of work, on disk.

    Attributes:
        folder: of the disk cache; it may be deleted at any time.
        machine: where they failed.
        phases: what they failed in.
    """

    folder: Path
    machine: Machine
    phases: tuple[Phase, ...]

    def load(self) -> frozenset[str]:
        """Return the keys of choices that failed here before with no more of the card free than now."""
        room = self.machine.vram_free
        return frozenset(key for key, free in self._read().items() if room < free * RETRY_WITH_ROOM)

    def add(self, key: str) -> None:
        """Store a choice that failed."""
        failed = {**self._read(), key: self.machine.vram_free}
        self._cache.put(self._entry, json.dumps(failed).encode())

    @property
    def _cache(self) -> DiskCache:
        return DiskCache(self.folder, ".json", max_entries=MAX_ENTRIES)

    @property
    def _entry(self) -> str:
        machine = [self.machine.name, self.machine.vram_total]
        return entry_name({"machine": machine, "phases": repr(self.phases)})

    def _read(self) -> dict[str, int]:
        data = self._cache.get(self._entry)
        return {} if data is None else json.loads(data)
