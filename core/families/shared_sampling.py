"""Shared sampling: what rank 0 asks of the others while it takes the steps of a transformer, of any family.

A job names the model and how its phase runs; every rank loads the transformer so and does its part of what rank 0 asks
for next, until that says that all is done.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..errors import PiyingError
from ..executor.execute_plan import compact_allocation, memory_limit, thread_limit
from ..executor.placement import placed
from ..executor.retry import PhaseOutOfMemoryError, catch_out_of_memory
from ..files.scan import find_files
from ..parallel.group import Group
from ..parallel.watchdog import RankLostError
from .diffusion_model import ModelParts
from .registry import family_named

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.installed_model import InstalledModel
    from ..host.base import Host
    from ..lora.catalog import LoraFile
    from ..parallel.cards import Way
    from ..planner.plan_types import PhasePlan

ENDS_READ = 1 << 16  # bytes of a file's beginning and of its end by which files are compared
READ = (".safetensors", ".gguf", ".json")
OVER = "over"  # what rank 0 says in place of a step

Job = TypeVar("Job", bound="SamplingJob")
Shared = TypeVar("Shared", bound="Sharing")


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
class SamplingJob(ABC):
    """What the other ranks do while rank 0 takes the steps of a transformer.

    Attributes:
        family: its key.
        found, loras: the model, and what is put on it.
        files: `files_digest` of what rank 0 reads.
        choice: how the phase runs.
        way: how the predictions are shared.
    """

    family: str
    found: InstalledModel
    loras: tuple[LoraFile, ...]
    files: str
    choice: PhasePlan
    way: Way

    @classmethod
    def of(cls: type[Job], parts: ModelParts, choice: PhasePlan, way: Way, **more: Any) -> Job:
        """Return the job of a phase; `more` is what the class has beside the attributes above."""
        files = files_digest(parts, choice.component)
        return cls(parts.family.key, parts.found, parts.loras, files, choice, way, **more)

    @abstractmethod
    def blocks(self, transformer: Any) -> Sequence[torch.nn.Module]:
        """Return the transformer's blocks in the order in which they run."""

    @abstractmethod
    def take_part(self, transformer: Any, group: Group) -> None:
        """Do this rank's part of what rank 0 asks for, until that is `OVER`."""

    def assist(self, group: Group, host: Host) -> None:
        """Load the transformer, and do this rank's part until rank 0 says that all is done.

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
            transformer = parts.load(self.choice.component, self.choice)
            with placed(transformer, self.choice, device, host, blocks=self.blocks(transformer), group=group):
                self.take_part(transformer, group)

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


@dataclass
class Sharing:
    """Rank 0's side of a job.

    Attributes:
        group: the ranks.
        is_asking: whether the other ranks are at work on something that rank 0 has asked for.
    """

    group: Group
    is_asking: bool = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Have the other ranks at work inside the `with` block; where it fails, they wait for what does not come."""
        self.is_asking = True
        yield
        self.is_asking = False

    def end(self) -> None:
        """Leave the transformer as it was."""


@contextmanager
def shared_sampling(sharing: Shared, job: SamplingJob) -> Iterator[Shared]:
    """Have the other ranks at hand inside the `with` block, for the steps of one transformer.

    Raises:
        RankLostError: one of them is lost.
        PhaseOutOfMemoryError: one of them, or rank 0, has run out of memory while others waited for it. With ranks
            that torchrun has started it ends the run, and the next one takes another plan.
    """
    group, final, can_go_on = sharing.group, None, False
    group.check()
    try:
        with sharing.asking():
            group.tell(job)
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
            with sharing.asking():
                group.tell(OVER)
        if sharing.is_asking or group.failure is not None:
            can_go_on = group.abandon()
    if final is not None:
        raise PhaseOutOfMemoryError(job.choice.key, final, is_final=not can_go_on)
