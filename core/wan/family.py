"""The Wan VACE family: Wan2.1-VACE 1.3B and 14B, in diffusers folders and in single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..checkpoints.layouts.t5 import UMT5, umt5_tensors
from ..families.base import ComponentSpec, ModelFamily
from ..quantization.policy import CastRules
from .layouts import (
    TEXT_TO_VIDEO,
    VACE,
    VACE_MODULE,
    VAE_TITLE,
    WAN_DIFFUSERS,
    WAN_ORIGINAL,
    WAN_VAE_DIFFUSERS,
    WAN_VAE_ORIGINAL,
    tensors,
    vae_tensors,
)

if TYPE_CHECKING:
    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..planner.machine import Machine
    from ..planner.phases import Component, Phase
    from .phases import VideoWork


class WanVACEFamily(ModelFamily):
    """Wan2.1-VACE."""

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return whole transformers, and VACE modules with the text-to-video model of their width."""
        from ..catalog.installed_model import BUILT_IN_ROOT

        offered = dict(_transformers(files))
        if not offered:
            return []
        beside = files.lent_by(folders, ("text_encoder", "tokenizer", "vae"))
        if len(beside) < 3:
            beside = _companions(files) | beside
        # No single file has a noise schedule; that of all published models is the same.
        beside["scheduler"] = (BUILT_IN_ROOT / self.key / "scheduler",)
        found = []
        for name, ones in offered.items():
            own = {part: place for one in ones for part, place in one.inside(BESIDE).items()}
            if "tokenizer" not in own:
                own.pop("text_encoder", None)
            parts = {**beside, **own, "transformer": tuple(one.path for one in ones)}
            found.append(files.model(self, ones, parts, name))
        return found

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

    def what_fits(
        self, components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: VideoWork
    ) -> str:
        """Return a sentence on the longest video of this size and the largest of this length that fit."""
        from .phases import what_fits

        return what_fits(components, machine, handle, work)


BESIDE = {"text_encoder": UMT5, "vae": VAE_TITLE}  # what checkpoints hold besides transformers


def _transformers(files: FileCatalog) -> Iterator[tuple[str, tuple[SingleFile, ...]]]:
    """Yield the transformers by the name they are offered under, with the files they are made of.

    A VACE module goes with each text-to-video model of its width. Where there is one such model alone, the pair has
    the module's name.
    """
    found: dict[str, list[SingleFile]] = {}
    for one in files.all:
        for part in one.found.parts if one.found.readable else ():
            found.setdefault(part.title, []).append(one)
    yield from ((one.name, (one,)) for one in found.get(VACE, ()))
    for module in found.get(VACE_MODULE, ()):
        bases = [one for one in found.get(TEXT_TO_VIDEO, ()) if one.width == module.width]
        for base in bases:
            yield module.name if len(bases) == 1 else f"{module.name} + {base.name}", (base, module)


def _companions(files: FileCatalog) -> dict[str, tuple[Any, ...]]:
    """Return the files of the text encoder, with its tokenizer inside it, and of the VAE that are here."""
    found: dict[str, tuple[Any, ...]] = {}
    for one in files.all:
        # One that needs a tokenizer beside it cannot do: a loose file has none.
        if one.title == UMT5 and one.found.readable and not one.found.needs:
            found.setdefault("text_encoder", (one.path,))
            found.setdefault("tokenizer", (one.path,))
        if one.title == VAE_TITLE and one.found.readable:
            found.setdefault("vae", (one.path,))
    return found


FP32_MODULES = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
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
            tensors={"UMT5EncoderModel": umt5_tensors},
        ),
        ComponentSpec(
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
            tensors={"WanVACETransformer3DModel": tensors},
        ),
        ComponentSpec(name="vae", classes=("AutoencoderKLWan",), tensors={"AutoencoderKLWan": vae_tensors}),
    ),
    layouts=(WAN_DIFFUSERS, WAN_ORIGINAL, WAN_VAE_DIFFUSERS, WAN_VAE_ORIGINAL),
    required=("transformer", "text_encoder", "vae"),
    missing={
        "text_encoder": "the UMT5-XXL text encoder with its tokenizer inside, in models/text_encoders",
        "vae": "the Wan2.1 VAE, in models/vae",
    },
    remedy="Put it there",
    # Those of Wan2.2 are built as those of Wan2.1 are.
    lora_widths={1536: "Wan 1.3B", 5120: "Wan 14B"},
    # Those Wan2.1-VACE was trained on, 1.3B at the first two.
    sizes=((832, 480), (480, 832), (1280, 720), (720, 1280), (624, 624), (960, 960)),
    planned_inputs=(
        "width",
        "height",
        "num_frames",
        "cfg",
        "steps",
        "speed",
        "step_cache",
        "batch_cfg",
        "vae_precision",
    ),
)
