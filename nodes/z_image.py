"""Z-Image nodes: load a model, put a LoRA on it, draw an image from text or from a picture."""

from __future__ import annotations

from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.image_sizes import MULTIPLE
from ..core.z_image import request as z_image
from ..core.z_image.family import Z_IMAGE
from .model_nodes import CFG_TOOLTIP, STEPS_TOOLTIP, DiffusionLoader, LoRANode, PlannedNode
from .shared import CATEGORY, HIDDEN, all_checked, checked, record_run, seed_input, shown
from .widgets import number, socket, whole

IMAGES = f"{CATEGORY}/Z-Image"
WORDS = ["z-image", "z image turbo", "造相"]  # what people type to find any of these nodes


class PiyingLoadZImage(DiffusionLoader):
    """Choose a Z-Image model."""

    FAMILY = Z_IMAGE
    CATEGORY = IMAGES
    DESCRIPTION = "Chooses a Z-Image model. Nothing is loaded until an image is drawn."
    SEARCH_ALIASES = [*WORDS, "load image model", "加载模型"]
    REPLACES_GENERIC = ("UNETLoader", "CLIPLoader", "VAELoader")
    MODEL_NAMES = ("z_image", "z-image")
    RETURN_TYPES = ("Z_IMAGE",)
    ALSO = ", or one file under models/diffusion_models with Qwen3-4B and the Flux VAE beside it"
    OUTPUT_TOOLTIPS = ("The model, for Z-Image.",)
    PRECISION_TOOLTIP = "Number type. auto: bf16 on a card, fp32 on a CPU."


class PiyingZImageLoRA(LoRANode):
    """A Z-Image model → the same with a LoRA on it."""

    FAMILY = Z_IMAGE
    SETTINGS = {"steps": z_image.DEFAULT_STEPS, "cfg": z_image.DEFAULT_CFG}
    CATEGORY = IMAGES
    DESCRIPTION = (
        "Puts a LoRA on a Z-Image model; several go on one behind the other. The weights are not read again when it "
        "is taken off or its strength changes. Only the transformer is changed, not the text encoder."
    )
    SEARCH_ALIASES = [*WORDS, "lora loader", "加载LoRA"]
    REPLACES_GENERIC = ("LoraLoader", "LoraLoaderModelOnly")
    RETURN_TYPES = ("Z_IMAGE", "INT", "FLOAT")
    RETURN_NAMES = ("model", "steps", "cfg")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA, for Z-Image.",
        STEPS_TOOLTIP.format(node="Z-Image"),
        CFG_TOOLTIP.format(node="Z-Image"),
    )


class PiyingZImage(PlannedNode):
    """Text, and a picture where there is one → image."""

    CATEGORY = IMAGES
    DESCRIPTION = (
        "Draws an image from Chinese or English text with Z-Image, or edits a picture after a text (image to image)."
    )
    SEARCH_ALIASES = [*WORDS, "text to image", "txt2img", "t2i", "image to image", "img2img", "文生图", "图生图"]
    REPLACES_GENERIC = ("ModelSamplingAuraFlow", "EmptySD3LatentImage", "CLIPTextEncode", "KSampler", "VAEDecode")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The image.",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        text = {"multiline": True, "default": ""}
        return {
            "required": {
                "model": socket("Z_IMAGE", "From Load Z-Image."),
                "prompt": ("STRING", {**text, "tooltip": "What the image shows, in Chinese or English."}),
                "negative_prompt": (
                    "STRING",
                    {**text, "tooltip": "What to steer away from. Without effect at cfg 1."},
                ),
                "width": ("INT", _side(z_image.DEFAULT_WIDTH, "Width")),
                "height": ("INT", _side(z_image.DEFAULT_HEIGHT, "Height")),
                # The defaults are Turbo's, the model that `--models z-image-turbo` downloads.
                "steps": whole(
                    z_image.DEFAULT_STEPS, 1, 200, "Denoising steps. Published: 8 for Turbo, 50 for the base model."
                ),
                "cfg": number(
                    z_image.DEFAULT_CFG,
                    1.0,
                    30.0,
                    0.1,
                    tooltip="How strictly to follow the prompt. 1 for Turbo, which ignores the negative prompt; 4 to "
                    "6 for the base model.",
                ),
                "shift": number(
                    z_image.DEFAULT_SHIFT,
                    0.1,
                    100.0,
                    0.1,
                    tooltip="Timestep shift of the noise schedule: higher spends more steps on layout. Published for "
                    "Turbo: 3.",
                ),
                "seed": seed_input(),
            },
            # An optional socket in place of a second node: text to image and image to image share all widgets.
            "optional": {
                "image": socket(
                    "IMAGE", "Input of image to image; of several the first is taken, cropped to the size."
                ),
                # From 0.01: at 0 no step would be left to take.
                "strength": number(
                    z_image.DEFAULT_STRENGTH,
                    0.01,
                    1.0,
                    0.01,
                    tooltip="Denoising strength: how much of the picture changes. 1: all of it. Without effect where "
                    "no image is wired.",
                ),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width: int | None, height: int | None) -> bool | str:
        """Name the nearest good number for a size that the model cannot draw."""
        sides = (("width", width), ("height", height))
        results = [checked(z_image.check_side, name, value) for name, value in sides if value is not None]
        return all_checked(results)

    @staticmethod
    def plan_inputs(known: dict[str, Any], linked: Any) -> dict[str, Any]:
        """Return what a memory plan is made from; whether there is a picture only its wire tells before a run."""
        return {**known, "image": "image" in linked}

    def draw(
        self,
        model: ModelHandle,
        image: Any = None,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
        **widgets: Any,
    ) -> dict[str, Any]:
        """Return the image [1, H, W, 3], and show on the node how it was made."""
        from ..core.z_image.run import sample

        drawn, record = sample(model, z_image.ZImageRequest(**widgets), get_host(), image)
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, drawn)


def _side(default: int, name: str) -> dict[str, Any]:
    return {
        "default": default,
        "min": z_image.MIN_SIDE,
        "max": z_image.MAX_SIDE,
        "step": MULTIPLE,
        "tooltip": f"{name} in pixels, a multiple of 16. Best where width × height is about 1024×1024.",
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadZImage": PiyingLoadZImage,
    "PiyingZImageLoRA": PiyingZImageLoRA,
    "PiyingZImage": PiyingZImage,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadZImage": "Load Z-Image",
    "PiyingZImageLoRA": "Add Z-Image LoRA",
    "PiyingZImage": "Z-Image",
}
