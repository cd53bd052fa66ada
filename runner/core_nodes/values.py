"""What nodes check of the values they are linked to, and limits that ComfyUI's nodes share."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError

MAX_RESOLUTION = 16384


def checked_image(image: Any, name: str = "image") -> Any:
    """Return an IMAGE [N,H,W,C] as it is. Raises PiyingError for another shape, and for one without pixels."""
    shape = _shape(image, name, "IMAGE")
    if len(shape) != 4 or not 1 <= shape[3] <= 4:
        raise PiyingError(f"{name} has the shape {shape}. Connect an IMAGE: [batch, height, width, 3 channels].")
    if 0 in shape:
        raise PiyingError(f"{name} has the shape {shape}: it is empty. Connect at least one image with pixels.")
    return image


def checked_mask(mask: Any, name: str = "mask") -> Any:
    """Return a MASK as [N,H,W]. Raises PiyingError for what cannot be one, and for one without pixels."""
    shape = _shape(mask, name, "MASK")
    if len(shape) < 2:
        raise PiyingError(f"{name} has the shape {shape}. Connect a MASK: [batch, height, width].")
    if 0 in shape:
        raise PiyingError(f"{name} has the shape {shape}: it is empty. Connect at least one mask with pixels.")
    return mask.reshape(-1, *shape[-2:])


def checked_choice(value: Any, choices: list[str], name: str) -> None:
    """Raise PiyingError for a value that is not among `choices`; linked ones are not looked at before a run."""
    if value not in choices:
        raise PiyingError(f"{name} is {value!r}. Choose one of: {', '.join(choices)}.")


def size_input(default: int = 512, low: int = 1, **options: Any) -> tuple[str, dict[str, Any]]:
    """Declare a width, a height or a place, in pixels."""
    return "INT", {"default": default, "min": low, "max": MAX_RESOLUTION, "step": 1, **options}


def _shape(value: Any, name: str, kind: str) -> list[int]:
    if not hasattr(value, "shape"):
        raise PiyingError(f"{name} is of the type {type(value).__name__}. Connect a node that gives {kind}.")
    return list(value.shape)
