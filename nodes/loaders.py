"""Loader nodes: choose a model and how it runs. Nothing is read until another node needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.catalog.selection import (
    HUNYUAN_DIT,
    PROMPT,
    WAN_VACE,
    Family,
    ModelHandle,
    check_model,
    model_choices,
    model_details,
)
from ..core.host.current import get_host
from ..core.planner.machine import MEMORY_CHOICES, PRECISIONS
from .shared import IMAGES, PROMPTS, VACE, checked

MEMORY_TOOLTIP = (
    "auto: the fastest way that fits the card, found anew for every size and length, and shown in the log. "
    "resident: whole models on the card. streamed: block by block, for the smallest cards. "
    "fp8: weights of one byte, half the memory."
)
COMPILE_TOOLTIP = (
    "Have torch.compile make code for writing one token: the first answer waits for it, up to minutes. For a queue of "
    "many prompts on a card that holds the whole model. Needs Triton there, and a C++ compiler on a CPU, where models "
    "of real size came out slower. Left out where weights are streamed, and for models that see."
)


class _Loader:
    """What the loaders share: two widgets and a handle."""

    FAMILY: Family
    PRECISION_TOOLTIP: str
    ALSO = ""
    CATEGORY: str
    RETURN_NAMES = ("model",)
    FUNCTION = "load"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets; the list of models is what is installed now."""
        model_tooltip = (
            "auto: the largest installed model that fits this machine, else the built-in toy model. "
            f"Models are folders under models/{cls.FAMILY.folder}{cls.ALSO}."
        )
        models = model_choices(cls.FAMILY, get_host())
        model_tooltip = "\n".join([model_tooltip, *model_details(cls.FAMILY, get_host())])
        return {
            "required": {
                "model": (models, {"default": "auto", "tooltip": model_tooltip}),
                "precision": (list(PRECISIONS), {"default": "auto", "tooltip": cls.PRECISION_TOOLTIP}),
            },
            "optional": {"memory": (list(MEMORY_CHOICES), {"default": "auto", "tooltip": MEMORY_TOOLTIP})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are installed when the chosen one is not."""
        return model is None or checked(check_model, cls.FAMILY, model, get_host())

    def load(self, model: str, precision: str, memory: str = "auto") -> tuple[ModelHandle]:
        """Return a handle."""
        return (ModelHandle(self.FAMILY, model, precision, memory),)


class PiyingLoadWanVACE(_Loader):
    """Choose a Wan2.1-VACE model."""

    FAMILY = WAN_VACE
    CATEGORY = VACE
    DESCRIPTION = "Chooses a Wan2.1-VACE model. Nothing is loaded until a sampler needs it."
    RETURN_TYPES = ("WAN_VACE",)
    ALSO = ", or single files under models/diffusion_models with a text encoder and a VAE beside them"
    OUTPUT_TOOLTIPS = ("The model, for VACE Sample.",)
    PRECISION_TOOLTIP = (
        "Number type of text encoder and transformer. auto: bf16 on a card, fp32 on a CPU. "
        "The VAE always runs in fp32."
    )


class PiyingLoadHunyuanDiT(_Loader):
    """Choose a Hunyuan-DiT model."""

    FAMILY = HUNYUAN_DIT
    CATEGORY = IMAGES
    DESCRIPTION = "Chooses a Hunyuan-DiT model. Nothing is loaded until an image is drawn."
    RETURN_TYPES = ("HUNYUAN_DIT",)
    ALSO = ", or ComfyUI's all-in-one checkpoint or Tencent's own files under models/checkpoints"
    OUTPUT_TOOLTIPS = ("The model, for Hunyuan-DiT Text to Image.",)
    PRECISION_TOOLTIP = "Number type. auto: fp16 on a card, fp32 on a CPU."


class PiyingLoadPromptModel(_Loader):
    """Choose a language model that writes prompts."""

    FAMILY = PROMPT
    CATEGORY = PROMPTS
    DESCRIPTION = "Chooses the language model that writes prompts. Nothing is loaded until a prompt is expanded."
    RETURN_TYPES = ("PROMPT_MODEL",)
    ALSO = ", or Qwen3 and Qwen2.5 in one file under models/text_encoders or models/LLM"
    OUTPUT_TOOLTIPS = ("The model, for Expand Prompt.",)
    PRECISION_TOOLTIP = "Number type. auto: bf16 on a card, fp32 on a CPU."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets of every loader, and compiling."""
        inputs = super().INPUT_TYPES()
        inputs["optional"]["compile_step"] = ("BOOLEAN", {"default": False, "tooltip": COMPILE_TOOLTIP})
        return inputs

    def load(self, model: str, precision: str, memory: str = "auto", compile_step: bool = False) -> tuple[ModelHandle]:
        """Return a handle."""
        (handle,) = super().load(model, precision, memory)
        return (replace(handle, compile_step=compile_step),)
