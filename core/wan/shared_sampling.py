"""Shared sampling: rank 0 asks the others of its group for their part of each step's predictions.

By prompts, each rank predicts for some of them and rank 0 gets all; every pass has the shapes that it has alone, so
that it has the same bits. By sequence, each rank takes its share of the tokens through every block. Steps, noise and
guidance are rank 0's, which hands over the latents of each step: nothing of a rank's can drift from the others'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from ..errors import PiyingError
from ..executor.execute_plan import compact_allocation, memory_limit, thread_limit
from ..executor.placement import placed
from ..executor.retry import PhaseOutOfMemoryError, catch_out_of_memory
from ..families.diffusion_model import ModelParts
from ..families.registry import family_named
from ..files.scan import find_files
from ..parallel.group import Group
from ..parallel.watchdog import RankLostError
from .attention import Attention
from .context import Context, riflex_enabled
from .guidance import Guidance
from .nag import nag_enabled
from .prediction import Prediction, Predictor, Step
from .split_attention import attention_split
from .step_cache import StepCache, largest_change
from .transformer import block_order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..catalog.installed_model import InstalledModel
    from ..host.base import Host
    from ..lora.catalog import LoraFile
    from ..parallel.cards import Way
    from ..planner.plan_types import PhasePlan
    from .transformer import Transformer

ENDS_READ = 1 << 16  # bytes of a file's beginning and of its end by which files are compared
READ = (".safetensors", ".gguf", ".json")
OVER = "over"  # what rank 0 says in place of a step


@dataclass(frozen=True)
class TensorSlot:
    """What a rank has to know of a tensor before it is sent."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSlot:
        """Return that of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def empty(self, device: str) -> torch.Tensor:
        """Return a tensor to be overwritten."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


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
class SamplingJob:
    """What the other ranks do while rank 0 takes the steps of a transformer.

    Attributes:
        family: its key.
        found, loras: the model, and what is put on it.
        files: `files_digest` of what rank 0 reads.
        choice: how the phase runs.
        way: how the predictions are shared.
        frames: latent frames of the video.
        forecast_below: see `StepCache.threshold`; None without one.
    """

    family: str
    found: InstalledModel
    loras: tuple[LoraFile, ...]
    files: str
    choice: PhasePlan
    way: Way
    attention: Attention
    guidance: Guidance
    context: Context
    frames: int
    forecast_below: float | None

    def assist(self, group: Group, host: Host) -> None:
        """Load the transformer, and make this rank's part of the predictions until rank 0 says that all are made.

        Raises:
            PiyingError: the model is not here, or is another one than rank 0's; or another rank is lost.
            PhaseOutOfMemoryError: this rank's memory does not hold its part.
        """
        parts, device = ModelParts(family_named(self.family), self.found, host, self.loras), host.device()
        self._check_files(parts)
        with (
            memory_limit(device, host.memory_rules().vram),
            compact_allocation(device),
            thread_limit(device),
            catch_out_of_memory(self.choice.key),
        ):
            transformer: Transformer = parts.load(self.choice.component, self.choice)
            with (
                placed(transformer, self.choice, device, host, blocks=block_order(transformer), group=group),
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

    def _check_files(self, parts: ModelParts) -> None:
        try:
            own = files_digest(parts, self.choice.component)
        except OSError as error:
            raise PiyingError(
                f"{self.found.name} cannot be read here ({error.strerror}: {error.filename}). Ranks read a model "
                "under one path."
            ) from error
        if own != self.files:
            raise PiyingError(
                f"The files of {self.found.name}, or of a LoRA, are others here than on rank 0. Copy them anew to the "
                "machines that run it, and start again."
            )


def files_digest(parts: ModelParts, part: str) -> str:
    """Return a checksum of the names and sizes of a part's files and of the LoRAs', and of their first and last bytes.

    Raises:
        OSError: one cannot be read.
    """
    places = parts.found.place(part)
    inside = [path for place in places if place.is_dir() for path in find_files(place, 1, READ)]
    files = sorted([*inside, *(place for place in places if not place.is_dir())])
    summed = hashlib.sha256()
    for path in [*files, *(lora.path for lora in parts.loras)]:
        summed.update(f"{path.name} {path.stat().st_size} ".encode())
        summed.update(_ends(path))
    return summed.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(ENDS_READ)
        file.seek(max(0, path.stat().st_size - ENDS_READ))
        return first + file.read()


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
class Sharing:
    """Rank 0's side of a job.

    Attributes:
        group: the ranks.
        way: how the predictions are shared.
        is_asking: whether the other ranks are at work on something that rank 0 has asked for.
    """

    group: Group
    way: Way
    is_asking: bool = False
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
        self.is_asking = True
        self.group.tell(given)
        for tensor in tensors:
            self.group.broadcast(tensor, source=0)
        self.is_asking = False
        self._shared = self._stack.enter_context(_sharing(own, self.group, self.way))
        return self

    def flows(self, step: Step, state: torch.Tensor, when: torch.Tensor) -> list[torch.Tensor]:
        """Return the flow for each branch of a step; see `Predictor`."""
        assert self._shared is not None
        self.is_asking = True
        self.group.tell(SharedStep(step, TensorSlot.of(state), TensorSlot.of(when)))
        for tensor in (state, when):
            self.group.broadcast(tensor, source=0)
        found = self._shared.flows(step, state, when)
        self.is_asking = False
        return found

    def end(self) -> None:
        """Leave the transformer as it was."""
        self._shared = None
        self._stack.close()


@contextmanager
def shared_sampling(group: Group, job: SamplingJob) -> Iterator[Sharing]:
    """Have the other ranks at hand inside the `with` block, for the steps of one transformer.

    Raises:
        RankLostError: one of them is lost.
        PhaseOutOfMemoryError: one of them, or rank 0, has run out of memory while others waited for it. With ranks
            that torchrun has started it ends the run, and the next one takes another plan.
    """
    group.check()
    group.tell(job)
    sharing, final, can_go_on = Sharing(group, job.way), None, False
    try:
        yield sharing
    except PhaseOutOfMemoryError as error:
        if not sharing.is_asking:
            raise
        final = str(error).removeprefix(f"{error.key}: ")
    except RankLostError as error:
        if not error.failure.key:
            raise
        final = str(error)
    finally:
        sharing.end()
        if not sharing.is_asking and group.failure is None:
            group.tell(OVER)
        else:
            can_go_on = group.abandon()
    if final is not None:
        raise PhaseOutOfMemoryError(job.choice.key, final, is_final=not can_go_on)
