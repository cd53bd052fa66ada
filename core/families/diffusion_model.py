"""Diffusion models of any family: their parts in host memory, their sizes, and an estimate of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

from ..catalog.component_sizes import (
    found_components,
    listed_components,
    wanted_components,
    wanted_model,
    with_loras,
)
from ..catalog.installed_model import FOLDER_DEPTH
from ..catalog.selection import ModelHandle, choose_model
from ..executor.model_cache import cached_model
from ..files.scan import find_files
from ..host.progress import MEGABYTE, LongProgress
from ..lora.catalog import LoraFile, lora_files, loras_on
from ..parallel.cards import cards_of
from ..parallel.ranks import check_distributed
from ..parallel.second_card import second_card
from ..parallel.ways import choose_split, on_one_card
from ..planner.cost import PROCESS_RAM
from ..planner.format_table import FormatTable, format_table
from ..planner.machine import SHARDED, Machine, of_several_cards, read_machine
from ..planner.measured import PhaseTimes, with_rates
from ..planner.plan import plan
from ..planner.report import Estimate
from .base import SECOND_EXPERT, ModelFamily

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from ..catalog.installed_model import InstalledModel
    from ..host.base import Host
    from ..parallel.cards import Cards
    from ..parallel.ways import Split
    from ..planner.phases import Component, Phase
    from ..planner.plan_types import PhasePlan, Plan

log = logging.getLogger("piying")

Pipeline = TypeVar("Pipeline", bound="DiffusionPipeline")

READ = (".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja")


def estimate(handle: ModelHandle, host: Host, work: Any) -> Estimate:
    """Return the plan of a run that nothing was loaded for.

    Args:
        handle: the model; where only plans are made it need not be installed.
        work: from the `work` of the handle's family.

    Raises:
        PiyingError: the model is neither installed nor listed with its sizes, or the device cannot be used.
    """
    family, (found, name, components, machine) = handle.family, _planned_for(handle, host)
    work = work if found is None else family.work_of(found, work)
    steps, work, note = shared_between_cards(handle, host, machine, components=components, work=work)

    @cache
    def fitting() -> tuple[Any, ...]:
        return tuple(family.fitting(components, machine, handle, work))

    made = plan(
        steps,
        machine,
        precision=handle.precision,
        memory=handle.memory,
        advise=lambda: family.what_fits(fitting(), work),
        expected=PhaseTimes(host.cache_folder(), machine).expected,
    )
    notes = (note, second_card(handle.second_device, host).note)
    made = replace(made, reasons=(*made.reasons, *(one for one in notes if one)))
    cautions = [*([found.caution] if found is not None and found.caution else ()), *family.cautions(name, work, found)]
    return Estimate(name, made, machine, () if made.fits else fitting(), tuple(cautions))


def shared_between_cards(
    handle: ModelHandle, host: Host, machine: Machine, *, components: Mapping[str, Component], work: Any
) -> tuple[tuple[Phase, ...], Any, str]:
    """Return the phases of a work, shared between the host's cards where its family can be, with the work itself.

    Returns:
        Phases, the work as they are of it, and a sentence where it is not shared as asked for, else "".

    Raises:
        PiyingError: the way to share it that was asked for has nothing to share.
    """
    family, cards = handle.family, cards_of(handle, host)
    if cards is None or cards.count == 1:
        return family.phases(components, work), work, "" if cards is None else cards.note
    if not family.can_share:
        return family.phases(components, work), work, on_one_card(family.title, cards)
    splits = family.splits(components, work, cards, machine)
    if handle.memory == SHARDED and cards.asked == "auto":
        splits = _sharing_weights(splits)
    expected = PhaseTimes(host.cache_folder(), machine).expected

    def planned(steps: tuple[Phase, ...]) -> Plan:
        return plan(steps, machine, precision=handle.precision, memory=handle.memory, expected=expected)

    taken = choose_split(splits, cards, machine, planned)
    return taken.phases, taken.work, cards.note


def _sharing_weights(splits: Sequence[Split]) -> Sequence[Split]:
    """Return ways to share a work without those that leave weights whole; all of them where none would be left."""
    if not any(split.way == "sequence" and not split.why_not for split in splits):
        return splits
    why_not = "memory is sharded, and weights are shared where the sequence is"
    return [split if split.way == "sequence" or split.why_not else replace(split, why_not=why_not) for split in splits]


def phases_of_run(
    handle: ModelHandle, host: Host, *, components: Mapping[str, Component], work: Any
) -> tuple[tuple[Phase, ...], Any, Cards | None]:
    """Return the phases of a run that begins, its work, and the cards that share it; None where it is one.

    Raises:
        PiyingError: the way to share it that was asked for has nothing to share, or its ranks cannot be started.
    """
    cards = cards_of(handle, host)
    if cards is None or cards.count == 1:
        return handle.family.phases(components, work), work, None
    machine = _machine_for(handle, host)
    steps, work, _ = shared_between_cards(handle, host, machine, components=components, work=work)
    if work.split.way == "off":
        return steps, work, None
    check_distributed()
    # Not at the top: one process alone does without it.
    from ..parallel.local_ranks import begin_local_ranks

    begin_local_ranks(cards, host)
    return steps, work, cards


def estimate_formats(handle: ModelHandle, host: Host, work: Any) -> FormatTable:
    """Return what a run would need were the model's files in each format; for arguments and errors see `estimate`."""
    found, name, components, machine = _planned_for(handle, host)
    work = work if found is None else handle.family.work_of(found, work)
    return format_table(
        name,
        components,
        lambda changed: shared_between_cards(handle, host, machine, components=changed, work=work)[0],
        machine,
        precision=handle.precision,
        memory=handle.memory,
        expected=PhaseTimes(host.cache_folder(), machine).expected,
    )


def _planned_for(
    handle: ModelHandle, host: Host
) -> tuple[InstalledModel | None, str, Mapping[str, Component], Machine]:
    found = wanted_model(handle, host)
    name, components = wanted_components(handle, host, found)
    return found, name, components, _machine_for(handle, host)


def _machine_for(handle: ModelHandle, host: Host) -> Machine:
    """Return the machine that a run is planned for, with its other cards; nothing is measured."""
    second = second_card(handle.second_device, host).device
    machine = with_rates(read_machine(host, second), host.cache_folder(), measure=False)
    return of_several_cards(machine, cards_of(handle, host))


def estimate_listed(family: ModelFamily, model: str, host: Host) -> Plan | None:
    """Return the plan of a model of the manifest used as it was trained; None where the manifest has no sizes.

    Args:
        model: its id; it need not be installed.
    """
    components = listed_components(model)
    if not components:
        return None
    handle = ModelHandle(family, model)
    work = family.work({**family.trained_on(model).settings, "task": False}, handle)
    return plan(family.phases(components, work), read_machine(host))


@dataclass(frozen=True)
class ModelParts:
    """Where an installed model's parts are, and how they are read.

    Attributes:
        family: says what its parts are made of; its key names the model's slots in the cache.
        found: where its parts are.
        host: asked for cancelling while files are read.
        loras: what is put on the transformer, or on the experts.
        told: see `set_loras`: two experts leave out the same of a LoRA.
    """

    family: ModelFamily
    found: InstalledModel
    host: Host
    loras: tuple[LoraFile, ...] = ()
    told: set[tuple[str, str]] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def of(cls, handle: ModelHandle, host: Host) -> ModelParts:
        """Return the parts of the model a handle stands for; nothing is read yet.

        Raises:
            PiyingError: the model or a LoRA is not installed.
        """
        found = choose_model(handle, host)
        return cls(handle.family, found, host, lora_files(handle, host, found))

    def components(self) -> Mapping[str, Component]:
        """Return the sizes of the parts, read from the headers of their files."""
        sizes = found_components(self.found, self.family.rules_of(self.found))
        return with_loras(sizes, self.loras, self.found.name)

    def has(self, part: str) -> bool:
        """Return whether the model has a part, among those that not every model of its family has."""
        optional = {spec.name for spec in self.family.components if spec.optional}
        return part not in optional or self.found.has(part)

    def identity(self, part: str) -> str:
        """Return a text that changes when the files of a part do, a text encoder's tokenizer, or what is put on it."""
        # With the part's name: several may lie in one file.
        parts = [part, part.replace("text_encoder", "tokenizer")] if part.startswith("text_encoder") else [part]
        files = " ".join(self._files(one) for one in parts)
        return f"{part} {files}" + "".join(f" {lora.identity}" for lora in self._loras(part))

    def _loras(self, part: str) -> tuple[LoraFile, ...]:
        return loras_on(part, self.loras, has_two=self.found.has(SECOND_EXPERT))

    def _files(self, part: str) -> str:
        places = self.found.place(part)
        inside = [path for place in places if place.is_dir() for path in find_files(place, FOLDER_DEPTH, READ)]
        files = sorted([*inside, *(place for place in places if place.is_file())])
        # Copies keep the times of their originals: the time of the last change to the entry is the system's own.
        states = [(path.name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for path in files for at in [path.stat()]]
        return f"{places} {states}"

    def load(self, part: str, choice: PhasePlan) -> Any:
        """Return a part in host memory, stored as the plan says.

        LoRAs of a run before come off and those of this one go on; the weights stay as they were read.

        Raises:
            PiyingError: its files are incomplete, damaged, or another model's.
        """
        from ..lora.apply import set_loras
        from ..quantization.casting import use_native_matmul

        self.host.check_cancelled()
        key = (self._files(part), choice.compute, choice.storage)
        model = cached_model(
            f"{self.family.key}/{part}",
            key,
            lambda: self._read(part, choice),
            self.host,
            size=choice.copied,
            beside=max(0, choice.ram - choice.copied - PROCESS_RAM),
            mapped=choice.address_space,
        )
        set_loras(model, self._loras(part), choice.compute, self.told)
        use_native_matmul(model, choice.native_matmul)
        return model

    def _read(self, part: str, choice: PhasePlan) -> Any:
        from ..quantization.file_cache import CastFile, is_wanted

        log.info("Loading %s of %s", part.replace("_", " "), self.found.name)
        if not is_wanted(choice.storage):
            return self._load(part, choice)
        file = CastFile(
            part,
            self.found.place(part),
            storage=choice.storage,
            identity=f"{self._files(part)} {self.family.rules[part].identity}",
            compute=choice.compute,
        )
        return file.load(lambda path: self._load(part, choice, path))

    def _load(self, part: str, choice: PhasePlan, cast: Path | None = None) -> Any:
        """Return a part from its own files, or from what was cast of them."""
        from ..checkpoints.components import find_component
        from ..checkpoints.load import load_component

        places = self.found.place(part)
        return load_component(
            part,
            places if cast is None else cast,
            config=None if cast is None else find_component(part, places).config,
            dtype=choice.compute,
            storage=choice.storage,
            rules=self.family.rules[part],
            cancelled=self.host.check_cancelled,
            on_read=LongProgress(self.host, f"Loading {part.replace('_', ' ')} (MB)", MEGABYTE),
        )


def pipeline_of(pipeline: type[Pipeline], **parts: Any) -> Pipeline:
    """Return a pipeline of diffusers of just those parts; what else it is made of is None."""
    needed = [name for name, one in signature(pipeline).parameters.items() if one.default is one.empty]
    made = pipeline(**{**dict.fromkeys(needed), **parts})
    made.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return made
