"""Frames → video → file."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ...core.errors import PiyingError
from ...core.host import get_host
from ...core.media.ffmpeg import ffmpeg_exe
from ...core.media.naming import numbered, writing
from ...core.media.video import write_mp4
from .saved import SAVER_HIDDEN, embedded_texts, saved_entry


@dataclass(frozen=True)
class Video:
    """The value of a VIDEO socket: frames [N, H, W, 3] in 0..1, their rate, and sound as AUDIO."""

    images: Any
    frame_rate: Fraction
    audio: dict[str, Any] | None = None


class CreateVideo:
    """Puts frames, a rate and sound together."""

    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create_video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "images": ("IMAGE",),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            "optional": {"audio": ("AUDIO",)},
        }

    def create_video(self, images: Any, fps: float, audio: Any = None) -> tuple[Video]:
        """Return the video."""
        return (Video(images, Fraction(fps), audio),)


class SaveVideo:
    """Writes a numbered mp4 file that carries the workflow."""

    CATEGORY = "image/video"
    RETURN_TYPES = ()
    FUNCTION = "save_video"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": (["auto", "mp4"], {"default": "auto"}),
                "codec": (["auto", "h264"], {"default": "auto"}),
            },
            "hidden": SAVER_HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        """Refuse a bad name, or a machine without ffmpeg, before minutes go into sampling."""
        try:
            ffmpeg_exe()
            numbered(get_host().folder("output"), filename_prefix or "video", ".mp4")
        except PiyingError as error:
            return str(error)
        return True

    def save_video(
        self,
        video: Video,
        filename_prefix: str,
        format: str,
        codec: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Write the file: H.264 in mp4 is what every choice of `format` and `codec` means."""
        del format, codec
        folder = get_host().folder("output")
        height, width = video.images.shape[1:3]
        texts = embedded_texts(prompt, extra_pnginfo)
        with writing(folder, filename_prefix, ".mp4", width=width, height=height) as output:
            write_mp4(output.path, video.images, video.frame_rate, metadata=texts, audio=video.audio)
        return {"ui": {"images": [saved_entry(output.path, folder, "output")], "animated": (True,)}}
