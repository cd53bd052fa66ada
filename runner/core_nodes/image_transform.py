"""Images cut, widened, laid over each other and inverted."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from .values import checked_image, checked_mask, size_input


class ImageCrop:
    """Cuts out a rectangle; what lies outside is left out."""

    CATEGORY = "image/transform"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "crop"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "image": ("IMAGE",),
                "width": size_input(),
                "height": size_input(),
                "x": size_input(0, 0),
                "y": size_input(0, 0),
            }
        }

    def crop(self, image: Any, width: int, height: int, x: int, y: int) -> tuple[Any]:
        """Return the part, at least one pixel."""
        left = min(x, checked_image(image).shape[2] - 1)
        top = min(y, image.shape[1] - 1)
        return (image[:, top : top + height, left : left + width],)


class ImageInvert:
    """Makes negatives."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image: Any) -> tuple[Any]:
        """Return the negatives."""
        return (1.0 - checked_image(image),)


class ImagePadForOutpaint:
    """Adds grey around images, and says in a mask where."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "expand_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        sides = {side: size_input(0, 0, step=8) for side in ("left", "top", "right", "bottom")}
        return {"required": {"image": ("IMAGE",), **sides, "feathering": size_input(40, 0)}}

    def expand_image(
        self, image: Any, left: int, top: int, right: int, bottom: int, feathering: int
    ) -> tuple[Any, Any]:
        """Return the larger images, and the mask: 1 where grey was added, less and less inwards."""
        import torch

        count, height, width, channels = checked_image(image).shape
        inside = slice(top, top + height), slice(left, left + width)
        size = height + top + bottom, width + left + right
        padded = torch.full((count, *size, channels), 0.5)
        padded[:, inside[0], inside[1]] = image
        mask = torch.ones(1, *size)
        mask[:, inside[0], inside[1]] = _feathered(height, width, (left, top, right, bottom), feathering)
        return padded, mask


class ImageCompositeMasked:
    """Lays images over others, where the mask says so."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "destination": ("IMAGE",),
                "source": ("IMAGE",),
                "x": size_input(0, 0),
                "y": size_input(0, 0),
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def composite(
        self, destination: Any, source: Any, x: int, y: int, resize_source: bool, mask: Any = None
    ) -> tuple[Any]:
        """Return the destination with the source at (x, y); source and mask repeat to the destination's batch."""
        result = checked_image(destination, "destination").clone()
        count, height, width, channels = result.shape
        over = _matched_channels(checked_image(source, "source").to(result.device), channels)
        if resize_source:
            over = _bilinear(over.movedim(-1, 1), height, width).movedim(1, -1)
        over = _repeated(over, count)
        # From the place on, what is inside the destination.
        rows, columns = max(0, height - max(0, y)), max(0, width - max(0, x))
        opacity = _opacity(mask, over)[:, :rows, :columns]
        part = result[:, y : y + over.shape[1], x : x + over.shape[2]]
        part.copy_(opacity * over[:, :rows, :columns] + (1.0 - opacity) * part)
        return (result,)


def _feathered(height: int, width: int, added: tuple[int, int, int, int], feathering: int) -> Any:
    import torch

    left, top, right, bottom = added
    if feathering <= 0 or feathering * 2 >= min(height, width):
        return torch.zeros(height, width)
    # How far a pixel is from the nearest side where something was added; sides where nothing was do not count.
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    far = torch.tensor(max(height, width))
    vertical = torch.minimum(row if top else far, height - row if bottom else far)
    horizontal = torch.minimum(column if left else far, width - column if right else far)
    distance = torch.minimum(vertical, horizontal).expand(height, width).double()
    return ((feathering - distance).clamp(min=0) / feathering).square().float()


def _matched_channels(source: Any, channels: int) -> Any:
    import torch

    if source.shape[3] >= channels:
        return source[..., :channels]
    if (source.shape[3], channels) != (3, 4):
        raise PiyingError(f"source has {source.shape[3]} channels, destination {channels}. Both need 3, or 3 and 4.")
    return torch.nn.functional.pad(source, (0, 1), value=1.0)


def _bilinear(planes: Any, height: int, width: int) -> Any:
    import torch

    return torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear")


def _repeated(batch: Any, count: int) -> Any:
    times = -(-count // batch.shape[0])
    return batch.repeat(times, *[1] * (batch.ndim - 1))[:count]


def _opacity(mask: Any, over: Any) -> Any:
    import torch

    count, height, width, _ = over.shape
    if mask is None:
        return torch.ones_like(over)
    planes = checked_mask(mask)[:, None].to(over.device)
    return _repeated(_bilinear(planes, height, width), count).movedim(1, -1)
