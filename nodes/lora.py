"""LoRA nodes: put a LoRA on a model that a loader chose. Nothing is read until the model is."""

from __future__ import annotations

from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.hunyuan_dit import request as image
from ..core.lora.catalog import NONE, check_lora, lora_choices, lora_details, lora_files, made_for, with_lora
from ..core.wan import request as video
from .shared import IMAGES, VACE, checked

STRONGEST = 100.0  # as in ComfyUI's own LoRA loader
STEPS_TOOLTIP = "Steps the LoRA was made for; without one that was made for few, the published number. For {node}."
CFG_TOOLTIP = "The cfg it was made for, else the published one. For {node}."


class _LoRA:
    """What the LoRA nodes share: a file, a strength, and the settings that go with it."""

    KIND: str
    LOADER: str
    FUNCTION = "add"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the socket and the widgets; the list of files is what is there now."""
        host = get_host()
        tooltip = "A file under models/loras. none: the model as it is."
        return {
            "required": {
                "model": (cls.KIND, {"tooltip": f"From {cls.LOADER}, or from another of these nodes."}),
                "lora": (
                    lora_choices(host),
                    {"default": NONE, "tooltip": "\n".join([tooltip, *lora_details(host)])},
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -STRONGEST,
                        "max": STRONGEST,
                        "step": 0.01,
                        "tooltip": "1 is as it was trained, 0 is without it; below 0 turns it around.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora: str | None) -> bool | str:
        """Say which files there are when the chosen one is not, or what it is when it is no LoRA."""
        return lora is None or checked(check_lora, lora, get_host())


class PiyingLoRA(_LoRA):
    """A Wan VACE model → the same with a LoRA on it."""

    KIND, LOADER = "WAN_VACE", "Load Wan VACE"
    CATEGORY = VACE
    DESCRIPTION = (
        "Puts a LoRA on a Wan2.1-VACE model; several go on one behind the other. The weights are not read again when "
        "it is taken off or its strength changes. A LoRA made for few steps brings its steps, cfg and shift: wire "
        "them to the sampler."
    )
    RETURN_TYPES = ("WAN_VACE", "INT", "FLOAT", "FLOAT")
    RETURN_NAMES = ("model", "steps", "cfg", "shift")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA, for VACE Sample.",
        STEPS_TOOLTIP.format(node="VACE Sample"),
        CFG_TOOLTIP.format(node="VACE Sample"),
        "The shift it was made for, else the published one. For VACE Sample.",
    )

    def add(self, model: ModelHandle, lora: str, strength: float) -> tuple[ModelHandle, int, float, float]:
        """Return a handle, and the settings of the last LoRA on it that was made for any."""
        handle = with_lora(model, lora, strength, get_host())
        settings = made_for(lora_files(handle, get_host()))
        return (
            handle,
            int(settings.get("steps", video.DEFAULT_STEPS)),
            settings.get("cfg", video.DEFAULT_CFG),
            settings.get("shift", video.DEFAULT_SHIFT),
        )


class PiyingHunyuanDiTLoRA(_LoRA):
    """A Hunyuan-DiT model → the same with a LoRA on it."""

    KIND, LOADER = "HUNYUAN_DIT", "Load Hunyuan-DiT"
    CATEGORY = IMAGES
    DESCRIPTION = (
        "Puts a LoRA on a Hunyuan-DiT model; several go on one behind the other. The weights are not read again when "
        "it is taken off or its strength changes. Only the transformer is changed, not the text encoders."
    )
    RETURN_TYPES = ("HUNYUAN_DIT", "INT", "FLOAT")
    RETURN_NAMES = ("model", "steps", "cfg")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA, for Hunyuan-DiT Text to Image.",
        STEPS_TOOLTIP.format(node="Hunyuan-DiT Text to Image"),
        CFG_TOOLTIP.format(node="Hunyuan-DiT Text to Image"),
    )

    def add(self, model: ModelHandle, lora: str, strength: float) -> tuple[ModelHandle, int, float]:
        """Return a handle, and the settings of the last LoRA on it that was made for any."""
        handle = with_lora(model, lora, strength, get_host())
        settings = made_for(lora_files(handle, get_host()))
        return handle, int(settings.get("steps", image.DEFAULT_STEPS)), settings.get("cfg", image.DEFAULT_CFG)
