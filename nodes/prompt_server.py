"""A language model behind a server, in place of one on this machine."""

from __future__ import annotations

from typing import Any

from ..core.prompting.addresses import ALLOWED, API_KEY, check_address
from .shared import PROMPTS, checked


class PiyingPromptServer:
    """Choose a model behind an OpenAI-compatible server."""

    CATEGORY = PROMPTS
    DESCRIPTION = (
        "Chooses a language model behind an OpenAI-compatible server (Ollama, vLLM, LM Studio, llama.cpp) to write "
        f"prompts. Servers on this machine alone, unless the environment variable {ALLOWED} names others. An API key "
        f"is read from {API_KEY}, never from the workflow."
    )
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
                    {"default": 60, "min": 1, "max": 600, "tooltip": "Seconds to wait for one answer."},
                ),
            },
            "optional": {
                "fallback": (
                    "PROMPT_MODEL",
                    {"tooltip": "The model to ask when the server fails. Without one the prompt stays as it was."},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, url: str | None) -> bool | str:
        """Say what is wrong with an address before anything runs."""
        return url is None or checked(check_address, url)

    def choose(self, url: str, model: str, timeout: int, fallback: Any = None) -> tuple[Any]:
        """Return a handle; the server is asked when a prompt is expanded."""
        from ..core.prompting.server import ServerHandle

        return (ServerHandle(url, model, timeout, fallback),)
