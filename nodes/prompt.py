"""Prompt nodes: load a language model or name a server, and expand a short line."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.errors import PiyingError
from ..core.host.current import get_host
from ..core.prompting.addresses import ALLOWED, API_KEY, read_address
from ..core.prompting.family import PROMPT
from .model_nodes import ModelLoader
from .shared import CATEGORY, HIDDEN, checked, record_run, seed_input

COMPILE_TOOLTIP = (
    "Compile the decoding step with torch.compile: the first answer waits for it, up to minutes. For a queue of "
    "many prompts on a card that holds the whole model. Needs Triton there, and a C++ compiler on a CPU, where "
    "models of real size became slower. Skipped where weights are streamed, and for vision-language models."
)
NOT_CONNECTED = object()
# How often each node had to use the original prompt: such a result is not one to keep.
_failures: Counter[str | None] = Counter()


PROMPTS = f"{CATEGORY}/prompts"
WRITING = ["qwen", "qwen3", "prompt enhance", "提示词", "扩写"]  # what people type to find any of these nodes


class PiyingLoadPromptModel(ModelLoader):
    """Choose a language model that writes prompts."""

    FAMILY = PROMPT
    CATEGORY = PROMPTS
    DESCRIPTION = "Chooses the language model that writes prompts. Nothing is loaded until a prompt is expanded."
    SEARCH_ALIASES = [*WRITING, "llm", "语言模型"]
    RETURN_TYPES = ("PROMPT_MODEL",)
    ALSO = ", or Qwen3 and Qwen2.5 in one file under models/text_encoders or models/LLM"
    OUTPUT_TOOLTIPS = ("The model, for Expand Prompt.",)
    PRECISION_TOOLTIP = "Number type. auto: bf16 on a card, fp32 on a CPU."
    MOVES = False

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets of every loader, and compiling."""
        inputs = super().INPUT_TYPES()
        # Last, since workflow files hold the values of widgets by position.
        inputs["optional"]["compile_step"] = ("BOOLEAN", {"default": False, "tooltip": COMPILE_TOOLTIP})
        return inputs

    def load(  # type: ignore[override]
        self, model: str, precision: str, memory: str = "auto", compile_step: bool = False
    ) -> tuple[ModelHandle]:
        """Return a handle."""
        (handle,) = super().load(model, precision, memory)
        return (replace(handle, compile_step=compile_step),)


class PiyingExpandPrompt:
    """A short line → a rich prompt."""

    CATEGORY = PROMPTS
    DESCRIPTION = (
        "Rewrites a short line as the detailed prompt that image and video models were trained on. Quoted text, "
        "numbers, colours, names and camera moves stay. When the answer is invalid, the fallback is your line, with "
        "a warning."
    )
    SEARCH_ALIASES = [*WRITING, "expand prompt", "llm"]
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
        from ..core.prompting.presets import BUILT_IN_PRESETS, preset_names

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
                        "default": BUILT_IN_PRESETS[0],
                        "tooltip": "Purpose of the prompt. The vace presets describe what the finished video shows. "
                        "Your own are text files in models/LLM/prompts.",
                    },
                ),
                "max_new_tokens": (
                    "INT",
                    {"default": 256, "min": 1, "max": 4096, "tooltip": "Token limit of the answer."},
                ),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 0.7,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.05,
                        "tooltip": "Sampling temperature. Published for Qwen3: 0.7. 0 is greedy decoding.",
                    },
                ),
                "seed": seed_input(),
            },
            # Workflow files hold values by position, those of optional widgets last: new widgets go there.
            "optional": _optional_inputs(),
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, prompt: str | None = None, frozen_prompt: str | None = "", image: Any = NOT_CONNECTED
    ) -> bool | str:
        """Refuse an empty prompt before anything runs; what is connected is None here."""
        if prompt is None or frozen_prompt is None or image is not NOT_CONNECTED:
            return True
        from ..core.prompting.request import require_text

        return checked(require_text, prompt, frozen_prompt)

    @classmethod
    def IS_CHANGED(cls, preset: str | None = None, unique_id: str | None = None, **_: Any) -> str:
        """Run again when the preset's file was edited, or the last run could not use an answer."""
        # By its text, not by its time: a preset that was copied or checked out again is the same preset.
        import hashlib

        from ..core.prompting.presets import preset_text

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
        from ..core.prompting.request import ExpandRequest

        text, record = expand(model, ExpandRequest(**widgets), get_host(), image)
        if "problem" in record:
            _failures[unique_id] += 1
        record_run(extra_pnginfo, unique_id, record)
        return {"ui": {"text": [text], "piying": [record]}, "result": (text, record["negative_prompt"])}


class PiyingPromptServer:
    """Choose a model behind an OpenAI-compatible server."""

    CATEGORY = PROMPTS
    DESCRIPTION = (
        "Chooses a language model behind an OpenAI-compatible server (Ollama, vLLM, LM Studio, llama.cpp) to write "
        f"prompts. Servers on this machine only, unless the environment variable {ALLOWED} names others. An API key "
        f"is read from {API_KEY}, never from the workflow."
    )
    # No widget for the key: workflow files are shared, and ComfyUI embeds them in every picture.
    SEARCH_ALIASES = [*WRITING, "ollama", "openai", "vllm", "lm studio"]
    RETURN_TYPES = ("PROMPT_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model, for Expand Prompt.",)
    FUNCTION = "choose"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "url": (
                    "STRING",
                    {
                        "default": "http://127.0.0.1:11434/v1",
                        "tooltip": "Ollama: http://127.0.0.1:11434/v1. LM Studio: port 1234. vLLM: port 8000.",
                    },
                ),
                "model": ("STRING", {"default": "qwen3:4b", "tooltip": "The model's name on the server."}),
                "timeout": (
                    "INT",
                    {"default": 60, "min": 1, "max": 600, "tooltip": "Timeout of one answer, in seconds."},
                ),
            },
            # A socket, not a widget: the fallback has model, precision and memory of its own.
            "optional": {
                "fallback": (
                    "PROMPT_MODEL",
                    {"tooltip": "Fallback model when the server fails. Without one the original prompt is used."},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, url: str | None) -> bool | str:
        """Say what is wrong with an address before anything runs."""
        return url is None or checked(read_address, url)

    def choose(self, url: str, model: str, timeout: int, fallback: Any = None) -> tuple[Any]:
        """Return a handle; the server is asked when a prompt is expanded."""
        from ..core.prompting.server import ServerHandle

        return (ServerHandle(url, model, timeout, fallback),)


def _optional_inputs() -> dict[str, Any]:
    from ..core.prompting.request import LANGUAGES, LENGTHS

    return {
        "image": (
            "IMAGE",
            {"tooltip": "First frame or reference, for vision-language models. Only the first image is used."},
        ),
        "language": (
            list(LANGUAGES),
            {"default": "auto", "tooltip": "Language of the answer. auto: that of the prompt."},
        ),
        "length": (
            list(LENGTHS),
            {
                "default": "auto",
                "tooltip": "Words: short 20 to 40, medium 50 to 80, long 100 to 140. auto: the preset's.",
            },
        ),
        "style": ("STRING", {"default": "", "tooltip": "Style of the prompt, such as: ink wash, 1970s film."}),
        "keep": (
            "STRING",
            {"default": "", "tooltip": "Further words that the answer must contain verbatim, separated by commas."},
        ),
        "strict": (
            "BOOLEAN",
            {"default": False, "tooltip": "Fail instead of falling back to the original prompt."},
        ),
        "frozen_prompt": (
            "STRING",
            {
                "multiline": True,
                "default": "",
                "tooltip": "Used verbatim in place of an answer: paste an expanded prompt to keep or edit it.",
            },
        ),
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadPromptModel": PiyingLoadPromptModel,
    "PiyingExpandPrompt": PiyingExpandPrompt,
    "PiyingPromptServer": PiyingPromptServer,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadPromptModel": "Load Prompt Model",
    "PiyingExpandPrompt": "Expand Prompt",
    "PiyingPromptServer": "Prompt Server",
}
