"""Prompt nodes: expand a short line, and the server that may do it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..core.errors import PiyingError
from ..core.host.current import get_host
from ..core.prompting.presets import ORDER, preset_names, preset_text
from ..core.prompting.request import LANGUAGES, LENGTHS, ExpandRequest
from .shared import PROMPTS, record_run, seed_input

# How often each node had to use the original prompt: such a result is not one to keep.
_failures: Counter[str | None] = Counter()


class PiyingExpandPrompt:
    """A short line → a rich prompt."""

    CATEGORY = PROMPTS
    DESCRIPTION = (
        "Rewrites a short line as the rich prompt that image and video models were trained on. Quoted text, numbers, "
        "colours, names and camera moves stay. What cannot be used gives the line back as it was, with a warning."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("prompt", "negative_prompt")
    OUTPUT_TOOLTIPS = (
        "The expanded prompt.",
        "A negative prompt that does not forbid what the prompt asks for, in the prompt's language.",
    )
    FUNCTION = "expand"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets; the presets are ours and the user's own."""
        return {
            "required": {
                "model": ("PROMPT_MODEL", {"tooltip": "From Load Prompt Model or Prompt Server."}),
                "prompt": (
                    "STRING",
                    {"multiline": True, "default": "", "tooltip": "A short line, in Chinese or English."},
                ),
                "preset": (
                    preset_names(get_host()),
                    {
                        "default": ORDER[0],
                        "tooltip": "What the prompt is for. The vace presets describe what the finished video shows. "
                        "Your own are text files in models/LLM/prompts.",
                    },
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
            "optional": _optional_inputs(),
            "hidden": {"extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, preset: str | None = None, unique_id: str | None = None, **_: Any) -> str:
        """Run again when the preset's file was edited, or the last run could not use an answer."""
        import hashlib

        try:
            text = preset_text(preset, get_host()) if preset else ""
        except PiyingError as error:
            text = str(error)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {_failures[unique_id]}"

    def expand(
        self, model: Any, image: Any = None, extra_pnginfo: Any = None, unique_id: str | None = None, **widgets: Any
    ) -> dict[str, Any]:
        """Return the expanded prompt and a negative one, and show the first on the node."""
        from ..core.prompting.expand import expand

        text, record = expand(model, ExpandRequest(**widgets), get_host(), image)
        if "problem" in record:
            _failures[unique_id] += 1
        record_run(extra_pnginfo, unique_id, record)
        return {"ui": {"text": [text], "piying": [record]}, "result": (text, record["negative_prompt"])}


def _optional_inputs() -> dict[str, Any]:
    return {
        "image": (
            "IMAGE",
            {"tooltip": "First frame or reference, for models that can see. Only the first image is looked at."},
        ),
        "language": (list(LANGUAGES), {"default": "auto", "tooltip": "Of the answer. auto: the prompt's own."}),
        "length": (
            list(LENGTHS),
            {
                "default": "auto",
                "tooltip": "Words: short 20 to 40, medium 50 to 80, long 100 to 140. auto: the preset's.",
            },
        ),
        "style": ("STRING", {"default": "", "tooltip": "A style to write towards, such as: ink wash, 1970s film."}),
        "keep": (
            "STRING",
            {"default": "", "tooltip": "Further words that must be in the answer as they are, parted by commas."},
        ),
        "strict": (
            "BOOLEAN",
            {"default": False, "tooltip": "Fail where the original prompt would be used in place of an answer."},
        ),
        "frozen_prompt": (
            "STRING",
            {
                "multiline": True,
                "default": "",
                "tooltip": "Used as it is in place of an answer: paste an expanded prompt to keep or edit it.",
            },
        ),
    }
