"""Files on disk: which models are there, and how they become modules.

`load_component` and `apply_lora` are the way in for tools; they are fetched when they are asked for,
since they need torch and importing the pack must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lora.apply import apply_lora as apply_lora
    from .load import load_component as load_component

_LATER = {"load_component": ".load", "apply_lora": "..lora.apply"}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    from importlib import import_module

    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name], __name__), name)
