"""Hunyuan-DiT: draw an image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.hunyuan_dit import request as dit
from ..core.image_sizes import MULTIPLE
from .shared import IMAGES, checked, record_run, seed_input, shown

ALL_SIZES = dit.SIZES + dit.TOY_SIZES
SIZING = ("width", "height", "cfg", "steps")  # what the need for memory depends on


class PiyingHunyuanDiT:
    """Text → image."""

    CATEGORY = IMAGES
    DESCRIPTION = "Draws an image from Chinese or English text with Hunyuan-DiT."
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
            "hidden": {"extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width: int | None, height: int | None) -> bool | str:
        """Name the nearest size when the model was not trained on this one."""
        return width is None or height is None or checked(dit.check_size, width, height, ALL_SIZES)

    def draw(
        self, model: ModelHandle, extra_pnginfo: Any = None, unique_id: str | None = None, **widgets: Any
    ) -> dict[str, Any]:
        """Return the image [1, H, W, 3], and show on the node how it was made."""
        from ..core.hunyuan_dit.sample import sample

        image, record = sample(model, dit.ImageRequest(**widgets), get_host())
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, image)

    def plan_memory(self, model: ModelHandle, linked: Collection[str] = (), **known: Any) -> Any:
        """Return what a run would need; `linked` are the inputs that only the run will know."""
        from ..core.hunyuan_dit.estimate import ask

        del linked
        return ask(model, get_host(), **{name: known[name] for name in SIZING if name in known})


def _side(default: int, axis: int) -> dict[str, Any]:
    sides = [size[axis] for size in ALL_SIZES]
    listed = ", ".join(f"{width}×{height}" for width, height in dit.SIZES)
    return {
        "default": default,
        "min": min(sides),
        "max": max(sides),
        "step": MULTIPLE,
        "tooltip": f"Width × height is one of: {listed}. The built-in toy model also draws 64×64 to 128×128.",
    }
