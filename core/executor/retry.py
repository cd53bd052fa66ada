"""Retries: out of memory takes the next cheaper plan, an fp16 overflow the next wider number type."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import PiyingError

if TYPE_CHECKING:
    import torch

    from ..planner.machine import Machine
    from ..planner.phases import Phase
    from ..planner.plan_types import PhasePlan, Plan

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
def guarded(key: str) -> Iterator[None]:
    """Turn running out of memory inside the block into a `PhaseOutOfMemoryError`, its tensors let go.

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
    too_large: Callable[[Plan], PiyingError],
) -> tuple[Result, Plan]:
    """Carry out the best plan, and the next one after each that runs out of memory.

    Args:
        next_plan: the best plan without the phase choices given.
        attempt: carries a plan out; raises `PhaseOutOfMemoryError` where a phase does not fit.
        failures: the choices that failed before on this machine and for this work.
        too_large: the error to raise when no plan is left.

    Raises:
        PiyingError: nothing fits.
    """
    refused = failures.load()
    while True:
        plan = next_plan(refused)
        if not plan.fits:
            raise too_large(plan)
        try:
            return attempt(plan), plan
        except PhaseOutOfMemoryError as error:
            failed = error.key
            log.warning("Out of memory (%s). Freeing everything and going on with a cheaper plan.", error)
        free()
        refused |= {failed}
        failures.add(failed)


def free() -> None:
    """Give back what nothing refers to any more: Python's cycles, then torch's cache of the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


NARROW = "fp16"  # ends at 65504; bf16 has the range of fp32
Overflow = tuple[str, str]  # a phase and the number type it overflowed in


class PhaseOverflowError(Exception):
    """A phase's result is not finite.

    Attributes:
        overflow: the phase and its number type.
    """

    def __init__(self, choice: PhasePlan) -> None:
        super().__init__(f"{choice.phase}: {choice.component} overflows in {choice.compute}")
        self.overflow: Overflow = (choice.phase, choice.compute)


def check_of(choice: PhasePlan) -> Callable[[torch.Tensor], None]:
    """Return what a phase shows its results to; in fp16 one that is not finite raises `PhaseOverflowError`.

    An infinity anywhere inside a network becomes a NaN at its next norm, and that spreads to the result.
    """

    def check(result: torch.Tensor) -> None:
        if choice.compute == NARROW and not result.isfinite().all():
            raise PhaseOverflowError(choice)

    return check


def without(work: tuple[Phase, ...], overflows: Collection[Overflow]) -> tuple[Phase, ...]:
    """Return the phases with the number types in which none of them overflowed."""

    def kept(phase: Phase, types: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in types if (phase.name, name) not in overflows)

    return tuple(
        replace(phase, computes=kept(phase, phase.computes), on_cpu=kept(phase, phase.on_cpu)) for phase in work
    )


def retry_after_overflow(attempt: Callable[[Collection[Overflow]], Result]) -> Result:
    """Return what `attempt` gives, called again after each overflow with all that there were."""
    overflows: list[Overflow] = []
    while True:
        try:
            return attempt(overflows)
        except PhaseOverflowError as error:
            log.warning("%s: it is computed again in a wider number type.", error)
            overflows.append(error.overflow)
        free()  # what the failed attempt held went with its exception


LIMIT = 200  # entries in the file, the oldest of which go
# A choice that failed is tried again where this much more of the card is free than when it failed.
MORE_ROOM = 1.05


@dataclass(frozen=True)
class FailedPlans:
    """The phase choices that ran out of memory for one machine and one work.

    Attributes:
        path: the file they are kept in; it may be deleted at any time.
        machine: where they failed.
        work: what failed.
    """

    path: Path
    machine: Machine
    work: tuple[Phase, ...]

    def load(self) -> frozenset[str]:
        """Return the keys of choices that failed here before with no more of the card free than now."""
        entries = self._read().get(self._key, {})
        room = self.machine.vram_free
        return frozenset(key for key, free in entries.items() if isinstance(free, int) and room < free * MORE_ROOM)

    def add(self, key: str) -> None:
        """Remember a choice."""
        entries = self._read()
        mine = entries.pop(self._key, {})
        entries[self._key] = {**mine, key: self.machine.vram_free}
        self._write(dict(list(entries.items())[-LIMIT:]))

    @property
    def _key(self) -> str:
        work = hashlib.sha256(repr(self.work).encode()).hexdigest()[:16]
        return f"{self.machine.name} {self.machine.vram_total} {work}"

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(entries, dict):
            return {}
        return {key: value for key, value in entries.items() if isinstance(value, dict)}

    def _write(self, entries: dict[str, dict[str, Any]]) -> None:
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(entries, indent=1), encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            log.debug("%s cannot be written (%s): the plan may be tried again.", self.path, error)
