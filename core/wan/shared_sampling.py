"""Shared sampling: rank 0 asks the others of its group for their part of each step's predictions.

By prompts, each rank predicts for some of them and rank 0 gets all; every pass has the shapes that it has alone, so
that it has the same bits. By sequence, each rank takes its share of the tokens through every block. Steps, noise and
guidance are rank 0's, which hands over the latents of each step: nothing of a rank's can drift from the others'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from ..families.shared_sampling import OVER, SamplingJob, Sharing, TensorSlot
from ..parallel.group import Group
from .attention import Attention
from .context import Context, riflex_enabled
from .guidance import Guidance
from .nag import nag_enabled
from .prediction import Prediction, Predictor, Step
from .split_attention import attention_split
from .step_cache import StepCache, largest_change
from .transformer import block_order

if TYPE_CHECKING:
    from ..parallel.cards import Way
    from .transformer import Transformer


@dataclass(frozen=True)
class Inputs:
    """What every step of a job is predicted from; the tensors themselves follow it."""

    embeds: tuple[TensorSlot, ...]
    control: TensorSlot | None
    picture: TensorSlot | None
    in_front: int
    batched: bool


@dataclass(frozen=True)
class SharedStep:
    """One step, whose state and timestep follow it."""

    step: Step
    state: TensorSlot
    when: TensorSlot


@dataclass(frozen=True)
class VideoJob(SamplingJob):
    """What the other ranks do while rank 0 takes the steps of a transformer of Wan.

    Attributes:
        frames: latent frames of the video.
        forecast_below: see `StepCache.threshold`; None without one.
    """

    attention: Attention
    guidance: Guidance
    context: Context
    frames: int
    forecast_below: float | None

    def blocks(self, transformer: Transformer) -> Sequence[torch.nn.Module]:
        """Return the transformer's blocks in the order in which they run."""
        return block_order(transformer)

    def take_part(self, transformer: Transformer, group: Group) -> None:
        """Make this rank's part of the predictions until rank 0 says that all are made."""
        with (
            self.attention.enabled(self.choice.compute),
            nag_enabled(transformer, self.guidance) as nag,
            riflex_enabled(transformer, self.context, self.frames),
            ExitStack() as stack,
        ):
            given = group.hear()
            if given == OVER:
                return
            own = _received(given, transformer, group)
            own.guidance, own.nag = self.guidance, nag
            if self.forecast_below is not None:
                own.cache = StepCache(self.forecast_below)
            self._predict_until_over(own, group, stack)

    def _predict_until_over(self, own: Prediction, group: Group, stack: ExitStack) -> None:
        sharing = stack.enter_context(_sharing(own, group, self.way))
        while (asked := group.hear()) != OVER:
            step = cast(SharedStep, asked)
            state, when = (group.broadcast(slot.empty(group.device), source=0) for slot in (step.state, step.when))
            sharing.flows(step.step, state, when)


def _received(given: Inputs, transformer: Transformer, group: Group) -> Prediction:
    def take(slot: TensorSlot | None) -> torch.Tensor | None:
        return None if slot is None else group.broadcast(slot.empty(group.device), source=0)

    embeds = [cast(torch.Tensor, take(slot)) for slot in given.embeds]
    control, picture = take(given.control), take(given.picture)
    return Prediction(
        transformer,
        embeds,
        control,
        picture,
        in_front=given.in_front,
        batched=given.batched,
        check_cancelled=group.check,
    )


@dataclass
class _ByPrompts:
    """Predictions of which each rank makes some."""

    own: Prediction
    group: Group

    def flows(self, step: Step, state: torch.Tensor, when: torch.Tensor) -> list[torch.Tensor]:
        """Return the flow for each branch of a step, on all ranks."""
        rank, size = self.group.rank, self.group.size
        if self.own.cache is not None:
            working = range(min(size, len(step.branches)))
            # Those without a prediction have nothing to compare.
            self.own.cache.compare = lambda new, old: self.group.largest(largest_change(new, old), working)
        made = iter(self.own.flows_of(step, state, when, step.branches[rank::size]))
        channels = int(self.own.transformer.config["out_channels"])
        shape = (state.shape[0], channels, *state.shape[2:])
        found = []
        for number in range(len(step.branches)):
            flow = next(made) if number % size == rank else state.new_empty(shape)
            found.append(self.group.broadcast(flow, source=number % size))
        return found


@dataclass
class _BySequence:
    """Predictions of which each rank makes a share of the tokens."""

    own: Prediction
    group: Group

    def __post_init__(self) -> None:
        if self.own.cache is not None:
            self.own.cache.compare = self._largest_change

    def flows(self, step: Step, state: torch.Tensor, when: torch.Tensor) -> list[torch.Tensor]:
        """Return the flow for each branch of a step, on all ranks."""
        return self.own.flows(step, state, when)

    def _largest_change(self, new: Sequence[torch.Tensor], old: Sequence[torch.Tensor]) -> float:
        """Return what `largest_change` does, of the tokens of all ranks."""
        pairs = zip(new, old, strict=True)
        own = [float(part) for now, then in pairs for part in ((now - then).abs().sum(), then.abs().sum())]
        sums = self.group.summed(own)
        return max(change / max(before, 1e-12) for change, before in zip(sums[::2], sums[1::2], strict=True))


@contextmanager
def _sharing(own: Prediction, group: Group, way: Way) -> Iterator[_ByPrompts | _BySequence]:
    """Yield what makes predictions together with the other ranks, which do the same."""
    if way == "prompts":
        yield _ByPrompts(own, group)
        return
    with attention_split(own.transformer, group) as own.split:
        yield _BySequence(own, group)


@dataclass
class VideoSharing(Sharing):
    """Rank 0's side of a job.

    Attributes:
        way: how the predictions are shared.
    """

    way: Way = "off"
    _stack: ExitStack = field(default_factory=ExitStack)
    _shared: _ByPrompts | _BySequence | None = None

    def begin(self, own: Prediction) -> Predictor:
        """Give the other ranks what the steps are predicted from, and return what asks them for their part."""
        tensors = [*own.embeds, *(one for one in (own.control, own.picture) if one is not None)]
        given = Inputs(
            tuple(map(TensorSlot.of, own.embeds)),
            None if own.control is None else TensorSlot.of(own.control),
            None if own.picture is None else TensorSlot.of(own.picture),
            own.in_front,
            own.batched,
        )
        with self.asking():
            self.group.tell(given)
            for tensor in tensors:
                self.group.broadcast(tensor, source=0)
        self._shared = self._stack.enter_context(_sharing(own, self.group, self.way))
        return self

    def flows(self, step: Step, state: torch.Tensor, when: torch.Tensor) -> list[torch.Tensor]:
        """Return the flow for each branch of a step; see `Predictor`."""
        assert self._shared is not None
        with self.asking():
            self.group.tell(SharedStep(step, TensorSlot.of(state), TensorSlot.of(when)))
            for tensor in (state, when):
                self.group.broadcast(tensor, source=0)
            return self._shared.flows(step, state, when)

    def end(self) -> None:
        """Leave the transformer as it was."""
        self._shared = None
        self._stack.close()
