"""The Wan VACE family: Wan2.1-VACE 1.3B and 14B and Wan2.2-VACE-Fun, in diffusers folders and in single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.base import SECOND_EXPERT, ModelFamily, TrainedOn
from .component_specs import MISSING, PLANNED_INPUTS, REMEDY, REQUIRED, TEXT_ENCODER, VACE_TRANSFORMER, VAE
from .request import DEFAULT_CFG, DEFAULT_FRAMES, DEFAULT_HEIGHT, DEFAULT_SHIFT, DEFAULT_STEPS, DEFAULT_WIDTH

if TYPE_CHECKING:
    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
    from ..parallel.cards import Cards
    from ..parallel.ways import Split
    from ..planner.machine import Machine
    from ..planner.phases import Component, Phase
    from .phases import VideoWork
    from .transformer_files import Transformers

# What is set for the experts of another model goes back to "the model's own".
ONE_EXPERT = {"boundary": 0.0, "cfg_2": 0.0}
PUBLISHED = TrainedOn(
    settings={
        "width": DEFAULT_WIDTH,
        "height": DEFAULT_HEIGHT,
        "num_frames": DEFAULT_FRAMES,
        "steps": DEFAULT_STEPS,
        "cfg": DEFAULT_CFG,
        "shift": DEFAULT_SHIFT,
        **ONE_EXPERT,
    },
    # 1.3B was trained on the first two.
    sizes=((832, 480), (480, 832), (1280, 720), (720, 1280), (624, 624), (960, 960)),
    # A picture of under 200×200 has too few patches for a model trained at 480×832.
    areas=(256 * 256, None),
    frames=DEFAULT_FRAMES,
)
# VideoX-Fun's own script for VACE-Fun-A14B (examples/wan2.2_vace_fun/predict_*.py): 50 steps, shift 12, cfg 5 for both
# experts, and the boundary that its pipeline has.
PUBLISHED_EXPERTS = replace(PUBLISHED, settings={**PUBLISHED.settings, "steps": 50, "shift": 12.0, "cfg": 5.0})
TOY = TrainedOn(
    settings={
        "width": 96,
        "height": 64,
        "num_frames": 17,
        "steps": 20,
        "cfg": 3.0,
        "shift": DEFAULT_SHIFT,
        **ONE_EXPERT,
    },
    sizes=((96, 64), (64, 64), (64, 96)),
    areas=(0, 128 * 128),
    frames=33,
)


class WanFamily(ModelFamily):
    """What Wan's families share, with VACE and without."""

    def transformers(self, files: FileCatalog) -> Iterator[Transformers]:
        """Yield the family's transformers in single files, and its pairs of experts."""
        raise NotImplementedError

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return transformers, and pairs of experts, with what lies beside them."""
        from .transformer_files import single_file_model

        return [
            single_file_model(self, one, self.beside(one.first, files, folders), files)
            for one in self.transformers(files)
        ]

    def why_unusable(self, file: str, files: FileCatalog) -> str | None:
        """Return that a file is one of two experts, of which the pair is offered."""
        from .transformer_files import half_of_a_pair

        return half_of_a_pair(file, self.transformers(files))

    def frames_at_once(self, work: Any) -> int:
        """Return the frames of one context window, or of the whole video."""
        return int(work.context.frames_at_once(work.num_frames))

    def splits(
        self, components: Mapping[str, Component], work: VideoWork, cards: Cards, machine: Machine
    ) -> Sequence[Split]:
        """Return the ways to share a video's predictions between cards."""
        from .phases import splits

        return splits(self, components, work, cards=cards, machine=machine)

    def fitting(
        self, components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: VideoWork
    ) -> list[VideoWork]:
        """Return the largest videos that fit."""
        from .phases import fitting

        return fitting(components, machine, handle, work)

    def what_fits(self, found: Sequence[VideoWork], work: VideoWork) -> str:
        """Return a sentence on what `fitting` has found."""
        from .phases import what_fits

        return what_fits(found, work)


class WanVACEFamily(WanFamily):
    """Wan2.1-VACE, and Wan2.2-VACE-Fun of two experts."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return those of the transformer and of the VAE."""
        from .layouts import WAN_DIFFUSERS, WAN_ORIGINAL
        from .vae_layouts import WAN_VAE_DIFFUSERS, WAN_VAE_ORIGINAL

        return WAN_DIFFUSERS, WAN_ORIGINAL, WAN_VAE_DIFFUSERS, WAN_VAE_ORIGINAL

    def descriptions(self) -> Mapping[str, Description]:
        """Return those of all three components."""
        from ..checkpoints.layouts.t5 import umt5_tensors
        from .layouts import tensors
        from .vae_layouts import vae_tensors

        return {
            "UMT5EncoderModel": umt5_tensors,
            "WanVACETransformer3DModel": tensors,
            "AutoencoderKLWan": vae_tensors,
        }

    def transformers(self, files: FileCatalog) -> Iterator[Transformers]:
        """Yield whole ones, VACE modules with text-to-video models of their width, and pairs of both."""
        from .transformer_files import transformers

        return transformers(files)

    def beside(
        self, transformer: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the text encoder with its tokenizer, the VAE and a noise schedule, from the same folder first."""
        from .component_files import beside

        return beside(transformer, files, folders)

    def place_problem(self, place: Path) -> str:
        """Return that a folder's components are of several models; "" where they belong together."""
        from .folder_parts import parts_problem, vace_problem

        return vace_problem(place) or parts_problem(place)

    def trained_on(self, model: str, found: InstalledModel | None = None) -> TrainedOn:
        """Return what the model of that name was trained on; what a model of two experts was published with."""
        if found is not None and found.has(SECOND_EXPERT):
            return PUBLISHED_EXPERTS
        return super().trained_on(model, found)

    def work_of(self, model: InstalledModel, work: VideoWork) -> VideoWork:
        """Return a work with the boundary between the experts that a model's folder names."""
        from .experts import boundary_of

        return replace(work, boundary=work.boundary or boundary_of(model)) if model.has(SECOND_EXPERT) else work

    def work(self, inputs: Mapping[str, Any], handle: ModelHandle) -> VideoWork:
        """Return what a video has to do, from the inputs of VACE Sample or Memory Plan."""
        from .phases import VideoWork, fast_decoding
        from .request import WanRequest

        known = {name: inputs[name] for name in self.planned_inputs if name in inputs}
        references, has_task = inputs.get("references", 0), bool(inputs.get("task", True))
        return VideoWork.of(WanRequest("", **known), references, has_task, fast=fast_decoding(handle))

    def phases(self, components: Mapping[str, Component], work: VideoWork) -> tuple[Phase, ...]:
        """Return encode, condition, sample and decode."""
        from .phases import phases

        return phases(components, work)


WAN_VACE = WanVACEFamily(
    key="wan_vace",
    title="Wan VACE",
    index_classes=("WanVACEPipeline",),
    socket="WAN_VACE",
    loader="Load Wan VACE",
    components=(
        TEXT_ENCODER,
        VACE_TRANSFORMER,
        replace(VACE_TRANSFORMER, name=SECOND_EXPERT, optional=True),
        VAE,
    ),
    required=REQUIRED,
    missing=MISSING,
    remedy=REMEDY,
    # Those of Wan2.2 are built as those of Wan2.1 are.
    lora_widths={1536: "Wan 1.3B", 5120: "Wan 14B"},
    published=PUBLISHED,
    toy=TOY,
    planned_inputs=PLANNED_INPUTS,
    can_share=True,
)
