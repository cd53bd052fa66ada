"""Context: how a video longer than a model was trained on is parted while it is sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.wan import request as wan
from ..core.wan.latents import FRAME_STEP
from .shared import CATEGORY, checked
from .widgets import toggle, whole

if TYPE_CHECKING:
    from ..core.wan.context import Context


class PiyingContextWindows:
    """Windows over a video → what a sampler's `context` takes."""

    CATEGORY = f"{CATEGORY}/Wan"
    DESCRIPTION = (
        "Predicts a long video in overlapping windows at each step, for more frames than the model was trained on in "
        "the memory of one window. Also RIFLEx and loops. As it stands, videos of more than 81 frames get windows."
    )
    SEARCH_ALIASES = [
        "wan", "context windows", "freenoise", "riflex", "loop", "long video", "上下文窗口", "循环视频", "长视频",
    ]  # fmt: skip
    RETURN_TYPES = ("WAN_CONTEXT",)
    RETURN_NAMES = ("context",)
    OUTPUT_TOOLTIPS = ("For context of VACE Sample, VACE Long Video or Wan Sample.",)
    FUNCTION = "make"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        from ..core.wan.context import MAX_FREQUENCY

        return {
            "required": {
                "window": (
                    "INT",
                    {
                        "default": 81,
                        "min": 0,
                        "max": wan.MAX_FRAMES,
                        # Counted from the minimum the page would round 81 away.
                        "step": 1,
                        "tooltip": "Frames of a window, 4n+1. Wan2.1 was trained on 81. 0: all frames at once.",
                    },
                ),
                "overlap": (
                    "INT",
                    {
                        "default": 32,
                        "min": 0,
                        "max": wan.MAX_FRAMES,
                        "step": FRAME_STEP,
                        "tooltip": "Frames that neighbouring windows share, a multiple of 4. Each is predicted twice.",
                    },
                ),
                "free_noise": toggle(
                    True,
                    "FreeNoise: the noise behind the first window is its own in another order, so that windows agree.",
                ),
                "riflex": whole(
                    0,
                    0,
                    MAX_FREQUENCY,
                    "RIFLEx: number of the temporal frequency to slow, against repetitions in one long window. 0: "
                    "off. 6 for Wan2.1.",
                ),
                "loop": toggle(
                    False,
                    "The end of the video leads to its beginning: windows cross it. VACE Sample and Wan Sample give "
                    "3 frames more, VACE Long Video as many as num_frames.",
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, window: int | None, overlap: int | None) -> bool | str:
        """Name what is no window, or no overlap for it."""
        from ..core.wan.context import check_window

        return True if window is None or overlap is None else checked(check_window, window, overlap)

    def make(self, window: int, overlap: int, **widgets: Any) -> tuple[Context]:
        """Return the context."""
        from ..core.wan.context import Context, check_window

        check_window(window, overlap)
        return (Context(window, overlap, **widgets),)


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingContextWindows": PiyingContextWindows,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingContextWindows": "Wan Context Windows",
}
