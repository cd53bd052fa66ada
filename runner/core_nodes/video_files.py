"""Video file nodes: load and save MP4, save WebM and animated WebP."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...core.errors import PiyingError
from ...core.host.current import get_host
from ...core.media.ffmpeg import ffmpeg_exe
from ...core.media.naming import writing
from ...core.media.video import probe
from ...core.media.webm import CODECS as WEBM_CODECS
from ...core.media.webm import write_webm
from ...core.media.webp import METHODS, write_webp
from .image_files import (
    PREFIX_TOOLTIP,
    SAVER_HIDDEN,
    embedded_texts,
    file_problem,
    file_version,
    input_file,
    input_names,
    prefix_problem,
    saved_entry,
)
from .images import checked_choice, checked_image
from .video import CODECS, FORMATS, Video, VideoFile, checked_video

log = logging.getLogger("piying")


class LoadVideo:
    """Names a video of the input folder; what follows decodes it."""

    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    REPLACES = ("VHS_LoadVideo", "VHS_LoadVideoPath", "VHS_LoadVideoFFmpeg")
    FUNCTION = "load_video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs; the list is what the input folder holds."""
        options = {"multiselect": False, "options": input_names("video"), "video_upload": True}
        return {"required": {"file": ("COMBO", options)}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None) -> bool | str:
        """Say where the file was looked for."""
        return file_problem(file, "file", probe)

    @classmethod
    def IS_CHANGED(cls, file: str) -> Any:
        """Return what tells one version of the file from the next."""
        return file_version(file)

    def load_video(self, file: str) -> tuple[VideoFile]:
        """Return the video."""
        return (VideoFile(input_file(file, "file")),)


class SaveVideo:
    """Writes a numbered mp4 file that carries the workflow; a loaded file's own picture and sound where they fit."""

    CATEGORY = "image/video"
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."
    RETURN_TYPES = ()
    FUNCTION = "save_video"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        format_tooltip, codec_tooltip = "The format to save the video as.", "The codec to use for the video."
        prefix = {"tooltip": PREFIX_TOOLTIP, "default": "video/ComfyUI", "multiline": False}
        return {
            "required": {
                "video": ("VIDEO", {"tooltip": "The video to save."}),
                "filename_prefix": ("STRING", prefix),
                "format": ("COMBO", _combo(FORMATS, tooltip=format_tooltip, default="auto")),
                "codec": ("COMBO", _combo(CODECS, tooltip=codec_tooltip, default="auto")),
            },
            "hidden": SAVER_HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        """Refuse a bad name, or a machine without ffmpeg, before minutes go into sampling."""
        return saver_problem(filename_prefix, ".mp4")

    def save_video(
        self,
        video: Any,
        filename_prefix: str,
        format: str,
        codec: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Write the file."""
        folder = get_host().folder("output")
        width, height = checked_video(video).get_dimensions()
        texts = embedded_texts(prompt, extra_pnginfo)
        with writing(folder, filename_prefix, ".mp4", width=width, height=height) as output:
            if not isinstance(video, Video | VideoFile):
                # Another pack's writer would want a file name that tells the format, and this one is unfinished.
                parts = video.get_components()
                video = Video(parts.images, parts.frame_rate, parts.audio)
            video.save_to(output.path, format, codec, texts)
        return shown_video(output.path, folder)


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
                "codec": ("COMBO", {"multiselect": False, "options": list(WEBM_CODECS)}),
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
            # As in ComfyUI: the codecs are given pixel formats that have none.
            if images.shape[3] > 3:
                log.info("The images' alpha is left out: Save WEBM writes none.")
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
        return prefix_problem(filename_prefix, ".webp")

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


def saver_problem(filename_prefix: str | None, suffix: str) -> bool | str:
    """Return what a video saver's VALIDATE_INPUTS answers for a prefix."""
    try:
        ffmpeg_exe()
    except PiyingError as error:
        return str(error)
    return prefix_problem(filename_prefix, suffix)


def shown_video(path: Path, folder: Path, animated: bool = True) -> dict[str, Any]:
    """Return the results of a node that saved a moving picture to the output folder."""
    # ComfyUI's browser shows moving pictures from `images` too; `animated` tells it to play them.
    return {"ui": {"images": [saved_entry(path, folder, "output")], "animated": (animated,)}}


def _combo(options: list[str], **more: Any) -> dict[str, Any]:
    return {**more, "multiselect": False, "options": options}
