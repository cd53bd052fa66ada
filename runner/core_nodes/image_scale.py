"""Images of another size."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from ...core.media.images import to_uint8
from .values import checked_choice, checked_image, size_input

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
CROPS = ["disabled", "center"]


class ImageScale:
    """Scales to a size; 0 keeps the aspect ratio."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "width": size_input(low=0),
                "height": size_input(low=0),
                "crop": (CROPS,),
            }
        }

    def upscale(self, image: Any, upscale_method: str, width: int, height: int, crop: str) -> tuple[Any]:
        """Return the scaled images; as they are where both sizes are 0."""
        old_height, old_width = checked_image(image).shape[1:3]
        if width == 0 and height == 0:
            return (image,)
        # ComfyUI rounds as Python does, a half to the even number.
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (scaled(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """Scales by a factor."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def upscale(self, image: Any, upscale_method: str, scale_by: float) -> tuple[Any]:
        """Return the scaled images."""
        height, width = checked_image(image).shape[1:3]
        return (scaled(image, round(width * scale_by), round(height * scale_by), upscale_method, "disabled"),)


def scaled(image: Any, width: int, height: int, method: str, crop: str) -> Any:
    """Return images [N,H,W,C] scaled to a size, with crop "center" cut to its aspect ratio first.

    Raises PiyingError for a size without pixels, and for an unknown method.
    """
    checked_choice(method, METHODS, "upscale_method")
    checked_choice(crop, CROPS, "crop")
    if width < 1 or height < 1:
        raise PiyingError(f"The size would be {width}×{height}. It must be at least 1×1: give a larger one.")
    if crop == "center":
        image = _centre(image, width, height)
    return _lanczos(image, width, height) if method == "lanczos" else _interpolated(image, width, height, method)


def _centre(image: Any, width: int, height: int) -> Any:
    old_height, old_width = image.shape[1:3]
    left = top = 0
    old_aspect, aspect = old_width / old_height, width / height
    if old_aspect > aspect:
        left = round((old_width - old_width * (aspect / old_aspect)) / 2)
    elif old_aspect < aspect:
        top = round((old_height - old_height * (old_aspect / aspect)) / 2)
    if 2 * left >= old_width or 2 * top >= old_height:
        raise PiyingError(
            f"Cut to the aspect ratio of {width}×{height}, nothing is left of an image of {old_width}×{old_height}. "
            "Choose crop disabled, or a size that is less narrow."
        )
    return image[:, top : old_height - top, left : old_width - left]


def _interpolated(image: Any, width: int, height: int, method: str) -> Any:
    import torch

    # The memory layout stays channels last: torch has kernels of its own for it, which round differently.
    planes = image.movedim(-1, 1)
    return torch.nn.functional.interpolate(planes, size=(height, width), mode=method).movedim(1, -1)


def _lanczos(image: Any, width: int, height: int) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    channels = image.shape[3]
    pictures = [Image.fromarray(to_uint8(each[..., 0] if channels == 1 else each)) for each in image]
    resized = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
    arrays = [np.array(picture).reshape(height, width, channels) for picture in resized]
    return (torch.from_numpy(np.stack(arrays)).float() / 255.0).to(image.device, image.dtype)
