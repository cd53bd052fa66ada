"""Retries: out of memory takes the next cheaper plan, an fp16 overflow the next wider number type."""

from __future__ import annotations

import gc
import json
import logging
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..accelerator import empty_cache
from ..disk_cache import DiskCache, entry_name
from ..errors import PiyingError
from ..files.dtypes import all_finite
from ..main_memory import is_out_of_memory
from ..quantization.registry import weight_format

if TYPE_CHECKING:
    import torch

    from ..planner.machine import Machine
    from ..planner.phases import Phase
    from ..planner.plan_types import Compute, PhasePlan, Plan

log = logging.getLogger("piying")


Result = TypeVar("Result")


@dataclass
class Retries:
    """How often this process ran out of memory and went on with a cheaper plan."""

    out_of_memory: int = 0


retries = Retries()


class PhaseOutOfMemoryError(Exception):
    """A phase of a run did not fit.

    Attributes:
        key: the `PhasePlan.key` of the choices that did not fit.
        is_final: whether the run cannot go on with another plan: ranks that wait for each other then wait in vain.
    """

    def __init__(self, key: str, detail: str, is_final: bool = False) -> None:
        super().__init__(f"{key}: {detail}")
        self.key, self.is_final = key, is_final


@contextmanager
def catch_out_of_memory(key: str) -> Iterator[None]:
    """Turn running out of memory inside the block into a `PhaseOutOfMemoryError` that holds no tensors.

    Tensors of the failed attempt live in the frames of the traceback: those are cleared, or the
    next attempt would start on a full card.
    """
    detail = None
    try:
        yield
    except (RuntimeError, MemoryError, OSError, ImportError, SystemError, PiyingError) as error:
        # Files are mapped and libraries imported inside too, and a node turns what libraries raise into a PiyingError.
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
            retries.out_of_memory += 1
            if error.is_final:
                failures.add(failed)
                raise PiyingError(
                    f"Out of memory on several cards: {error}. Run it again: the next cheaper plan is taken then."
                ) from None
            log.warning("Out of memory (%s). Freeing everything and going on with a cheaper plan.", error)
        free_memory()
        refused |= {failed}
        failures.add(failed)


def free_memory() -> None:
    """Release what nothing refers to any more: Python's reference cycles, then torch's cache of the card."""
    gc.collect()
    empty_cache()


OVERFLOWING = "fp16"  # ends at 65504; bf16 has the range of fp32
Overflow = tuple[str, str]  # a phase and the number type it overflowed in
FiniteCheck = Callable[["torch.Tensor", str], None]

PHASE_WORDS: Mapping[str, str] = {
    "encode": "Encoding the prompt",
    "encode_2": "Encoding the prompt",
    "encode_image": "Looking at the frames",
    "condition": "Preparing the task",
    "sample": "Sampling",
    "sample_2": "Sampling",
    "decode": "Decoding",
}


class NonFiniteError(Exception):
    """A phase's result holds NaN or infinity: it is a black picture, whatever was asked for.

    Attributes:
        choice: how the phase was run.
        where: in its result, in a few words.
    """

    def __init__(self, choice: PhasePlan, where: str = "") -> None:
        super().__init__(f"{choice.phase}: {choice.component} overflows in {choice.compute}")
        self.choice, self.where = choice, where

    @property
    def overflow(self) -> Overflow:
        """The phase and its number type."""
        return self.choice.phase, self.choice.compute

    def explained(self, causes: Sequence[str]) -> PiyingError:
        """Return the error for people.

        Args:
            causes: what may have caused it and what to do about that, the likeliest first; each ends with a full stop.
        """
        choice = self.choice
        # Latents may be finite and yet too large for what decodes them.
        likely = [*causes] if choice.phase in ("sample", "sample_2", "decode") else []
        if choice.compute == OVERFLOWING:
            likely.append("fp16 ends at 65504: set precision to bf16 or fp32.")
        stored = weight_format(choice.storage)
        if stored is not None and stored.can_cast:
            likely.append(
                f"weights rounded to {choice.storage}: set memory to streamed, which keeps them as they are."
            )
        part = choice.component.replace("_", " ")
        likely.append(
            f"the {part}'s file is damaged or was made for another model: fetch it again, or choose another."
        )
        return PiyingError(
            f"{PHASE_WORDS.get(choice.phase, choice.phase)}: the {part} in {choice.compute} gave values that are no "
            f"numbers (NaN or infinity){f' {self.where}' if self.where else ''}. Nothing is saved. "
            f"Likely cause: {' Or else '.join(likely)}"
        )


def finite_check(choice: PhasePlan) -> FiniteCheck:
    """Return a check of a phase's results, in every number type; one that is not finite raises `NonFiniteError`.

    An infinity anywhere inside a network becomes a NaN at its next norm, and that spreads to the result. The check's
    second argument says where in the result it looks: "at step 3 of 20".
    """

    def check(result: torch.Tensor, where: str = "") -> None:
        if not all_finite(result):
            raise NonFiniteError(choice, where)

    return check


def exclude_overflows(phases: tuple[Phase, ...], overflows: Collection[Overflow]) -> tuple[Phase, ...]:
    """Return the phases without the number types in which they overflowed."""

    def usable(phase: Phase, types: tuple[Compute, ...]) -> tuple[Compute, ...]:
        return tuple(name for name in types if (phase.name, name) not in overflows)

    return tuple(
        replace(phase, computes=usable(phase, phase.computes), on_cpu=usable(phase, phase.on_cpu)) for phase in phases
    )


def retry_after_overflow(
    attempt: Callable[[Collection[Overflow]], Result], wider: Callable[[Overflow], bool], causes: Sequence[str]
) -> Result:
    """Return what `attempt` returns, called again after each overflow of fp16 with all that there were.

    Args:
        attempt: raises `NonFiniteError` where a result is not finite.
        wider: whether a phase may be computed in a wider type than the one it overflowed in.
        causes: see `NonFiniteError.explained`.

    Raises:
        PiyingError: a result is not finite in a type that has the range of fp32, or there is no wider one.
    """
    overflows: list[Overflow] = []
    while True:
        try:
            return attempt(overflows)
        except NonFiniteError as error:
            if error.overflow[1] != OVERFLOWING or error.overflow in overflows or not wider(error.overflow):
                raise error.explained(causes) from error
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
        second: the second card, whose failures are its own.
    """

    folder: Path
    machine: Machine
    phases: tuple[Phase, ...]
    second: Machine | None = None

    def load(self) -> frozenset[str]:
        """Return the keys of choices that failed here before with no more of their card free than now."""
        cards = [card for card in (self.machine, self.second) if card is not None]
        return frozenset(
            key
            for card in cards
            for key, free in self._read(card).items()
            if self._card_of(key) is card and card.vram_free < free * RETRY_WITH_ROOM
        )

    def add(self, key: str) -> None:
        """Store a choice that failed."""
        card = self._card_of(key)
        failed = {**self._read(card), key: card.vram_free}
        self._cache.put(self._entry(card), json.dumps(failed).encode())

    def _card_of(self, key: str) -> Machine:
        """Return the card that a choice is for."""
        second = self.second
        return second if second is not None and key.endswith(f", on {second.device}") else self.machine

    @property
    def _cache(self) -> DiskCache:
        return DiskCache(self.folder, ".json", max_entries=MAX_ENTRIES)

    def _entry(self, card: Machine) -> str:
        machine = [card.name, card.vram_total]
        return entry_name({"machine": machine, "phases": repr(self.phases)})

    def _read(self, card: Machine) -> dict[str, int]:
        data = self._cache.get(self._entry(card))
        return {} if data is None else json.loads(data)
