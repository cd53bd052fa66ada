"""Batches of images: joining, repeating, picking, measuring."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from .image_scale import scaled
from .values import checked_image


class ImageBatch:
    """Joins two batches; the second is brought to the size of the first."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: Any, image2: Any) -> tuple[Any]:
        """Return the images of both."""
        import torch

        height, width = checked_image(image1, "image1").shape[1:3]
        if checked_image(image2, "image2").shape[1:3] != (height, width):
            image2 = scaled(image2, width, height, "bilinear", "center")
        channels = max(image1.shape[3], image2.shape[3])
        return (torch.cat([_with_channels(image1, channels), _with_channels(image2, channels)]),)


class RepeatImageBatch:
    """Repeats a batch as a whole."""

    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "repeat"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"image": ("IMAGE",), "amount": ("INT", {"default": 1, "min": 1, "max": 4096})}}

    def repeat(self, image: Any, amount: int) -> tuple[Any]:
        """Return the batch, `amount` times."""
        return (checked_image(image).repeat(amount, 1, 1, 1),)


class ImageFromBatch:
    """Picks images that follow each other; what lies beyond the end is left out."""

    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "frombatch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def frombatch(self, image: Any, batch_index: int, length: int) -> tuple[Any]:
        """Return up to `length` images from `batch_index` on, at least the last one."""
        start = min(checked_image(image).shape[0] - 1, batch_index)
        return (image[start : start + length].clone(),)


class GetImageSize:
    """Measures a batch."""

    CATEGORY = "image"
    DESCRIPTION = "Returns width and height of the image, and passes it through unchanged."
    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("width", "height", "batch_size")
    FUNCTION = "get_size"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"image": ("IMAGE",)}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def get_size(self, image: Any, unique_id: Any = None) -> tuple[int, int, int]:
        """Return width, height and count."""
        del unique_id
        count, height, width, _ = checked_image(image).shape
        return width, height, count


def _with_channels(image: Any, channels: int) -> Any:
    import torch

    missing = channels - image.shape[3]
    if missing and (image.shape[3], channels) != (3, 4):
        raise PiyingError(f"One batch has {image.shape[3]} channels, the other {channels}. Both need 3, or 3 and 4.")
    return torch.nn.functional.pad(image, (0, 1), value=1.0) if missing else image
