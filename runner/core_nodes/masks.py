"""Mask nodes: made, converted, cropped, grown, feathered and combined."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from .images import MAX_RESOLUTION, checked_choice, checked_image, checked_mask, size_input

CHANNELS = ["red", "green", "blue", "alpha"]
OPERATIONS = ["multiply", "add", "subtract", "and", "or", "xor"]


class SolidMask:
    """Makes a mask of one value."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "solid"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        value = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"value": value, "width": size_input(), "height": size_input()}}

    def solid(self, value: float, width: int, height: int) -> tuple[Any]:
        """Return the mask."""
        import torch

        return (torch.full((1, height, width), value, dtype=torch.float32),)


class MaskToImage:
    """Makes a grey image of a mask."""

    CATEGORY = "mask"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask: Any) -> tuple[Any]:
        """Return the images."""
        return (checked_mask(mask)[..., None].expand(-1, -1, -1, 3),)


class ImageToMask:
    """Makes a mask of one channel."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"image": ("IMAGE",), "channel": (CHANNELS,)}}

    def image_to_mask(self, image: Any, channel: str) -> tuple[Any]:
        """Return the channel."""
        checked_choice(channel, CHANNELS, "channel")
        index = CHANNELS.index(channel)
        if index >= checked_image(image).shape[3]:
            raise PiyingError(
                f"channel is {channel}, but the image has {image.shape[3]}: {', '.join(CHANNELS[: image.shape[3]])}. "
                "Choose one of these. The transparency of a file is Load Image's second output."
            )
        return (image[..., index],)


class InvertMask:
    """Swaps what is masked and what is not."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"mask": ("MASK",)}}

    def invert(self, mask: Any) -> tuple[Any]:
        """Return the opposite mask."""
        checked_mask(mask)
        return (1.0 - mask,)


class CropMask:
    """Cuts out a rectangle; what lies outside is left out."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "crop"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "mask": ("MASK",),
                "x": size_input(0, 0),
                "y": size_input(0, 0),
                "width": size_input(),
                "height": size_input(),
            }
        }

    def crop(self, mask: Any, x: int, y: int, width: int, height: int) -> tuple[Any]:
        """Return the part."""
        part = checked_mask(mask)[:, y : y + height, x : x + width]
        if 0 in part.shape:
            raise PiyingError(
                f"The part at x {x}, y {y} lies outside the mask, which is {mask.shape[-1]}×{mask.shape[-2]}. "
                "Choose a place inside it."
            )
        return (part,)


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
        # Shrinking a mask is growing its negative.
        sign = -1 if expand < 0 else 1
        grown = checked_mask(mask) * sign
        for _ in range(abs(expand)):
            # A mask that covers everything stays as it is, and `expand` may be 16384.
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
        count, height, width = result.shape
        if x > width or y > height:
            raise PiyingError(
                f"source at x {x}, y {y} lies outside destination, which is {width}×{height}. "
                "Choose a place inside it."
            )
        if source.shape[0] not in (1, count):
            raise PiyingError(
                f"source has {source.shape[0]} masks, destination {count}. Connect one source mask, or {count}."
            )
        part = result[:, y : y + source.shape[1], x : x + source.shape[2]]
        over = source[:, : part.shape[1], : part.shape[2]]
        if operation in ("and", "or", "xor"):
            # As in ComfyUI, a half is rounded to the even number, so 0.5 counts as unmasked.
            first, second = part.round().bool(), over.round().bool()
            combined = {"and": first & second, "or": first | second, "xor": first ^ second}[operation]
        else:
            combined = {"multiply": part * over, "add": part + over, "subtract": part - over}[operation]
        # Copying also turns truth values into numbers.
        part.copy_(combined)
        return (result.clamp(0.0, 1.0),)


def _spread(mask: Any, tapered: bool) -> Any:
    """Return the largest value among each pixel and its neighbours; there are none outside."""
    import torch

    pool = torch.nn.functional.max_pool2d
    rows = pool(mask, (3, 1), stride=1, padding=(1, 0))
    # A square of neighbours is a row of columns; a cross is not.
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
