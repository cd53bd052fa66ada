"""A phase whose numbers grow too large for fp16 is done again in a wider type."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from .recovery import free

if TYPE_CHECKING:
    import torch

    from .planned import PhasePlan
    from .work import Phase

log = logging.getLogger("piying")
Result = TypeVar("Result")

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


def carried(attempt: Callable[[Collection[Overflow]], Result]) -> Result:
    """Return what `attempt` gives, called again after each overflow with all that there were."""
    overflows: list[Overflow] = []
    while True:
        try:
            return attempt(overflows)
        except PhaseOverflowError as error:
            log.warning("%s: it is computed again in a wider number type.", error)
            overflows.append(error.overflow)
        free()  # what the failed attempt held went with its exception
