"""Frames straight to WebM and animated WebP."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ...core.errors import PiyingError
from ...core.host.current import get_host
from ...core.media.naming import numbered, writing
from ...core.media.webm import CODECS, write_webm
from ...core.media.webp import METHODS, write_webp
from .saved import SAVER_HIDDEN, embedded_texts
from .values import checked_choice, checked_image
from .video_files import saver_problem, shown_video


class SaveWEBM:
    """Writes a numbered webm file that carries the workflow."""

    CATEGORY = "image/video"
    RETURN_TYPES = ()
    FUNCTION = "save_webm"
    OUTPUT_NODE = True
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        tooltip = (
            "Higher crf means lower quality with a smaller file size, lower crf means higher quality higher filesize."
        )
        return {
            "required": {
                "images": ("IMAGE", {}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "codec": ("COMBO", {"multiselect": False, "options": list(CODECS)}),
                "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "crf": ("FLOAT", {"tooltip": tooltip, "default": 32.0, "min": 0, "max": 63.0, "step": 1}),
            },
            "hidden": SAVER_HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        """Refuse a bad name, or a machine without ffmpeg, before minutes go into sampling."""
        return saver_problem(filename_prefix, ".webm")

    def save_webm(
        self,
        images: Any,
        filename_prefix: str,
        codec: str,
        fps: float,
        crf: float,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Write the file."""
        folder = get_host().folder("output")
        height, width = checked_image(images, "images").shape[1:3]
        texts = embedded_texts(prompt, extra_pnginfo)
        with writing(folder, filename_prefix, ".webm", width=width, height=height) as output:
            write_webm(output.path, images[..., :3], Fraction(fps), codec=codec, crf=crf, metadata=texts)
        return shown_video(output.path, folder)


class SaveAnimatedWEBP:
    """Writes a numbered webp file that carries the workflow."""

    CATEGORY = "image/animation"
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
                "fps": ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "lossless": ("BOOLEAN", {"default": True}),
                "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
                "method": (list(METHODS),),
            },
            "hidden": SAVER_HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        """Refuse a bad name before minutes go into sampling."""
        try:
            numbered(get_host().folder("output"), filename_prefix or "ComfyUI", ".webp")
        except PiyingError as error:
            return str(error)
        return True

    def save_images(
        self,
        images: Any,
        fps: float,
        filename_prefix: str,
        lossless: bool,
        quality: int,
        method: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Write the file."""
        checked_choice(method, list(METHODS), "method")
        folder = get_host().folder("output")
        height, width = checked_image(images, "images").shape[1:3]
        settings: dict[str, Any] = {"lossless": lossless, "quality": quality, "method": method}
        texts = embedded_texts(prompt, extra_pnginfo)
        with writing(folder, filename_prefix, ".webp", width=width, height=height) as output:
            write_webp(output.path, images, fps, metadata=texts, **settings)
        return shown_video(output.path, folder, animated=len(images) != 1)
