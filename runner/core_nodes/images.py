"""Image nodes: scaling, batches, cropping, padding and compositing; checks of what arrives by link."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from ...core.media.images import to_uint8

MAX_RESOLUTION = 16384
METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
CROPS = ["disabled", "center"]


# The validation compares names of types; what arrives by link is whatever a node of any pack returned.


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


class ImageScale:
    """Scales to a size; 0 keeps the aspect ratio."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    REPLACES = ("ImageResizeKJ", "ImageResizeKJv2", "ImageResize+")
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
        return (scaled(image, width, height, method=upscale_method, crop=crop),)


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
        size = round(width * scale_by), round(height * scale_by)
        return (scaled(image, *size, method=upscale_method, crop="disabled"),)


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
            image2 = scaled(image2, width, height, method="bilinear", crop="center")
        channels = max(image1.shape[3], image2.shape[3])
        batches = []
        for image in (image1, image2):
            refusal = f"One batch has {image.shape[3]} channels, the other {channels}."
            batches.append(_with_channels(image, channels, refusal))
        return (torch.cat(batches),)


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
        # A copy: a view of it would keep the whole batch in memory.
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
        # ComfyUI sends the size to the node's place in the browser, which is not here.
        del unique_id
        count, height, width, _ = checked_image(image).shape
        return width, height, count


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
        # As in ComfyUI, a place outside is moved to the last pixel.
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
        import torch

        result = checked_image(destination, "destination").clone()
        count, height, width, channels = result.shape
        # What the destination has no channel for is dropped.
        over = checked_image(source, "source").to(result.device)[..., :channels]
        refusal = f"source has {over.shape[3]} channels, destination {channels}."
        over = _with_channels(over, channels, refusal)
        if resize_source:
            over = _bilinear(over.movedim(-1, 1), height, width).movedim(1, -1)
        over = _repeated(over, count)
        opacity = torch.ones_like(over)
        if mask is not None:
            planes = _bilinear(checked_mask(mask)[:, None].to(over.device), over.shape[1], over.shape[2])
            opacity = _repeated(planes, count).movedim(1, -1)
        # Of the source, what is inside the destination from the place on.
        rows, columns = max(0, height - max(0, y)), max(0, width - max(0, x))
        part = result[:, y : y + over.shape[1], x : x + over.shape[2]]
        opacity = opacity[:, :rows, :columns]
        part.copy_(opacity * over[:, :rows, :columns] + (1.0 - opacity) * part)
        return (result,)


def scaled(image: Any, width: int, height: int, *, method: str, crop: str) -> Any:
    """Return images [N,H,W,C] scaled to a size, with crop "center" cut to its aspect ratio first.

    Raises PiyingError for a size without pixels, and for an unknown method.
    """
    import torch

    checked_choice(method, METHODS, "upscale_method")
    checked_choice(crop, CROPS, "crop")
    if width < 1 or height < 1:
        raise PiyingError(f"The size would be {width}×{height}. It must be at least 1×1: give a larger one.")
    if crop == "center":
        image = _centre(image, width, height)
    if method == "lanczos":
        return _lanczos(image, width, height)
    # The memory layout stays channels last: torch has kernels of its own for it, which round differently.
    planes = image.movedim(-1, 1)
    return torch.nn.functional.interpolate(planes, size=(height, width), mode=method).movedim(1, -1)


def _centre(image: Any, width: int, height: int) -> Any:
    old_height, old_width = image.shape[1:3]
    left = top = 0
    # In this order of operations, as in ComfyUI: another one may round to another pixel.
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


def _lanczos(image: Any, width: int, height: int) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    channels = image.shape[3]
    # Through 8 bits, as in ComfyUI: Pillow filters no other pictures of several channels.
    pictures = [Image.fromarray(to_uint8(each[..., 0] if channels == 1 else each)) for each in image]
    resized = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
    arrays = [np.array(picture).reshape(height, width, channels) for picture in resized]
    return (torch.from_numpy(np.stack(arrays)).float() / 255.0).to(image.device, image.dtype)


def _with_channels(image: Any, channels: int, refusal: str) -> Any:
    """Return images with that many channels: RGB gets an opaque alpha. Raises PiyingError for anything else."""
    import torch

    if image.shape[3] == channels:
        return image
    if (image.shape[3], channels) != (3, 4):
        raise PiyingError(f"{refusal} Both need 3, or 3 and 4.")
    return torch.nn.functional.pad(image, (0, 1), value=1.0)


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


def _bilinear(planes: Any, height: int, width: int) -> Any:
    import torch

    return torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear")


def _repeated(batch: Any, count: int) -> Any:
    times = -(-count // batch.shape[0])
    return batch.repeat(times, *[1] * (batch.ndim - 1))[:count]
