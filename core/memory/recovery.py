"""Out of memory is an event: free the failed attempt, take the next cheaper plan, go on."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from ..errors import PiyingError
from .failures import Failures

if TYPE_CHECKING:
    from .planned import Plan

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


def with_plans(
    next_plan: Callable[[frozenset[str]], Plan],
    attempt: Callable[[Plan], Result],
    failures: Failures,
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
