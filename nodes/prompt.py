"""Prompt nodes: expand a short line."""

from __future__ import annotations

from typing import Any

from ..core.checkpoints.choose import ModelHandle
from ..core.host import get_host
from ..core.prompting.presets import preset_names
from .shared import CATEGORY, record_run, seed_input


class PiyingExpandPrompt:
    """A short line → a rich prompt."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Rewrites a short line as the rich prompt that image and video models were trained on."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The expanded prompt.",)
    FUNCTION = "expand"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "model": ("PROMPT_MODEL", {"tooltip": "From Load Prompt Model."}),
                "prompt": (
                    "STRING",
                    {"multiline": True, "default": "", "tooltip": "A short line, in Chinese or English."},
                ),
                "preset": (
                    preset_names(),
                    {"default": "text_to_video", "tooltip": "What the prompt is for: a video or an image."},
                ),
                "max_new_tokens": (
                    "INT",
                    {"default": 256, "min": 1, "max": 4096, "tooltip": "The longest answer, in tokens."},
                ),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 0.7,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.05,
                        "tooltip": "How freely to write. Published for Qwen3: 0.7. 0 always takes the likeliest word.",
                    },
                ),
                "seed": seed_input(),
            },
            "hidden": {"extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    def expand(
        self, model: ModelHandle, extra_pnginfo: Any = None, unique_id: str | None = None, **widgets: Any
    ) -> tuple[str]:
        """Return the expanded prompt."""
        from ..core.prompting.expand import ExpandRequest, expand

        text, record = expand(model, ExpandRequest(**widgets), get_host())
        record_run(extra_pnginfo, unique_id, {**record, "expanded": text})
        return (text,)
