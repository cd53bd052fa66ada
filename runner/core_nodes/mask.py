"""Masks made, converted and cut."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from .values import checked_choice, checked_image, checked_mask, size_input

CHANNELS = ["red", "green", "blue", "alpha"]


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
