"""One of two values."""

from __future__ import annotations

from typing import Any

_NOTHING = object()  # linked inputs that have not been asked for are None


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

    def check_lazy_status(self, switch: bool, on_false: Any = _NOTHING, on_true: Any = _NOTHING) -> list[str]:
        """Return the side that is needed, unless nothing is linked to it."""
        name, value = ("on_true", on_true) if switch else ("on_false", on_false)
        return [name] if value is None else []

    def execute(self, switch: bool, on_false: Any = None, on_true: Any = None) -> tuple[Any]:
        """Return the value of the chosen side; None where nothing is linked to it."""
        return (on_true if switch else on_false,)
