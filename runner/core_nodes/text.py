"""Text."""

from __future__ import annotations

from typing import Any


class StringConcatenate:
    """Joins two texts."""

    CATEGORY = "utils/string"
    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "string_a": ("STRING", {"multiline": True}),
                "string_b": ("STRING", {"multiline": True}),
                "delimiter": ("STRING", {"default": "", "multiline": False}),
            }
        }

    def execute(self, string_a: str, string_b: str, delimiter: str) -> tuple[str]:
        """Return both texts with the delimiter between them."""
        return (f"{string_a}{delimiter}{string_b}",)
