"""Sample inputs, in place of Load Video and Load Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core import samples
from .shared import CATEGORY
from .widgets import choice

if TYPE_CHECKING:
    from ..core.image_sizes import VideoSize

SAMPLES = f"{CATEGORY}/samples"


class PiyingSampleClip:
    """A small clip that comes with the pack."""

    CATEGORY = SAMPLES
    DESCRIPTION = "A small clip that comes with Piying. Put Load Video and Get Video Components in its place."
    SEARCH_ALIASES = ["example video", "示例"]
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "MASK")
    RETURN_NAMES = ("images", "audio", "fps", "mask")
    OUTPUT_TOOLTIPS = (
        "The clip's frames.",
        "Its sound; moving circle has one.",
        "Its frames per second.",
        "A mask that follows what moves, where there is one; else empty.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widget."""
        return {"required": {"sample": choice(list(samples.CLIPS), "Which clip.")}}

    @staticmethod
    def frames_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> VideoSize | None:
        """Return the size and number of the frames that it gives; see `PlannedNode.frames_before_run`."""
        del sources
        return samples.clip_size(known["sample"]) if "sample" in known else None

    def load(self, sample: str) -> tuple[Any, Any, float, Any]:
        """Return frames [N, H, W, 3], sound, rate and mask [N, H, W]."""
        frames, audio, fps, mask = samples.sample_clip(sample)
        return frames, audio, float(fps), mask


class PiyingSampleImage:
    """A small picture that comes with the pack."""

    CATEGORY = SAMPLES
    DESCRIPTION = "A small picture that comes with Piying. Put Load Image in its place."
    SEARCH_ALIASES = ["example image", "示例"]
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The picture.", "1 where it is transparent, as Load Image gives it.")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widget."""
        return {"required": {"sample": choice(list(samples.PICTURES), "Which picture.")}}

    def load(self, sample: str) -> tuple[Any, Any]:
        """Return the picture [1, H, W, 3] and its mask [1, H, W]."""
        return samples.sample_picture(sample)


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingSampleClip": PiyingSampleClip,
    "PiyingSampleImage": PiyingSampleImage,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingSampleClip": "Sample Clip",
    "PiyingSampleImage": "Sample Image",
}
