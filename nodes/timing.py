"""Time and sound: another frame rate for the same seconds, and a soundtrack that goes along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import PiyingError
from ..core.media import frame_rate
from .shared import CATEGORY, frames_of
from .widgets import choice, number, socket, whole

if TYPE_CHECKING:
    from ..core.image_sizes import VideoSize

TIMING = f"{CATEGORY}/timing"
RATES = (0.1, 1000.0, 0.01)  # frames per second: least, most, step
MANY = 1 << 20  # frames; beyond any clip that fits in memory


class PiyingFrameRate:
    """The same seconds at another frame rate."""

    CATEGORY = TIMING
    DESCRIPTION = (
        "Resamples a video to another frame rate and keeps its duration. Wan VACE works at 16 frames a second and "
        "in 4n+1 frames."
    )
    SEARCH_ALIASES = ["fps", "frame rate", "resample", "帧率"]
    RETURN_TYPES = ("IMAGE", "FLOAT", "INT")
    RETURN_NAMES = ("frames", "fps", "num_frames")
    OUTPUT_TOOLTIPS = (
        "The frames at the new rate.",
        "The new rate, for Create Video.",
        "Number of frames, for VACE Sample.",
    )
    FUNCTION = "convert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "frames": socket("IMAGE", "The video's frames."),
                "fps": number(24.0, *RATES, tooltip="Their rate, from Get Video Components."),
                "to_fps": number(16.0, *RATES, tooltip="The new rate. Wan was trained on 16."),
                "method": choice(
                    frame_rate.METHODS,
                    "nearest: whole frames, sharp. blend: average of the frames shown meanwhile.",
                ),
                "length": choice(
                    frame_rate.LENGTHS, "Wan VACE takes 4n+1 frames. trim: cut the end. hold: repeat the last frame."
                ),
            }
        }

    @staticmethod
    def frames_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> VideoSize | None:
        """Return the size and number of the frames that it gives; see `PlannedNode.frames_before_run`."""
        given = frames_of(sources.get("frames"))
        if given is None or not {"fps", "to_fps", "length"} <= known.keys():
            return None
        rates = frame_rate.exact_rate("fps", known["fps"]), frame_rate.exact_rate("to_fps", known["to_fps"])
        count = frame_rate.new_count(given.num_frames, *rates)
        return given._replace(num_frames=frame_rate.fitted_count(count, known["length"]))

    def convert(self, frames: Any, fps: float, to_fps: float, method: str, length: str) -> tuple[Any, float, int]:
        """Return frames [M, H, W, 3], their rate and their count."""
        if getattr(frames, "ndim", 0) != 4 or not len(frames):
            raise PiyingError("frames holds no video. Connect an IMAGE: [frames, height, width, 3].")
        converted = frame_rate.change_rate(frames, fps=fps, to_fps=to_fps, method=method, length=length)
        return converted, float(to_fps), len(converted)


class PiyingAlignAudio:
    """A soundtrack as long as the new video."""

    CATEGORY = TIMING
    DESCRIPTION = (
        "Shifts and trims a soundtrack to fit a video to which frames were added, or from which they were removed."
    )
    SEARCH_ALIASES = ["audio", "sync sound", "音频", "声音"]
    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)
    OUTPUT_TOOLTIPS = ("The sound, for Create Video.",)
    FUNCTION = "align"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        added = "Frames added in front, padded with silence. Below 0: frames removed."
        return {
            "required": {
                "num_frames": whole(81, 1, MANY, "Number of frames of the new video."),
                "fps": number(16.0, *RATES, tooltip="Rate of the new video."),
                "frames_before": whole(0, -MANY, MANY, added),
            },
            "optional": {"audio": socket("AUDIO", "The sound of the original. A video without sound stays without.")},
        }

    def align(self, num_frames: int, fps: float, frames_before: int, audio: Any = None) -> tuple[Any]:
        """Return the sound, or None where there is none."""
        from ..core.media.audio import align

        return (align(audio, num_frames, fps, frames_before),)


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingFrameRate": PiyingFrameRate,
    "PiyingAlignAudio": PiyingAlignAudio,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingFrameRate": "Frame Rate",
    "PiyingAlignAudio": "Align Audio",
}
