"""Video files in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import PiyingError
from ...core.host.current import get_host
from ...core.media.ffmpeg import ffmpeg_exe
from ...core.media.naming import numbered, writing
from .input_files import file_problem, file_version, input_file, input_names
from .saved import PREFIX_TOOLTIP, SAVER_HIDDEN, embedded_texts, saved_entry
from .video import CODECS, FORMATS, Video, VideoFile, checked_video


class LoadVideo:
    """Names a video of the input folder; what follows decodes it."""

    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "load_video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs; the list is what the input folder holds."""
        options = {"multiselect": False, "options": input_names("video"), "video_upload": True}
        return {"required": {"file": ("COMBO", options)}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None) -> bool | str:
        """Say where the file was looked for."""
        return file_problem(file, "file")

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
            _own(video).save_to(output.path, format, codec, texts)
        return shown_video(output.path, folder)


def saver_problem(filename_prefix: str | None, suffix: str) -> bool | str:
    """Return what a video saver's VALIDATE_INPUTS answers for a name; a linked one is not known yet."""
    try:
        ffmpeg_exe()
        numbered(get_host().folder("output"), filename_prefix or "video", suffix)
    except PiyingError as error:
        return str(error)
    return True


def shown_video(path: Path, folder: Path, animated: bool = True) -> dict[str, Any]:
    """Return the results of a node that saved a moving picture to the output folder."""
    return {"ui": {"images": [saved_entry(path, folder, "output")], "animated": (animated,)}}


def _combo(options: list[str], **more: Any) -> dict[str, Any]:
    return {**more, "multiselect": False, "options": options}


def _own(video: Any) -> Video | VideoFile:
    """Return a value of our own for another pack's, whose writer would want a file name that tells the format."""
    if isinstance(video, Video | VideoFile):
        return video
    parts = video.get_components()
    return Video(parts.images, parts.frame_rate, parts.audio)
