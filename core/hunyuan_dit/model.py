"""A Hunyuan-DiT model on disk, and its parts as the phases need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoints.choose import ModelHandle, choose_model
from ..checkpoints.found import FoundModel
from ..checkpoints.model_parts import ModelParts
from ..host import Host
from .memory import BLOCK_LISTS, FP8_KEEP

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, HunyuanDiT2DModel, HunyuanDiTPipeline

    from ..memory.components import Component
    from ..memory.planned import PhasePlan


@dataclass(frozen=True)
class HunyuanDiTModel:
    """One installed model: where it is, and the parts it is made of."""

    found: FoundModel
    parts: ModelParts

    def components(self) -> Mapping[str, Component]:
        """Return the sizes of its parts, read from the headers of its files."""
        from ..checkpoints.sizes import folder_components

        return folder_components(self.found.path, BLOCK_LISTS, FP8_KEEP)

    def encoder_pipeline(self, encoder: str, choice: PhasePlan) -> HunyuanDiTPipeline:
        """Return a pipeline of one text encoder and its tokenizer.

        Args:
            encoder: `text_encoder` or `text_encoder_2`.
            choice: the plan of its phase.
        """
        from transformers import AutoTokenizer

        tokenizer = encoder.replace("text_encoder", "tokenizer")
        loaded = AutoTokenizer.from_pretrained(self.found.path / tokenizer, local_files_only=True)
        return pipeline_of(**{encoder: self.parts.load(encoder, choice), tokenizer: loaded})

    def sampler(self, choice: PhasePlan) -> HunyuanDiTPipeline:
        """Return a pipeline of the transformer and a fresh scheduler alone."""
        from diffusers import HunyuanDiTPipeline

        # The scheduler's class is the folder's own: v1.1 and the distilled models differ.
        index = HunyuanDiTPipeline.load_config(self.found.path, local_files_only=True)
        transformer: HunyuanDiT2DModel = self.parts.load("transformer", choice)
        return pipeline_of(transformer=transformer, scheduler=self._scheduler(index["scheduler"][1]))

    def vae(self, choice: PhasePlan) -> AutoencoderKL:
        """Return the VAE in host memory."""
        vae: AutoencoderKL = self.parts.load("vae", choice)
        return vae

    def _scheduler(self, name: str) -> Any:
        import diffusers

        return getattr(diffusers, name).from_pretrained(self.found.path / "scheduler", local_files_only=True)


def pipeline_of(**parts: Any) -> HunyuanDiTPipeline:
    """Return a pipeline of just those parts."""
    from diffusers import HunyuanDiTPipeline

    names = ("vae", "text_encoder", "tokenizer", "transformer", "scheduler", "text_encoder_2", "tokenizer_2")
    absent = {name: None for name in (*names, "safety_checker", "feature_extractor") if name not in parts}
    pipeline = HunyuanDiTPipeline(**parts, **absent, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(handle: ModelHandle, host: Host) -> HunyuanDiTModel:
    """Return the model a handle stands for; nothing is read yet.

    Raises:
        PiyingError: the model is not installed.
    """
    found = choose_model(handle, host)
    return HunyuanDiTModel(found, ModelParts("hunyuan_dit", found.name, found, host, BLOCK_LISTS, FP8_KEEP))
