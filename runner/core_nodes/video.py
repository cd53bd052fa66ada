"""Video nodes: the value of a VIDEO socket, created from frames and taken apart again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.errors import PiyingError
from ...core.media.audio import read_audio
from ...core.media.mp4 import can_copy, copy_to_mp4, write_mp4
from ...core.media.video import VideoInfo, load_frames, probe, read_frames
from .images import checked_choice, checked_image

log = logging.getLogger("piying")

FORMATS = ["auto", "mp4"]
CODECS = ["auto", "h264"]
BITS = 8  # of a channel, in the videos that are read and written


@dataclass(frozen=True)
class Video:
    """Frames [N, H, W, 3] in 0..1, their rate, and sound as AUDIO. Methods are named as ComfyUI's."""

    images: Any
    frame_rate: Fraction
    audio: dict[str, Any] | None = None

    def get_components(self) -> Video:
        """Return frames, rate and sound."""
        return self

    def get_dimensions(self) -> tuple[int, int]:
        """Return width and height."""
        height, width = checked_image(self.images, "images").shape[1:3]
        return width, height

    def get_duration(self) -> float:
        """Return the length in seconds."""
        return float(len(self.images) / self.frame_rate)

    def save_to(
        self, path: str | Path, format: str = "auto", codec: str = "auto", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write H.264 in MP4, which is what every choice means."""
        _check_format(format, codec)
        frames = checked_image(self.images, "images")
        if frames.shape[3] > 3:
            log.info("The images' alpha is left out: H.264 has no place for it.")
        frames = frames[..., :3]
        write_mp4(Path(path), frames, self.frame_rate, metadata=_texts(metadata), audio=self.audio)


@dataclass(frozen=True)
class VideoFile:
    """A video file; nothing of it is decoded before it is asked for. Methods are named as ComfyUI's."""

    path: Path

    @cached_property
    def info(self) -> VideoInfo:
        """Size, rate and length."""
        return probe(self.path)

    def get_components(self) -> Video:
        """Return frames, rate and sound, all decoded."""
        self._log_notes()
        return Video(load_frames(self.path, self.info), self.info.fps, self._audio())

    def get_dimensions(self) -> tuple[int, int]:
        """Return width and height."""
        return self.info.width, self.info.height

    def get_duration(self) -> float:
        """Return the length in seconds."""
        return self.info.duration

    def get_stream_source(self) -> str:
        """Return the file's path."""
        return str(self.path)

    def save_to(
        self, path: str | Path, format: str = "auto", codec: str = "auto", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write MP4: the file's own streams where they fit `format` and `codec`, else H.264, frame by frame."""
        _check_format(format, codec)
        # A copy of the streams loses nothing, and takes no time. But MP4 has no place for VP9's transparency, nor for
        # frames without times.
        if self.info.is_timed and not self.info.has_alpha and can_copy(self.path, format, codec):
            if self.info.tracks > 1:
                log.info("%s: the first of its %d video tracks is copied.", self.path.name, self.info.tracks)
            if self.info.has_subtitles:
                log.info("%s: its subtitles are left out.", self.path.name)
            copy_to_mp4(self.path, Path(path), _texts(metadata))
        else:
            self._log_notes()
            frames = read_frames(self.path, self.info)
            write_mp4(Path(path), frames, self.info.fps, metadata=_texts(metadata), audio=self._audio())

    def _audio(self) -> dict[str, Any] | None:
        return read_audio(self.path, self.info.start) if self.info.has_audio else None

    def _log_notes(self) -> None:
        """Say what decoding makes of the file; a copy of its streams leaves them as they are."""
        for note in self.info.notes:
            log.info("%s: %s.", self.path.name, note)


class CreateVideo:
    """Puts frames, a rate and sound together."""

    CATEGORY = "image/video"
    DESCRIPTION = "Create a video from images."
    RETURN_TYPES = ("VIDEO",)
    REPLACES = ("VHS_VideoCombine",)
    FUNCTION = "create_video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to create a video from."}),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            "optional": {
                "audio": ("AUDIO", {"tooltip": "The audio to add to the video."}),
                # Of newer ComfyUIs. A socket, so that files of older ones get no value that they do not have.
                "bit_depth": ("INT", {"forceInput": True, "tooltip": "Videos are written with 8 bits."}),
            },
        }

    def create_video(self, images: Any, fps: float, audio: Any = None, bit_depth: int = BITS) -> tuple[Video]:
        """Return the video."""
        if bit_depth != BITS:
            log.info("Create Video: bit_depth %s becomes %d.", bit_depth, BITS)
        return (Video(checked_image(images, "images"), Fraction(fps), audio),)


class GetVideoComponents:
    """Takes a video apart."""

    CATEGORY = "image/video"
    DESCRIPTION = "Extracts all components from a video: frames, audio, and framerate."
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "INT")
    RETURN_NAMES = ("images", "audio", "fps", "bit_depth")  # the last one of newer ComfyUIs
    FUNCTION = "get_components"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare ComfyUI's inputs."""
        return {"required": {"video": ("VIDEO", {"tooltip": "The video to extract components from."})}}

    def get_components(self, video: Any) -> tuple[Any, Any, float, int]:
        """Return frames, sound (None where there is none), frames per second, and bits of a frame's channels."""
        parts = checked_video(video).get_components()
        return parts.images, parts.audio, float(parts.frame_rate), BITS


def checked_video(video: Any) -> Any:
    """Return a VIDEO as it is, ours or another pack's. Raises PiyingError for anything else."""
    if not hasattr(video, "get_components"):
        raise PiyingError(f"video is of the type {type(video).__name__}. Connect a node that gives VIDEO.")
    return video


def _check_format(format: str, codec: str) -> None:
    checked_choice(format, FORMATS, "format")
    checked_choice(codec, CODECS, "codec")


def _texts(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
