"""The Wan VACE family: Wan2.1-VACE 1.3B and 14B and Wan2.2-VACE-Fun, in diffusers folders and in single files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.base import SECOND_EXPERT, ComponentSpec, ModelFamily, TrainedOn
from ..quantization.policy import CastRules
from .request import DEFAULT_CFG, DEFAULT_FRAMES, DEFAULT_HEIGHT, DEFAULT_SHIFT, DEFAULT_STEPS, DEFAULT_WIDTH

if TYPE_CHECKING:
    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
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


class WanVACEFamily(ModelFamily):
    """Wan2.1-VACE, and Wan2.2-VACE-Fun of two experts."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return those of the transformer and of the VAE."""
        from .layouts import WAN_DIFFUSERS, WAN_ORIGINAL, WAN_VAE_DIFFUSERS, WAN_VAE_ORIGINAL

        return WAN_DIFFUSERS, WAN_ORIGINAL, WAN_VAE_DIFFUSERS, WAN_VAE_ORIGINAL

    def descriptions(self) -> Mapping[str, Description]:
        """Return those of all three components."""
        from ..checkpoints.layouts.t5 import umt5_tensors
        from .layouts import tensors, vae_tensors

        return {
            "UMT5EncoderModel": umt5_tensors,
            "WanVACETransformer3DModel": tensors,
            "AutoencoderKLWan": vae_tensors,
        }

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return whole transformers, VACE modules with text-to-video models of their width, and pairs of both."""
        from .transformer_files import transformers

        return [self._single_file_model(one, files, folders) for one in transformers(files)]

    def _single_file_model(
        self, made_of: Transformers, files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> InstalledModel:
        first, second = made_of.first, made_of.second
        parts = self.beside(first, files, folders) | {"transformer": tuple(one.path for one in first)}
        if not second:
            from .transformer_files import why_not_alone

            found = files.model(self, first, parts, made_of.name)
            return replace(found, caution=why_not_alone(made_of, files))
        found = files.model(self, first, parts | {SECOND_EXPERT: tuple(one.path for one in second)}, made_of.name)
        other = files.model(self, second, {})
        return replace(found, details=f"two experts: {found.details}; and {other.details}")

    def why_unusable(self, file: str, files: FileCatalog) -> str | None:
        """Return that a file is one of two experts, of which the pair is offered."""
        from .transformer_files import transformers

        for made_of in transformers(files):
            if made_of.second and any(one.name == file for one in (*made_of.first, *made_of.second)):
                return f"it is one of two experts of one model: choose {made_of.name}"
        return None

    def beside(
        self, transformer: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the text encoder with its tokenizer, the VAE and a noise schedule, from the same folder first."""
        from ..catalog.installed_model import BUILT_IN_ROOT
        from ..checkpoints.layouts.t5 import UMT5
        from .layouts import VAE_TITLE

        # No single file has a noise schedule; that of all published models is the same.
        found: dict[str, tuple[Path, ...]] = {"scheduler": (BUILT_IN_ROOT / self.key / "scheduler",)}
        lent = files.lent_by(folders, ("text_encoder", "tokenizer", "vae"))
        others = [one for one in files.all if one.found.readable and one.title in (UMT5, VAE_TITLE)]
        folder = transformer[-1].folder
        near = [*transformer, *(one for one in others if one.folder == folder)]
        found |= _text_encoder(near, files, folders)
        if "tokenizer" not in found and lent.keys() >= {"text_encoder", "tokenizer"}:
            found |= {part: lent[part] for part in ("text_encoder", "tokenizer")}
        if "tokenizer" not in found:
            found |= _text_encoder(others, files, folders)
        vae = {"vae": lent["vae"]} if "vae" in lent else {}
        return found | _vae(others) | vae | _vae(near)

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
        from .phases import VideoWork
        from .request import VACERequest

        known = {name: inputs[name] for name in self.planned_inputs if name in inputs}
        request = VACERequest("", **known)
        references, has_task = inputs.get("references", 0), bool(inputs.get("task", True))
        return VideoWork.of(request, references, has_task)

    def phases(self, components: Mapping[str, Component], work: VideoWork) -> tuple[Phase, ...]:
        """Return encode, condition, sample and decode."""
        from .phases import phases

        return phases(components, work)

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


def _text_encoder(
    candidates: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
) -> dict[str, tuple[Path, ...]]:
    """Return the first text encoder that has a tokenizer, inside it or elsewhere; without one, the first there is."""
    from ..checkpoints.layouts.t5 import UMT5
    from ..checkpoints.tokenizers import TokenizerKind, find_tokenizer

    found: dict[str, tuple[Path, ...]] = {}
    for one in candidates:
        for part in (part for part in one.found.parts if part.title == UMT5):
            tokenizer: Path | None = one.path
            if not part.has_tokenizer:
                rows, lenders = files.vocabulary(one.path, "text_encoder"), [folder.path for folder in folders]
                tokenizer = find_tokenizer(TokenizerKind.UNIGRAM, rows, files.host, lenders=lenders, near=one.folder)
            if tokenizer is not None:
                return {"text_encoder": (one.path,), "tokenizer": (tokenizer,)}
            found = found or {"text_encoder": (one.path,)}
    return found


def _vae(candidates: Sequence[SingleFile]) -> dict[str, tuple[Path, ...]]:
    """Return the first VAE."""
    from .layouts import VAE_TITLE

    found = (one.path for one in candidates if any(part.title == VAE_TITLE for part in one.found.parts))
    return next(({"vae": (path,)} for path in found), {})


FP32_MODULES = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
TRANSFORMER = ComponentSpec(
    name="transformer",
    classes=("WanVACETransformer3DModel",),
    rules=CastRules(
        ("blocks", "vace_blocks"),
        keep={
            "vace_blocks.*.proj_in": "projections into the VACE blocks are sensitive to rounding",
            "vace_blocks.*.proj_out": "projections out of the VACE blocks are sensitive to rounding",
        },
        spared=("patch_embedding", "vace_patch_embedding", "condition_embedder", "norm"),
        fp32_modules=dict.fromkeys(("bf16", "fp16"), FP32_MODULES),
    ),
)
WAN_VACE = WanVACEFamily(
    key="wan_vace",
    title="Wan VACE",
    index_classes=("WanVACEPipeline",),
    socket="WAN_VACE",
    loader="Load Wan VACE",
    components=(
        ComponentSpec(
            name="text_encoder",
            classes=("UMT5EncoderModel",),
            model_types={"umt5": "UMT5EncoderModel"},
            rules=CastRules(
                ("encoder.block",),
                keep={"*.relative_attention_bias": "an embedding, which is looked up and not multiplied"},
                fp32_modules={"fp16": ("wo",)},
            ),
        ),
        TRANSFORMER,
        replace(TRANSFORMER, name=SECOND_EXPERT, optional=True),
        ComponentSpec(name="vae", classes=("AutoencoderKLWan",)),
    ),
    required=("transformer", "text_encoder", "tokenizer", "vae"),
    missing={
        "text_encoder": "the UMT5-XXL text encoder, in models/text_encoders",
        "tokenizer": "the tokenizer of UMT5-XXL, inside that file or in a folder of models/tokenizers",
        "vae": "the Wan2.1 VAE, in models/vae",
    },
    remedy="Put it there",
    # Those of Wan2.2 are built as those of Wan2.1 are.
    lora_widths={1536: "Wan 1.3B", 5120: "Wan 14B"},
    published=PUBLISHED,
    toy=TOY,
    planned_inputs=(
        "width",
        "height",
        "num_frames",
        "cfg",
        "steps",
        "shift",
        "speed",
        "step_cache",
        "batch_cfg",
        "vae_precision",
        "scheduler",
        "sigmas",
        "boundary",
        "cfg_2",
        "guidance",
    ),
)
