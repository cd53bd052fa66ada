"""Plain values, and a look at any value."""

from __future__ import annotations

import json
import sys
from typing import Any


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
        return {"ui": {"text": (_as_text(source),)}}


def _as_text(source: Any) -> str:
    if source is None or isinstance(source, str | int | float | bool):
        return str(source)
    try:
        return json.dumps(source)
    except (TypeError, ValueError):
        return str(source)
