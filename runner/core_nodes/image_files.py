"""Image file nodes: load, save, preview; names of input files, and what all savers share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import PiyingError, explain_os_errors
from ...core.host.base import FolderKind
from ...core.host.current import get_host
from ...core.media.images import CHANNELS, check_image, read_channel, read_image, write_png
from ...core.media.naming import numbered, writing
from ...core.samples import INPUT_FILES
from .images import checked_choice, checked_image

# The folders that a workflow may name files in.
KINDS: tuple[FolderKind, ...] = ("input", "output", "temp")
PREFIX_TOOLTIP = (
    "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or "
    "%Empty Latent Image.width% to include values from nodes."
)
SAVER_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def input_file(name: str, what: str = "image") -> Path:
    """Return the path of a file named as ComfyUI does: "a.png", "sub/a.png", "a.png [output]", "a.png [temp]".

    The pack's clips are found where the input folder lacks them; ComfyUI has them there from its start.

    Raises PiyingError for what is not a regular file inside that folder, links followed.
    """
    if not isinstance(name, str):
        raise PiyingError(f"{what} is {name!r}. Give the name of a file in the input folder.")
    kind = next((kind for kind in KINDS if name.endswith(f" [{kind}]")), None)
    bare = name.removesuffix(f" [{kind}]").replace("\\", "/")
    folder = get_host().folder(kind or "input")
    # Resolved before it is compared: `..` and links may lead out of the folder, and workflows come from anybody.
    try:
        root = folder.resolve()
        path = (root / bare).resolve()
        # A Path drops the slash of "a.png/", which is no file's name.
        found = path.is_relative_to(root) and path.is_file() and not bare.endswith(("/", "/."))
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a circle of links
        found = False
    if not found and kind is None and bare in INPUT_FILES:
        return INPUT_FILES[bare]
    if not found:
        raise PiyingError(
            f"{what} {name!r} is not a file in the {kind or 'input'} folder {folder.absolute()}. Put it there, or "
            f"use --{'output' if kind == 'output' else 'input'}."
        )
    return path


def file_problem(
    name: str | None, what: str = "image", open_file: Callable[[Path], object] = check_image
) -> bool | str:
    """Return what VALIDATE_INPUTS answers for a file name: True, or the sentence; a linked name is not known yet.

    Args:
        open_file: raises PiyingError for a file that cannot be read.
    """
    try:
        if name is not None:
            open_file(input_file(name, what))
    except PiyingError as error:
        return str(error)
    return True


def file_version(name: str) -> Any:
    """Return what tells one version of a file from the next."""
    # Not a checksum, which would read a clip of gigabytes in every run.
    status = input_file(name).stat()
    return status.st_mtime_ns, status.st_size


def input_names(content: str | None = None) -> list[str]:
    """Return the names of the files in the input folder, of one kind of content ("image", "video") or of all."""
    import mimetypes

    folder = get_host().folder("input")
    with explain_os_errors(f"Cannot look into {folder}"):
        names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if content is None:
        return names
    # Not every Python's and system's table has webp.
    kinds = {name: "image/webp" if name.endswith(".webp") else mimetypes.guess_type(name, False)[0] for name in names}
    return [name for name, kind in kinds.items() if kind is not None and kind.split("/")[0] == content]


def embedded_texts(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """Return the texts ComfyUI embeds: `prompt`, and one for each key of `extra_pnginfo`."""
    texts = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return texts | {name: json.dumps(value) for name, value in (extra_pnginfo or {}).items()}


def saved_entry(path: Path, folder: Path, kind: str) -> dict[str, str]:
    """Return ComfyUI's description of a saved file, as found under `images` in a node's results."""
    relative = path.relative_to(folder)
    subfolder = "" if relative.parent == Path() else relative.parent.as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": kind}


def prefix_problem(filename_prefix: str | None, suffix: str, kind: FolderKind = "output") -> bool | str:
    """Return what a saver's VALIDATE_INPUTS answers for a prefix; a linked one is not known yet."""
    try:
        numbered(get_host().folder(kind), filename_prefix or "ComfyUI", suffix)
    except PiyingError as error:
        return str(error)
    return True


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
        return prefix_problem(filename_prefix, ".png", cls.FOLDER)

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
