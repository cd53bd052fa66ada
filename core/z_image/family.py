"""The Z-Image family: Z-Image and Z-Image-Turbo, in diffusers folders and in ComfyUI's single files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..families.base import ComponentSpec, ModelFamily, TrainedOn
from ..quantization.policy import CastRules
from .request import DEFAULT_CFG, DEFAULT_HEIGHT, DEFAULT_SHIFT, DEFAULT_STEPS, DEFAULT_WIDTH, SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
    from ..parallel.cards import Cards
    from ..parallel.ways import Split
    from ..planner.machine import Machine
    from ..planner.phases import Component, Phase
    from .phases import ZImageWork

EMBEDDINGS = "model.embed_tokens.weight"


class ZImageFamily(ModelFamily):
    """Z-Image."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return those of the transformer and of the VAE."""
        from ..checkpoints.layouts.kl_vae import FLUX_DIFFUSERS, FLUX_ORIGINAL
        from .layouts import Z_IMAGE_DIFFUSERS, Z_IMAGE_ORIGINAL

        return Z_IMAGE_DIFFUSERS, Z_IMAGE_ORIGINAL, FLUX_DIFFUSERS, FLUX_ORIGINAL

    def descriptions(self) -> Mapping[str, Description]:
        """Return those of all three components."""
        from ..checkpoints.layouts.kl_vae import tensors as vae_tensors
        from ..checkpoints.layouts.language_model import qwen3_encoder_tensors
        from .layouts import tensors

        return {
            "Qwen3Model": qwen3_encoder_tensors,
            "ZImageTransformer2DModel": tensors,
            "AutoencoderKL": vae_tensors,
        }

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return transformers in one file, with the text encoder and the VAE beside them."""
        transformers = [one for one in files.all if one.found.readable and one.holds("transformer", self.key)]
        if not transformers:
            return []
        return [
            files.model(self, (one,), {**self.beside((one,), files, folders), "transformer": (one.path,)})
            for one in transformers
        ]

    def beside(
        self, transformer: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the text encoder with its tokenizer, and the VAE, as far as they are here."""
        from ..checkpoints.layouts.kl_vae import FLUX_TITLE
        from ..checkpoints.layouts.language_model import LANGUAGE_MODEL

        (one,) = transformer
        lent = files.lent_by(folders, ("text_encoder", "tokenizer", "vae"))
        vae = None if "vae" in lent else _vae(files)
        own = one.inside({"text_encoder": LANGUAGE_MODEL.title, "vae": FLUX_TITLE})
        texts_lent = lent.keys() >= {"text_encoder", "tokenizer"} and "text_encoder" not in own
        encoder = {} if texts_lent else _encoder(one, files, folders)
        return {**({"vae": (vae,)} if vae else {}), **encoder, **lent, **own}

    def work(self, inputs: Mapping[str, Any], handle: ModelHandle) -> ZImageWork:
        """Return what an image has to do, from the inputs of the Z-Image node or Memory Plan."""
        from .phases import ZImageWork

        del handle
        known = {name: inputs[name] for name in self.planned_inputs if name in inputs}
        return ZImageWork(**known, has_image=bool(inputs.get("image")))

    def phases(self, components: Mapping[str, Component], work: ZImageWork) -> tuple[Phase, ...]:
        """Return encode, condition where there is a picture, sample and decode."""
        from .phases import phases

        return phases(components, work)

    def splits(
        self, components: Mapping[str, Component], work: ZImageWork, cards: Cards, machine: Machine
    ) -> Sequence[Split]:
        """Return the ways to share an image's predictions between cards."""
        from .phases import splits

        return splits(components, work, cards, machine)

    def fitting(
        self, components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: ZImageWork
    ) -> list[ZImageWork]:
        """Return the largest image that fits."""
        from .phases import fitting

        return fitting(components, machine, handle, work)

    def what_fits(self, found: Sequence[ZImageWork], work: ZImageWork) -> str:
        """Return a sentence on what `fitting` has found."""
        from .phases import what_fits

        del work
        return what_fits(found)


def _vae(files: FileCatalog) -> Path | None:
    """Return the file of the Flux VAE that is here.

    That of Stable Diffusion 3 has the same shapes, and makes other colours: one that has the published name comes
    first.
    """
    from ..checkpoints.layouts.kl_vae import FLUX_TITLE

    found = [one for one in files.all if one.title == FLUX_TITLE and one.found.readable]
    named = [one for one in found if one.path.stem.lower() in ("ae", "flux_ae", "z_image_ae")]
    return next((one.path for one in [*named, *found]), None)


def _encoder(
    transformer: SingleFile, files: FileCatalog, folders: Sequence[InstalledModel]
) -> dict[str, tuple[Path, ...]]:
    """Return the language model whose states the transformer reads, and its tokenizer, as far as they are here."""
    from ..checkpoints.layouts.language_model import LANGUAGE_MODEL
    from ..checkpoints.tokenizers import TokenizerKind, find_tokenizer

    wanted = files.shapes(transformer.path, "transformer")["cap_embedder.1.weight"][1]
    inside = transformer.inside({"text_encoder": LANGUAGE_MODEL.title})
    beside = [one for one in files.all if one.title == LANGUAGE_MODEL.title and one.found.readable]
    for one in [transformer] if inside else beside:
        vocabulary, width = files.shapes(one.path, "text_encoder")[EMBEDDINGS]
        if width == wanted:
            lenders = [folder.path for folder in folders] + files.folders_of(*QWEN3)
            elsewhere = find_tokenizer(TokenizerKind.BPE, vocabulary, files.host, lenders=lenders, near=one.folder)
            tokenizer = one.path if one.has_tokenizer else elsewhere
            found: dict[str, tuple[Path, ...]] = {"text_encoder": (one.path,)}
            return found | ({"tokenizer": (tokenizer,)} if tokenizer is not None else {})
    return {}


QWEN3 = ("Qwen3ForCausalLM",)  # what folders of it name

Z_IMAGE = ZImageFamily(
    key="z_image",
    title="Z-Image",
    index_classes=("ZImagePipeline",),
    socket="Z_IMAGE",
    loader="Load Z-Image",
    components=(
        ComponentSpec(
            name="text_encoder",
            classes=("Qwen3Model",),
            model_types={"qwen3": "Qwen3Model"},
            rules=CastRules(("layers",)),
            layout_kind="prompt_model",
        ),
        ComponentSpec(
            name="transformer",
            classes=("ZImageTransformer2DModel",),
            rules=CastRules(
                ("noise_refiner", "context_refiner", "layers"),
                keep={"*.adaLN_modulation.*": "modulation scales every token, and is sensitive to rounding"},
                spared=("t_embedder", "cap_embedder"),
            ),
        ),
        ComponentSpec(name="vae", classes=("AutoencoderKL",)),
    ),
    required=("transformer", "text_encoder", "tokenizer", "vae"),
    missing={
        "text_encoder": "the Qwen3-4B text encoder, in models/text_encoders",
        "tokenizer": "the tokenizer of a Qwen3 model, in models/tokenizers or in a Qwen3 folder in models/LLM",
        "vae": "the Flux VAE (ae.safetensors), in models/vae",
    },
    remedy="Put it there, or fetch the whole model with `python install.py --models z-image-turbo-bf16`",
    lora_widths={3840: "Z-Image"},
    published=TrainedOn(
        settings={
            "width": DEFAULT_WIDTH,
            "height": DEFAULT_HEIGHT,
            "steps": DEFAULT_STEPS,
            "cfg": DEFAULT_CFG,
            "shift": DEFAULT_SHIFT,
        },
        sizes=SIZES,
        areas=(512 * 512, None),
    ),
    planned_inputs=("width", "height", "cfg", "steps"),
    can_share=True,
)
