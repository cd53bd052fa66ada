"""Hunyuan-DiT nodes: load a model, put a LoRA on it, draw an image."""

from __future__ import annotations

from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.hunyuan_dit import request as dit
from ..core.hunyuan_dit.family import HUNYUAN_DIT
from ..core.image_sizes import MULTIPLE
from .model_nodes import CFG_TOOLTIP, STEPS_TOOLTIP, DiffusionLoader, LoRANode, PlannedNode
from .shared import CATEGORY, HIDDEN, checked, record_run, seed_input, shown

ALL_SIZES = dit.SIZES + dit.TOY_SIZES


IMAGES = f"{CATEGORY}/Hunyuan-DiT"
HUNYUAN = ["hunyuan", "混元", "HunyuanDiT"]  # what people type to find any of these nodes


class PiyingLoadHunyuanDiT(DiffusionLoader):
    """Choose a Hunyuan-DiT model."""

    FAMILY = HUNYUAN_DIT
    CATEGORY = IMAGES
    DESCRIPTION = "Chooses a Hunyuan-DiT model. Nothing is loaded until an image is drawn."
    SEARCH_ALIASES = [*HUNYUAN, "load image model", "加载模型"]
    REPLACES = ("HYDiTCheckpointLoader", "HYDiTTextEncoderLoader")
    REPLACES_GENERIC = ("CheckpointLoaderSimple",)
    MODEL_NAMES = ("hunyuan_dit", "hunyuandit", "hydit")
    RETURN_TYPES = ("HUNYUAN_DIT",)
    ALSO = ", or ComfyUI's all-in-one checkpoint or Tencent's own files under models/checkpoints"
    OUTPUT_TOOLTIPS = ("The model, for Hunyuan-DiT Text to Image.",)
    PRECISION_TOOLTIP = "Number type. auto: fp16 on a card, fp32 on a CPU."


class PiyingHunyuanDiTLoRA(LoRANode):
    """A Hunyuan-DiT model → the same with a LoRA on it."""

    FAMILY = HUNYUAN_DIT
    SETTINGS = {"steps": dit.DEFAULT_STEPS, "cfg": dit.DEFAULT_CFG}
    CATEGORY = IMAGES
    DESCRIPTION = (
        "Puts a LoRA on a Hunyuan-DiT model; several can be chained. Removing it or changing its strength reads no "
        "weights again. Only the transformer is changed, not the text encoders."
    )
    SEARCH_ALIASES = [*HUNYUAN, "lora loader", "加载LoRA"]
    REPLACES_GENERIC = ("LoraLoader", "LoraLoaderModelOnly")
    RETURN_TYPES = ("HUNYUAN_DIT", "INT", "FLOAT")
    RETURN_NAMES = ("model", "steps", "cfg")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA, for Hunyuan-DiT Text to Image.",
        STEPS_TOOLTIP.format(node="Hunyuan-DiT Text to Image"),
        CFG_TOOLTIP.format(node="Hunyuan-DiT Text to Image"),
    )


class PiyingHunyuanDiT(PlannedNode):
    """Text → image."""

    CATEGORY = IMAGES
    DESCRIPTION = "Draws an image from Chinese or English text with Hunyuan-DiT."
    SEARCH_ALIASES = [*HUNYUAN, "text to image", "txt2img", "t2i", "文生图"]
    REPLACES = ("CLIPTextEncodeHunyuanDiT", "HYDiTTextEncode", "HYDiTTextEncodeSimple", "HYDiTSrcSizeCond")
    REPLACES_GENERIC = ("EmptyLatentImage", "KSampler", "VAEDecode")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The image.",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "model": ("HUNYUAN_DIT", {"tooltip": "From Load Hunyuan-DiT."}),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What the image shows, in Chinese or English.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What to steer away from. Without effect at cfg 1.",
                    },
                ),
                "width": ("INT", _side(dit.DEFAULT_WIDTH, 0)),
                "height": ("INT", _side(dit.DEFAULT_HEIGHT, 1)),
                "steps": (
                    "INT",
                    {
                        "default": dit.DEFAULT_STEPS,
                        "min": 1,
                        # The scheduler's "leading" steps miss the noisiest ones at most numbers beyond.
                        "max": 100,
                        "tooltip": "Denoising steps. Published: 50; 25 to 50 for the distilled model.",
                    },
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": dit.DEFAULT_CFG,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "How strictly to follow the prompt. Published: 5. 1 ignores the negative prompt.",
                    },
                ),
                "seed": seed_input(),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width: int | None, height: int | None) -> bool | str:
        """Name the nearest size when the model was not trained on this one."""
        # Which model it is `refusal` knows: the sizes of the toy pass here.
        return width is None or height is None or checked(dit.check_size, width, height, True)

    def draw(
        self, model: ModelHandle, extra_pnginfo: Any = None, unique_id: str | None = None, **widgets: Any
    ) -> dict[str, Any]:
        """Return the image [1, H, W, 3], and show on the node how it was made."""
        from ..core.hunyuan_dit.run import sample

        image, record = sample(model, dit.ImageRequest(**widgets), get_host())
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, image)


def _side(default: int, axis: int) -> dict[str, Any]:
    # Of both models, since a widget has one range; the pair of sides is checked by VALIDATE_INPUTS.
    sides = [size[axis] for size in ALL_SIZES]
    listed = ", ".join(f"{width}×{height}" for width, height in dit.SIZES)
    return {
        "default": default,
        "min": min(sides),
        "max": max(sides),
        "step": MULTIPLE,
        "tooltip": f"Width × height is one of: {listed}. The built-in toy model also draws 64×64 to 128×128.",
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadHunyuanDiT": PiyingLoadHunyuanDiT,
    "PiyingHunyuanDiTLoRA": PiyingHunyuanDiTLoRA,
    "PiyingHunyuanDiT": PiyingHunyuanDiT,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadHunyuanDiT": "Load Hunyuan-DiT",
    "PiyingHunyuanDiTLoRA": "Add Hunyuan-DiT LoRA",
    "PiyingHunyuanDiT": "Hunyuan-DiT Text to Image",
}
