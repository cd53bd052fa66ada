"""The Wan VACE family: Wan2.1-VACE 1.3B and 14B, in diffusers folders and in single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.base import ComponentSpec, ModelFamily, TrainedOn
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

PUBLISHED = TrainedOn(
    settings={
        "width": DEFAULT_WIDTH,
        "height": DEFAULT_HEIGHT,
        "num_frames": DEFAULT_FRAMES,
        "steps": DEFAULT_STEPS,
        "cfg": DEFAULT_CFG,
        "shift": DEFAULT_SHIFT,
    },
    # 1.3B was trained on the first two.
    sizes=((832, 480), (480, 832), (1280, 720), (720, 1280), (624, 624), (960, 960)),
    # A picture of under 200×200 has too few patches for a model trained at 480×832.
    areas=(256 * 256, None),
    frames=DEFAULT_FRAMES,
)
TOY = TrainedOn(
    settings={"width": 96, "height": 64, "num_frames": 17, "steps": 20, "cfg": 3.0, "shift": DEFAULT_SHIFT},
    sizes=((96, 64), (64, 64), (64, 96)),
    areas=(0, 128 * 128),
    frames=33,
)


class WanVACEFamily(ModelFamily):
    """Wan2.1-VACE."""

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
        """Return whole transformers, and VACE modules with the text-to-video model of their width."""
        return [
            files.model(
                self,
                ones,
                {**self.beside(ones, files, folders), "transformer": tuple(one.path for one in ones)},
                name,
            )
            for name, ones in _transformers(files)
        ]

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


def _transformers(files: FileCatalog) -> Iterator[tuple[str, tuple[SingleFile, ...]]]:
    """Yield the transformers by the name they are offered under, with the files they are made of.

    A VACE module goes with each text-to-video model of its width. Where there is one such model alone, the pair has
    the module's name.
    """
    from .layouts import TEXT_TO_VIDEO, VACE, VACE_MODULE

    found: dict[str, list[SingleFile]] = {}
    for one in files.all:
        for part in one.found.parts if one.found.readable else ():
            found.setdefault(part.title, []).append(one)
    yield from ((one.name, (one,)) for one in found.get(VACE, ()))
    for module in found.get(VACE_MODULE, ()):
        bases = [one for one in found.get(TEXT_TO_VIDEO, ()) if one.width == module.width]
        for base in bases:
            yield module.name if len(bases) == 1 else f"{module.name} + {base.name}", (base, module)


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
        ),
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
        "speed",
        "step_cache",
        "batch_cfg",
        "vae_precision",
        "scheduler",
        "sigmas",
    ),
)
