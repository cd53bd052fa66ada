"""The Hunyuan-DiT family: v1.0 to v1.2, in diffusers folders, ComfyUI's checkpoints and Tencent's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.base import ComponentSpec, ModelFamily, TrainedOn
from ..quantization.policy import CastRules
from .request import DEFAULT_CFG, DEFAULT_HEIGHT, DEFAULT_STEPS, DEFAULT_WIDTH, SIZES, TOY_SIZES, check_size

if TYPE_CHECKING:
    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
    from ..parallel.cards import Cards
    from ..parallel.ways import Split
    from ..planner.machine import Machine
    from ..planner.phases import Component, Phase
    from .phases import ImageWork

# The folders beside `model/` in what Tencent publishes (t2i/ of Tencent-Hunyuan/HunyuanDiT-v1.2).
PUBLISHED = {
    "text_encoder": "clip_text_encoder",
    "text_encoder_2": "mt5",
    "tokenizer": "tokenizer",
    "tokenizer_2": "mt5",
    "vae": "sdxl-vae-fp16-fix",
}
PYTORCH = "pytorch_model.bin"


class HunyuanDiTFamily(ModelFamily):
    """Hunyuan-DiT."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return those of BERT, of the transformer and of the VAE."""
        from ..checkpoints.layouts.kl_vae import KL_DIFFUSERS, KL_ORIGINAL
        from .layouts import BERT, HUNYUAN_DIFFUSERS, HUNYUAN_ORIGINAL

        return BERT, HUNYUAN_DIFFUSERS, HUNYUAN_ORIGINAL, KL_DIFFUSERS, KL_ORIGINAL

    def descriptions(self) -> Mapping[str, Description]:
        """Return those of all four components."""
        from ..checkpoints.layouts import kl_vae, t5
        from .layouts import bert_tensors, tensors

        return {
            "BertModel": bert_tensors,
            "T5EncoderModel": t5.tensors,
            "HunyuanDiT2DModel": tensors,
            "AutoencoderKL": kl_vae.tensors,
        }

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return all-in-one checkpoints of ComfyUI's, Tencent's own files, and transformers alone."""
        found = [one for one in files.all if one.found.readable and one.holds("transformer", self.key)]
        return [
            files.model(self, (one,), {**self.beside((one,), files, folders), "transformer": (one.path,)})
            for one in found
        ]

    def beside(
        self, transformer: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> dict[str, tuple[Path, ...]]:
        """Return what lies in the same file or around it, else what folders lend.

        No folder lends its noise schedule: it may be of another version. The shapes tell which.
        """
        from ..checkpoints.tokenizers import TokenizerKind, find_tokenizer

        (one,) = transformer
        found = {**files.lent_by(folders, tuple(PUBLISHED)), **_beside(one.path), **_inside(one)}
        kinds = {"text_encoder": TokenizerKind.WORDPIECE, "text_encoder_2": TokenizerKind.UNIGRAM}
        for part, kind in kinds.items():
            name = part.replace("text_encoder", "tokenizer")
            if part in found and name not in found:
                rows = files.vocabulary(found[part][0], part)
                tokenizer = find_tokenizer(kind, rows, files.host, near=one.folder)
                found |= {} if tokenizer is None else {name: (tokenizer,)}
        return found

    def check_inputs(self, inputs: Mapping[str, Any], model: InstalledModel) -> None:
        """Refuse a size that the model was not trained on: those of the toy are no others'."""
        if {"width", "height"} <= inputs.keys():
            check_size(inputs["width"], inputs["height"], model.is_built_in)

    def work(self, inputs: Mapping[str, Any], handle: ModelHandle) -> ImageWork:
        """Return what an image has to do, from the inputs of Hunyuan-DiT Text to Image or Memory Plan."""
        from .phases import ImageWork

        return ImageWork(**{name: inputs[name] for name in self.planned_inputs if name in inputs})

    def phases(self, components: Mapping[str, Component], work: ImageWork) -> tuple[Phase, ...]:
        """Return both encoders, sample and decode."""
        from .phases import phases

        return phases(components, work)

    def splits(
        self, components: Mapping[str, Component], work: ImageWork, cards: Cards, machine: Machine
    ) -> Sequence[Split]:
        """Return the ways to share an image's predictions between cards."""
        from .phases import splits

        return splits(components, work, cards, machine)

    def fitting(
        self, components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: ImageWork
    ) -> list[ImageWork]:
        """Return the largest image that fits."""
        from .phases import fitting

        return fitting(components, machine, handle, work)

    def what_fits(self, found: Sequence[ImageWork], work: ImageWork) -> str:
        """Return a sentence on what `fitting` has found."""
        from .phases import what_fits

        del work
        return what_fits(found)


def _beside(path: Path) -> dict[str, tuple[Path, ...]]:
    """Return the components in the folders around one of Tencent's files; each text encoder may be PyTorch's own."""
    folder = path.parent.parent
    here = {part: folder / name for part, name in PUBLISHED.items() if (folder / name).is_dir()}
    return {
        part: (place / PYTORCH if "encoder" in part and (place / PYTORCH).is_file() else place,)
        for part, place in here.items()
    }


def _inside(one: SingleFile) -> dict[str, tuple[Path, ...]]:
    """Return the components and tokenizers of an all-in-one checkpoint, whose T5 is the second text encoder."""
    from .layouts import BERT

    found: dict[str, tuple[Path, ...]] = {}
    for part in one.found.parts:
        second = part.kind == "text_encoder" and part.title != BERT.title
        found[f"{part.kind}_2" if second else part.kind] = (one.path,)
        if part.has_tokenizer:
            found["tokenizer_2" if second else "tokenizer"] = (one.path,)
    return found


HUNYUAN_DIT = HunyuanDiTFamily(
    key="hunyuan_dit",
    title="Hunyuan-DiT",
    index_classes=("HunyuanDiTPipeline",),
    socket="HUNYUAN_DIT",
    loader="Load Hunyuan-DiT",
    components=(
        ComponentSpec(
            name="text_encoder",
            classes=("BertModel",),
            model_types={"bert": "BertModel"},
            rules=CastRules(("encoder.layer",)),
        ),
        ComponentSpec(
            name="text_encoder_2",
            classes=("T5EncoderModel",),
            model_types={"t5": "T5EncoderModel", "mt5": "T5EncoderModel"},
            rules=CastRules(
                ("encoder.block",),
                keep={"*.relative_attention_bias": "an embedding, which is looked up and not multiplied"},
                fp32_modules={"fp16": ("wo",)},
            ),
        ),
        ComponentSpec(
            name="transformer",
            classes=("HunyuanDiT2DModel",),
            rules=CastRules(
                ("blocks",),
                # diffusers spares them too (HunyuanDiT2DModel._skip_layerwise_casting_patterns).
                keep={"*norm*": "the Linear layers of norms are sensitive to rounding"},
                spared=("pos_embed", "norm", "pooler"),
            ),
        ),
        ComponentSpec(name="vae", classes=("AutoencoderKL",)),
    ),
    required=("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"),
    missing={
        "text_encoder": "its BERT text encoder",
        "text_encoder_2": "its mT5 text encoder",
        "tokenizer": "the tokenizer of its BERT, in models/tokenizers",
        "tokenizer_2": "the tokenizer of its mT5, in models/tokenizers",
        "vae": "the Stable Diffusion XL VAE",
    },
    remedy="Fetch it with `python install.py --models hunyuan-dit-v1.2`, whose folder lends its parts",
    lora_widths={1408: "Hunyuan-DiT"},
    published=TrainedOn(
        settings={"width": DEFAULT_WIDTH, "height": DEFAULT_HEIGHT, "steps": DEFAULT_STEPS, "cfg": DEFAULT_CFG},
        sizes=tuple(SIZES),
    ),
    toy=TrainedOn(
        settings={"width": 128, "height": 128, "steps": 25, "cfg": 3.0},
        sizes=tuple(reversed(TOY_SIZES)),
        areas=(0, 128 * 128),
    ),
    planned_inputs=("width", "height", "cfg", "steps"),
    can_share=True,
)
