"""The Wan Video family: Wan2.1 T2V, I2V and FLF2V, Wan2.2 A14B and TI2V-5B, in diffusers folders and single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..families.base import SECOND_EXPERT, ComponentSpec, TrainedOn
from ..quantization.policy import CastRules
from ..wan.component_specs import MISSING, PLANNED_INPUTS, REMEDY, REQUIRED, TEXT_ENCODER, TRANSFORMER, VAE
from ..wan.family import ONE_EXPERT, PUBLISHED, TOY, WanFamily
from .frame_inputs import (
    FIRST,
    FIRST_AND_LAST,
    FIRST_OR_LAST,
    TEXT,
    TEXT_OR_FIRST,
    FrameInputs,
    check_frames,
    frame_inputs,
    transformer_shape,
)
from .request import DEFAULT_SHIFT

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
    from ..planner.phases import Component, Phase
    from ..wan.transformer_files import Transformers
    from .phases import FramesWork


def _published(size: tuple[int, int], steps: int, cfg: float, shift: float, **more: float) -> TrainedOn:
    """Return what a model was published with: `wan/configs` of Wan-Video/Wan2.1 and Wan2.2, and their README."""
    settings = {"width": size[0], "height": size[1], "num_frames": 81, "steps": steps, "cfg": cfg, "shift": shift}
    settings |= {**ONE_EXPERT, **more}
    return replace(PUBLISHED, settings=settings, frames=int(settings["num_frames"]))


@dataclass(frozen=True)
class KnownModel:
    """A published model.

    Attributes:
        inputs: what it reads.
        width: of its transformer.
        trained_on: what it was published with.
        experts: how many transformers it has.
    """

    inputs: FrameInputs
    width: int
    trained_on: TrainedOn
    experts: int = 1


SMALL, LARGE = (832, 480), (1280, 720)
TI2V_SIZES = ((1280, 704), (704, 1280))
# By their names in the manifest. Guidance of Wan2.2's pairs is that of the high-noise expert, then of the other.
KNOWN: Mapping[str, KnownModel] = {
    "wan2.1-t2v-1.3b": KnownModel(TEXT, 1536, _published(SMALL, 50, 6.0, 8.0)),
    "wan2.1-t2v-14b": KnownModel(TEXT, 5120, _published(SMALL, 50, 5.0, 5.0)),
    "wan2.1-i2v-14b-480p": KnownModel(FIRST, 5120, _published(SMALL, 40, 5.0, 3.0)),
    "wan2.1-i2v-14b-720p": KnownModel(FIRST, 5120, _published(LARGE, 40, 5.0, 5.0)),
    "wan2.1-flf2v-14b-720p": KnownModel(FIRST_AND_LAST, 5120, _published(LARGE, 50, 5.0, 16.0)),
    "wan2.2-ti2v-5b": KnownModel(
        TEXT_OR_FIRST,
        3072,
        replace(_published(TI2V_SIZES[0], 50, 5.0, 5.0, num_frames=121), sizes=TI2V_SIZES),
    ),
    "wan2.2-t2v-a14b": KnownModel(TEXT, 5120, _published(SMALL, 40, 4.0, 12.0, cfg_2=3.0), experts=2),
    "wan2.2-i2v-a14b": KnownModel(FIRST_OR_LAST, 5120, _published(SMALL, 40, 3.5, 5.0), experts=2),
}


class WanVideoFamily(WanFamily):
    """Wan's models without VACE."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return those of the transformer and of the image encoder; that of the VAE is shared."""
        from ..checkpoints.layouts.clip_vision import CLIP_VISION
        from ..wan.layouts import WAN_BASE_ORIGINAL

        return WAN_BASE_ORIGINAL, CLIP_VISION

    def descriptions(self) -> Mapping[str, Description]:
        """Return those of the transformer and of the image encoder."""
        from ..checkpoints.layouts.clip_vision import tensors as vision_tensors
        from ..wan.layouts import base_tensors

        return {"WanTransformer3DModel": base_tensors, "CLIPVisionModel": vision_tensors}

    def transformers(self, files: FileCatalog) -> Iterator[Transformers]:
        """Yield those without VACE, and pairs of such."""
        from ..wan.transformer_files import base_transformers

        return base_transformers(files)

    def beside(
        self, transformer: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the text encoder with its tokenizer, the VAE, the image encoder and a noise schedule."""
        from ..wan.component_files import beside, lenders
        from .image_encoders import find_image_encoder, width_read

        shapes = files.shapes(transformer[0].path, "transformer")
        channels = shapes["proj_out.weight"][0] // 4  # patches of 2×2
        found = beside(transformer, files, folders, channels=channels)
        width = width_read(shapes)
        return found if width is None else found | find_image_encoder(width, files, lenders(files, folders))

    def needs(self, transformer: SingleFile, files: FileCatalog) -> tuple[str, ...]:
        """Return what every model needs, and an image encoder for one that sees its frames."""
        from .image_encoders import width_read

        sees = width_read(files.shapes(transformer.path, "transformer")) is not None
        return (*self.required, *(("image_encoder",) if sees else ()))

    def place_problem(self, place: Path) -> str:
        """Return that a folder's components are of several models, or that one is missing; "" where neither is so."""
        from ..catalog.installed_model import InstalledModel
        from ..wan.component_files import vae_channels
        from ..wan.folder_parts import latents_problem, parts_problem

        model = InstalledModel(place.name, place, 0)
        try:
            inputs, channels = frame_inputs(model), vae_channels(place)
        except PiyingError as error:
            return str(error)
        if problem := latents_problem(place, inputs.channels, channels):
            return problem
        if inputs.sees and not (place / "image_encoder").is_dir():
            return f"{place}: there is no image_encoder in it, which its transformer reads. Fetch it again."
        return parts_problem(place)

    def reads(self, model: InstalledModel) -> str:
        """Return which frames a model can be given."""
        return frame_inputs(model).words

    def trained_on(self, model: str, found: InstalledModel | None = None) -> TrainedOn:
        """Return what the model of that name was trained on, or the published one that reads what it reads."""
        if model in KNOWN:
            return KNOWN[model].trained_on
        if found is None or found.is_built_in:
            return super().trained_on(model, found)
        inputs, width, experts = frame_inputs(found), transformer_shape(found).width, 1 + found.has(SECOND_EXPERT)
        alike = [one for one in KNOWN.values() if (one.inputs, one.experts) == (inputs, experts)]
        # One of another width may have been trained further; what it reads says most.
        alike.sort(key=lambda one: one.width != width)
        return alike[0].trained_on if alike else self.published

    def check_inputs(self, inputs: Mapping[str, Any], model: InstalledModel) -> None:
        """Accept the frames of Wan Sample, and a size that the model makes.

        Raises:
            PiyingError: the model cannot take them.
        """
        from ..wan.context import Context
        from ..wan.request import WanRequest
        from .request import check_request

        reads, wired = frame_inputs(model), inputs["linked"]
        has = {"has_first": "first_frame" in wired, "has_last": "last_frame" in wired}
        context = inputs.get("context")
        loop = isinstance(context, Context) and context.loop
        check_frames(reads, model.name, **has, num_frames=inputs.get("num_frames"), loop=loop)
        known = {name: inputs[name] for name in ("width", "height", "num_frames") if name in inputs}
        unit = 2 * reads.stride
        check_request(WanRequest("", **{"width": 10 * unit, "height": 10 * unit, **known}), reads)

    def work_of(self, model: InstalledModel, work: FramesWork) -> FramesWork:
        """Return a work with what the model reads, and the boundary between its experts."""
        from ..wan.experts import boundary_of

        reading = work.reading(frame_inputs(model))
        if not model.has(SECOND_EXPERT) or reading.boundary != work.boundary:
            return reading
        return replace(reading, boundary=boundary_of(model, reading.boundary))

    def inputs_read(self, handle: ModelHandle, model: InstalledModel | None) -> FrameInputs:
        """Return what a model reads: an installed one by its files, one of the manifest by its name.

        Raises:
            PiyingError: its files are damaged.
        """
        if model is not None:
            return frame_inputs(model)
        return KNOWN[handle.model].inputs if handle.model in KNOWN else TEXT

    def work(self, inputs: Mapping[str, Any], handle: ModelHandle) -> FramesWork:
        """Return what a video has to do, from the inputs of Wan Sample or Memory Plan."""
        from ..wan.phases import fast_decoding
        from ..wan.request import WanRequest
        from .phases import FramesWork

        known = {name: inputs[name] for name in self.planned_inputs if name in inputs}
        reads = self.inputs_read(handle, None)
        first, last = bool(inputs.get("first_frame")), bool(inputs.get("last_frame"))
        request = WanRequest("", **known)
        return FramesWork.of_frames(request, reads, first=first, last=last, fast=fast_decoding(handle))

    def phases(self, components: Mapping[str, Component], work: FramesWork) -> tuple[Phase, ...]:
        """Return encode, encode_image where the model sees its frames, condition, sample and decode."""
        from .phases import phases

        return phases(components, work)


WAN_VIDEO = WanVideoFamily(
    key="wan_video",
    title="Wan Video",
    index_classes=("WanPipeline", "WanImageToVideoPipeline"),
    socket="WAN_VIDEO",
    loader="Load Wan Video",
    components=(
        TEXT_ENCODER,
        ComponentSpec(
            name="image_encoder",
            classes=("CLIPVisionModel",),
            model_types={"clip_vision_model": "CLIPVisionModel"},
            rules=CastRules(("encoder.layers",)),
            optional=True,
        ),
        TRANSFORMER,
        replace(TRANSFORMER, name=SECOND_EXPERT, optional=True),
        VAE,
    ),
    required=REQUIRED,
    missing={
        **MISSING,
        "vae": "the VAE of Wan2.1, or for TI2V-5B that of Wan2.2, in models/vae",
        "image_encoder": "the CLIP-ViT-H image encoder, in models/clip_vision",
    },
    remedy=REMEDY,
    lora_widths={3072: "Wan 5B"},
    published=KNOWN["wan2.1-t2v-14b"].trained_on,
    toy=replace(TOY, settings={**TOY.settings, "shift": DEFAULT_SHIFT}),
    planned_inputs=PLANNED_INPUTS,
    can_share=True,
)
