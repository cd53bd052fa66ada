"""Image files in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import PiyingError
from ...core.host import FolderKind, get_host
from ...core.media.images import read_image, write_png
from ...core.media.naming import numbered, writing
from .saved import SAVER_HIDDEN, embedded_texts, saved_entry


class SaveImage:
    """Writes numbered PNG files that carry the workflow."""

    CATEGORY = "image"
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    FOLDER: FolderKind = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
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
        for index, image in enumerate(images):
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
        folder = get_host().folder("input")
        files = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        return {"required": {"image": (files, {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        """Say where the file was looked for; a linked name is not known yet."""
        try:
            if image is not None:
                cls._path(image)
        except PiyingError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, image: str) -> Any:
        """Return what tells one version of the file from the next."""
        status = cls._path(image).stat()
        return status.st_mtime_ns, status.st_size

    def load_image(self, image: str) -> tuple[Any, Any]:
        """Return the picture [N, H, W, 3] and the mask [N, H, W], 1 where it is transparent."""
        return read_image(self._path(image))

    @staticmethod
    def _path(image: str) -> Path:
        folder = get_host().folder("input").resolve()
        path = (folder / image.removesuffix(" [input]").replace("\\", "/")).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise PiyingError(
                f"image {image!r} is not a file in the input folder {folder}. Put it there, or use --input."
            )
        return path
