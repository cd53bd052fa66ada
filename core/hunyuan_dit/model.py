"""Hunyuan-DiT model: where it is on disk, and its parts as the phases need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..catalog.installed_model import InstalledModel
from ..catalog.selection import ModelHandle
from ..families.diffusion_model import ModelParts, pipeline_of
from ..host.base import Host

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    from ..planner.phases import Component
    from ..planner.plan_types import PhasePlan


@dataclass(frozen=True)
class HunyuanDiTModel:
    """One installed model, by its parts."""

    parts: ModelParts

    @property
    def found(self) -> InstalledModel:
        """Where it is."""
        return self.parts.found

    def components(self) -> Mapping[str, Component]:
        """Return the sizes of its parts, read from the headers of its files."""
        return self.parts.components()

    def encoder_pipeline(self, encoder: str, choice: PhasePlan) -> HunyuanDiTPipeline:
        """Return a pipeline of one text encoder and its tokenizer.

        Args:
            encoder: `text_encoder` or `text_encoder_2`.
            choice: the plan of its phase.
        """
        from ..checkpoints.tokenizers import tokenizer_of

        tokenizer = encoder.replace("text_encoder", "tokenizer")
        loaded = tokenizer_of(self.found, tokenizer)
        return self._pipeline(**{encoder: self.parts.load(encoder, choice), tokenizer: loaded})

    def sampler(self, choice: PhasePlan) -> HunyuanDiTPipeline:
        """Return a pipeline of the transformer and a fresh scheduler alone."""
        transformer: HunyuanDiT2DModel = self.parts.load("transformer", choice)
        in_files = bool(self.found.parts)
        scheduler = scheduler_of(transformer) if in_files else self._scheduler()
        return self._pipeline(transformer=transformer, scheduler=scheduler)

    def vae(self, choice: PhasePlan) -> AutoencoderKL:
        """Return the VAE in host memory."""
        vae: AutoencoderKL = self.parts.load("vae", choice)
        return vae

    def _pipeline(self, **parts: Any) -> HunyuanDiTPipeline:
        from diffusers import HunyuanDiTPipeline

        return pipeline_of(HunyuanDiTPipeline, **parts, requires_safety_checker=False)

    def _scheduler(self) -> Any:
        """Return the folder's own: v1.1 and the distilled models differ."""
        import diffusers

        index: Any = diffusers.HunyuanDiTPipeline.load_config(self.found.path, local_files_only=True)
        kind = getattr(diffusers, index["scheduler"][1])
        return kind.from_pretrained(self.found.path / "scheduler", local_files_only=True)


def scheduler_of(transformer: HunyuanDiT2DModel) -> DDPMScheduler:
    """Return the noise schedule of a transformer without a folder: v1.1 knows its style condition, v1.2 has none.

    Values: SAMPLER_FACTORY in hydit/constants.py of Tencent-Hunyuan/HunyuanDiT; the ends are those of ComfyUI's
    comfy/supported_models.py (HunyuanDiT, HunyuanDiT1).
    """
    from diffusers import DDPMScheduler

    old = transformer.config["use_style_cond_and_image_meta_size"]
    scheduler: DDPMScheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.03 if old else 0.018,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )
    return scheduler


def load(handle: ModelHandle, host: Host) -> HunyuanDiTModel:
    """Return the model a handle stands for; nothing is read yet.

    Raises:
        PiyingError: the model or a LoRA is not installed.
    """
    return HunyuanDiTModel(ModelParts.of(handle, host))
