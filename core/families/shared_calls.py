"""Shared calls: the calls of a transformer by a pipeline of diffusers, each made together with the other ranks.

Rank 0 runs the pipeline, with its steps, noise and guidance, and hands over what the transformer is called with. By
prompts, each rank predicts for some of those that the pipeline has put into one batch, in a pass for each. By
sequence, each rank calls the transformer with all of it, and takes its share of the tokens through the blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .shared_sampling import OVER, SamplingJob, Sharing, TensorSlot, shared_sampling

if TYPE_CHECKING:
    from ..parallel.cards import Way
    from ..parallel.group import Group
    from ..planner.plan_types import PhasePlan
    from .diffusion_model import ModelParts

# The forward pass of a transformer.
Call = Callable[..., Any]


class KeptTensor:
    """Stands for a tensor that was in the same place of the call before."""


@dataclass
class CallArguments:
    """Arguments of one call after the other, as rank 0 gives them to the others.

    What does not change from step to step, such as the prompts' embeddings, is sent once.
    """

    group: Group
    _before: list[torch.Tensor] = field(default_factory=list)

    def give(self, arguments: Any) -> None:
        """Give all other ranks what a call is made with, on rank 0."""
        tensors: list[torch.Tensor] = []
        sent: list[torch.Tensor] = []

        def slot(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            place = len(tensors)
            tensors.append(value)
            if place < len(self._before) and self._before[place] is value:
                return KeptTensor()
            sent.append(value)
            return TensorSlot.of(value)

        self.group.tell(_each(arguments, slot))
        for tensor in sent:
            self.group.broadcast(tensor, source=0)
        self._before = tensors

    def take(self, told: Any) -> Any:
        """Return what a call is made with, of what rank 0 has told, on the others."""
        tensors: list[torch.Tensor] = []

        def filled(value: Any) -> Any:
            if isinstance(value, KeptTensor):
                tensors.append(self._before[len(tensors)])
            elif isinstance(value, TensorSlot):
                tensors.append(self.group.broadcast(value.empty(self.group.device), source=0))
            else:
                return value
            return tensors[-1]

        found, self._before = _each(told, filled), tensors
        return found


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return lists, tuples and dicts with another thing in place of each that is in them."""
    if isinstance(value, dict):
        return {name: _each(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each(one, change) for one in value)
    return change(value)


def row_of(value: Any, row: int) -> Any:
    """Return what an argument is for one prompt of a batch: tensors and lists have a row for each."""
    return value[row : row + 1] if isinstance(value, torch.Tensor | list) else value


@dataclass(frozen=True)
class CallsJob(SamplingJob):
    """What the other ranks do while a pipeline of rank 0 calls its transformer."""

    @staticmethod
    @abstractmethod
    def tokens_split(transformer: Any, group: Group) -> AbstractContextManager[None]:
        """Have each rank take its share of the tokens through the blocks inside the `with` block."""

    def take_part(self, transformer: Any, group: Group) -> None:
        """Make this rank's part of each call until rank 0 says that all are made."""
        arguments = CallArguments(group)
        with self.together(transformer, transformer, group) as call:
            while (told := group.hear()) != OVER:
                args, named = arguments.take(told)
                call(*args, **named)

    @contextmanager
    def together(self, transformer: Any, own: Call, group: Group) -> Iterator[Call]:
        """Yield what calls a transformer with all ranks, which do the same.

        Args:
            own: calls it in this process.
        """
        if self.way == "prompts":
            yield partial(_by_prompts, own, int(transformer.out_channels), group)
            return
        with self.tokens_split(transformer, group):
            yield own


def _by_prompts(own: Call, channels: int, group: Group, *args: Any, **named: Any) -> tuple[Any]:
    """Return what a transformer makes of a batch, where each rank makes some of its rows.

    Args:
        own: calls it in this process; its first argument has a row for each prompt [channels, …].
        channels: of what it makes, which is otherwise shaped like the rows.
    """
    batch = args[0]
    made = {}
    for row in range(group.rank, len(batch), group.size):
        one = own(
            *(row_of(value, row) for value in args), **{name: row_of(value, row) for name, value in named.items()}
        )
        made[row] = one[0][0]
    rows = []
    for row, given in enumerate(batch):
        result = made[row] if row in made else given.new_empty(channels, *given.shape[1:])
        rows.append(group.broadcast(result, source=row % group.size))
    return (torch.stack(rows) if isinstance(batch, torch.Tensor) else rows,)


@dataclass
class CallSharing(Sharing):
    """Rank 0's side of a job."""

    job: CallsJob = field(kw_only=True)

    @contextmanager
    def calls(self, transformer: Any) -> Iterator[None]:
        """Have the transformer's calls made together with the other ranks inside the `with` block."""
        own, arguments = transformer.forward, CallArguments(self.group)
        with self.job.together(transformer, own, self.group) as call:

            def shared(*args: Any, **named: Any) -> Any:
                with self.asking():
                    arguments.give((args, named))
                    return call(*args, **named)

            transformer.forward = shared
            try:
                yield
            finally:
                del transformer.forward  # the class has its own


def calls_shared(
    kind: type[CallsJob], parts: ModelParts, choice: PhasePlan, way: Way, *, group: Group
) -> AbstractContextManager[CallSharing]:
    """Have the other ranks at hand inside the `with` block, for the calls of a transformer.

    Args:
        kind: of the family's job.
        choice: how the phase runs.
        way: how it is shared.

    Raises:
        RankLostError: one of them is lost.
        PhaseOutOfMemoryError: see `shared_sampling`.
    """
    job = kind.of(parts, choice, way)
    return shared_sampling(CallSharing(group, job=job), job)
