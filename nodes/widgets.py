"""Declarations of sockets and widgets, in ComfyUI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# ComfyUI's V1 form, which all its versions read: a type or the list of words, and options.
Declared = tuple[Any, dict[str, Any]]


def socket(kind: str, tooltip: str) -> Declared:
    """Return an input that is wired."""
    return kind, {"tooltip": tooltip}


def toggle(default: bool, tooltip: str) -> Declared:
    """Return a switch."""
    return "BOOLEAN", {"default": default, "tooltip": tooltip}


def choice(words: Sequence[str], tooltip: str) -> Declared:
    """Return a list to choose from, the first word chosen."""
    return list(words), {"default": words[0], "tooltip": tooltip}


def whole(default: int, low: int, high: int, tooltip: str) -> Declared:
    """Return a whole number between two limits."""
    return "INT", {"default": default, "min": low, "max": high, "tooltip": tooltip}


def number(default: float, low: float, high: float, step: float, *, tooltip: str) -> Declared:
    """Return a number between two limits."""
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def advanced(declared: Mapping[str, Declared], *usual: str) -> dict[str, Declared]:
    """Return inputs of which all but the `usual` ones are shown only where the page is asked for more."""
    return {
        name: (kind, options if name in usual else {**options, "advanced": True})
        for name, (kind, options) in declared.items()
    }


def line(tooltip: str) -> Declared:
    """Return a line of text, empty at first."""
    return "STRING", {"default": "", "tooltip": tooltip}
