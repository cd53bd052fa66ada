"""Image files in and out."""

from __future__ import annotations

from typing import Any

from ...core.errors import PiyingError
from ...core.host.base import FolderKind
from ...core.host.current import get_host
from ...core.media.images import CHANNELS, read_channel, read_image, write_png
from ...core.media.naming import numbered, writing
from .input_files import file_problem, file_version, input_file, input_names
from .saved import PREFIX_TOOLTIP, SAVER_HIDDEN, embedded_texts, saved_entry
from .values import checked_choice, checked_image


class SaveImage:
    """Writes numbered PNG files that carry the workflow."""

    CATEGORY = "image"
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    FOLDER: FolderKind = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to save."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TOOLTIP}),
            },
            "hidden": SAVER_HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuse a bad name before minutes go into sampling."""
        try:
            numbered(get_host().folder(cls.FOLDER), filename_prefix or "ComfyUI", ".png")
        except PiyingError as error:
            return str(error)
        return True

    def save_images(
        self, images: Any, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Write one file per image [H, W, C] of `images`."""
        folder = get_host().folder(self.FOLDER)
        texts = embedded_texts(prompt, extra_pnginfo)
        entries = []
        for index, image in enumerate(checked_image(images, "images")):
            height, width = image.shape[:2]
            prefix = filename_prefix.replace("%batch_num%", str(index))
            with writing(folder, prefix, ".png", width=width, height=height) as output:
                write_png(output.path, image, metadata=texts)
            entries.append(saved_entry(output.path, folder, self.FOLDER))
        return {"ui": {"images": entries}}


class PreviewImage(SaveImage):
    """Writes PNG files to the temp folder."""

    FOLDER: FolderKind = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"images": ("IMAGE",)}, "hidden": SAVER_HIDDEN}


class LoadImage:
    """Reads an image of the input folder, its transparency as a mask."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs; the list is what the input folder holds."""
        return {"required": {"image": (input_names("image"), {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        """Say where the file was looked for."""
        return file_problem(image)

    @classmethod
    def IS_CHANGED(cls, image: str) -> Any:
        """Return what tells one version of the file from the next."""
        return file_version(image)

    def load_image(self, image: str) -> tuple[Any, Any]:
        """Return the picture [N, H, W, 3] and the mask [N, H, W], 1 where it is transparent."""
        return read_image(input_file(image))


class LoadImageMask:
    """Reads one channel of an image of the input folder."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs; the list is what the input folder holds."""
        return {"required": {"image": (input_names(), {"image_upload": True}), "channel": (list(CHANNELS),)}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        """Say where the file was looked for."""
        return file_problem(image)

    @classmethod
    def IS_CHANGED(cls, image: str, channel: str) -> Any:
        """Return what tells one version of the file from the next."""
        del channel
        return file_version(image)

    def load_image(self, image: str, channel: str) -> tuple[Any]:
        """Return the channel [1, H, W]; of alpha, 1 where it is transparent."""
        checked_choice(channel, list(CHANNELS), "channel")
        return (read_channel(input_file(image), channel),)
