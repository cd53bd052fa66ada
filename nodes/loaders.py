"""Loader nodes: choose a model and how it runs. Nothing is read until another node needs it."""

from __future__ import annotations

from typing import Any

from ..core.checkpoints.choose import (
    HUNYUAN_DIT,
    PROMPT,
    WAN_VACE,
    Family,
    ModelHandle,
    check_model,
    model_choices,
)
from ..core.host import get_host
from ..core.memory.devices import PRECISIONS
from .shared import CATEGORY, checked


class _Loader:
    """What the loaders share: two widgets and a handle."""

    FAMILY: Family
    PRECISION_TOOLTIP: str
    CATEGORY = CATEGORY
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets; the list of models is what is installed now."""
        model_tooltip = (
            "auto: the largest installed model that fits this machine, else the built-in toy model. "
            f"Models are folders under models/{cls.FAMILY.folder}."
        )
        models = model_choices(cls.FAMILY, get_host())
        return {
            "required": {
                "model": (models, {"default": "auto", "tooltip": model_tooltip}),
                "precision": (list(PRECISIONS), {"default": "auto", "tooltip": cls.PRECISION_TOOLTIP}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are installed when the chosen one is not."""
        return model is None or checked(check_model, cls.FAMILY, model, get_host())

    def load(self, model: str, precision: str) -> tuple[ModelHandle]:
        """Return a handle."""
        return (ModelHandle(self.FAMILY, model, precision),)


class PiyingLoadWanVACE(_Loader):
    """Choose a Wan2.1-VACE model."""

    FAMILY = WAN_VACE
    DESCRIPTION = "Chooses a Wan2.1-VACE model. Nothing is loaded until a sampler needs it."
    RETURN_TYPES = ("WAN_VACE",)
    OUTPUT_TOOLTIPS = ("The model, for VACE Sample.",)
    PRECISION_TOOLTIP = (
        "Number type of text encoder and transformer. auto: bf16 on a card, fp32 on a CPU. "
        "The VAE always runs in fp32."
    )


class PiyingLoadHunyuanDiT(_Loader):
    """Choose a Hunyuan-DiT model."""

    FAMILY = HUNYUAN_DIT
    DESCRIPTION = "Chooses a Hunyuan-DiT model. Nothing is loaded until an image is drawn."
    RETURN_TYPES = ("HUNYUAN_DIT",)
    OUTPUT_TOOLTIPS = ("The model, for Hunyuan-DiT Text to Image.",)
    PRECISION_TOOLTIP = "Number type. auto: fp16 on a card, fp32 on a CPU."


class PiyingLoadPromptModel(_Loader):
    """Choose a Qwen3 model that writes prompts."""

    FAMILY = PROMPT
    DESCRIPTION = "Chooses the language model that writes prompts. Nothing is loaded until a prompt is expanded."
    RETURN_TYPES = ("PROMPT_MODEL",)
    OUTPUT_TOOLTIPS = ("The model, for Expand Prompt.",)
    PRECISION_TOOLTIP = "Number type. auto: bf16 on a card, fp32 on a CPU."
