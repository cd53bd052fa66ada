"""Primitive nodes: plain values, text, a switch, and a look at any value."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

from ...core.errors import PiyingError

MAX_TEXT = 2**24  # characters; nodes in a row can double a text without end
_UNLINKED = object()  # lazy inputs that are linked and have not run are None


class _Primitive:
    """Gives the value of its one widget."""

    CATEGORY = "utils/primitive"
    FUNCTION = "value"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives
    RETURN_TYPES: tuple[str, ...] = ("STRING",)
    OPTIONS: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's one input."""
        return {"required": {"value": (cls.RETURN_TYPES[0], cls.OPTIONS)}}

    def value(self, value: Any) -> tuple[Any]:
        """Return the value."""
        return (value,)


class PrimitiveString(_Primitive):
    """A line of text."""

    OPTIONS = {"multiline": False}


class PrimitiveStringMultiline(_Primitive):
    """Text of many lines."""

    OPTIONS = {"multiline": True}


class PrimitiveInt(_Primitive):
    """A whole number."""

    RETURN_TYPES = ("INT",)
    OPTIONS = {"min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": True}


class PrimitiveFloat(_Primitive):
    """A number."""

    RETURN_TYPES = ("FLOAT",)
    OPTIONS = {"min": -sys.maxsize, "max": sys.maxsize}


class PrimitiveBoolean(_Primitive):
    """Yes or no."""

    RETURN_TYPES = ("BOOLEAN",)


class PreviewAny:
    """Shows a value as text."""

    CATEGORY = "utils"
    RETURN_TYPES = ()
    FUNCTION = "main"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's one input."""
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any = None) -> dict[str, Any]:
        """Return the text ComfyUI shows for the value."""
        text = str(source)
        if source is not None and not isinstance(source, str | int | float | bool):
            # Of what JSON has no form for, such as a tensor, str is all there is to show.
            with suppress(TypeError, ValueError):
                text = json.dumps(source)
        return {"ui": {"text": (text,)}}


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
        """Return both texts with the delimiter between them. Raises PiyingError where that would be absurdly long."""
        length = len(string_a) + len(delimiter) + len(string_b)
        if length > MAX_TEXT:
            raise PiyingError(f"The text would have {length} characters; at most {MAX_TEXT} are allowed.")
        return (f"{string_a}{delimiter}{string_b}",)


class ComfySwitchNode:
    """Gives one of two values, and runs only what that one needs."""

    CATEGORY = "utilities/logic"
    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("output",)
    FUNCTION = "execute"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs, which take any type."""
        side = ("*", {"lazy": True})
        return {"required": {"switch": ("BOOLEAN", {})}, "optional": {"on_false": side, "on_true": side}}

    def check_lazy_status(self, switch: bool, on_false: Any = _UNLINKED, on_true: Any = _UNLINKED) -> list[str]:
        """Return the side that is needed, unless nothing is linked to it."""
        name, value = ("on_true", on_true) if switch else ("on_false", on_false)
        return [name] if value is None else []

    def execute(self, switch: bool, on_false: Any = None, on_true: Any = None) -> tuple[Any]:
        """Return the value of the chosen side; None where nothing is linked to it."""
        return (on_true if switch else on_false,)
