"""Masks grown, softened and combined."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from .values import MAX_RESOLUTION, checked_choice, checked_mask, size_input

OPERATIONS = ["multiply", "add", "subtract", "and", "or", "xor"]


class GrowMask:
    """Grows a mask by pixels, or shrinks it."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "expand_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "mask": ("MASK",),
                "expand": ("INT", {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION, "step": 1}),
                "tapered_corners": ("BOOLEAN", {"default": True}),
            }
        }

    def expand_mask(self, mask: Any, expand: int, tapered_corners: bool) -> tuple[Any]:
        """Return the mask after `expand` steps to the neighbours, diagonal ones only without tapered corners."""
        sign = -1 if expand < 0 else 1
        grown = checked_mask(mask) * sign
        for _ in range(abs(expand)):
            before, grown = grown, _spread(grown, tapered_corners)
            if grown.equal(before):
                break
        return (grown * sign,)


class FeatherMask:
    """Fades a mask out towards its sides."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "feather"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        sides = {side: size_input(0, 0) for side in ("left", "top", "right", "bottom")}
        return {"required": {"mask": ("MASK",), **sides}}

    def feather(self, mask: Any, left: int, top: int, right: int, bottom: int) -> tuple[Any]:
        """Return the softened mask."""
        faded = checked_mask(mask).clone()
        for axis, near, far in ((2, left, right), (1, top, bottom)):
            lines = faded.movedim(axis, -1)
            _fade(lines, near, forward=True)
            _fade(lines, far, forward=False)
        return (faded,)


class MaskComposite:
    """Combines a mask with another that is laid over it."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "destination": ("MASK",),
                "source": ("MASK",),
                "x": size_input(0, 0),
                "y": size_input(0, 0),
                "operation": (OPERATIONS,),
            }
        }

    def combine(self, destination: Any, source: Any, x: int, y: int, operation: str) -> tuple[Any]:
        """Return the destination, changed where the source at (x, y) lies on it."""
        checked_choice(operation, OPERATIONS, "operation")
        result = checked_mask(destination, "destination").clone()
        source = checked_mask(source, "source")
        _check_overlap(result, source, x, y)
        part = result[:, y : y + source.shape[1], x : x + source.shape[2]]
        part.copy_(_combined(part, source[:, : part.shape[1], : part.shape[2]], operation))
        return (result.clamp(0.0, 1.0),)


def _spread(mask: Any, tapered: bool) -> Any:
    """Return the largest value among each pixel and its neighbours; there are none outside."""
    import torch

    pool = torch.nn.functional.max_pool2d
    rows = pool(mask, (3, 1), stride=1, padding=(1, 0))
    if not tapered:
        return pool(rows, (1, 3), stride=1, padding=(0, 1))
    return torch.maximum(rows, pool(mask, (1, 3), stride=1, padding=(0, 1)))


def _fade(lines: Any, count: int, forward: bool) -> None:
    import torch

    length = lines.shape[-1]
    count = min(count, length)
    if count:
        steps = torch.arange(count)
        # ComfyUI counts back from -0, which is the first line: it is darkened a second time, and the last is not.
        places = steps if forward else -steps % length
        lines[..., places] *= ((steps.double() + 1) / count).to(lines.dtype)


def _check_overlap(destination: Any, source: Any, x: int, y: int) -> None:
    count, height, width = destination.shape
    if x > width or y > height:
        raise PiyingError(
            f"source at x {x}, y {y} lies outside destination, which is {width}×{height}. Choose a place inside it."
        )
    if source.shape[0] not in (1, count):
        raise PiyingError(
            f"source has {source.shape[0]} masks, destination {count}. Connect one source mask, or {count}."
        )


def _combined(part: Any, source: Any, operation: str) -> Any:
    if operation == "multiply":
        return part * source
    if operation == "add":
        return part + source
    if operation == "subtract":
        return part - source
    first, second = part.round().bool(), source.round().bool()
    combined = {"and": first & second, "or": first | second, "xor": first ^ second}[operation]
    return combined.to(part.dtype)
