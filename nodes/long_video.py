"""A video of any length, made in windows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.wan import request as vace
from ..core.wan.latents import FRAME_STEP
from ..core.wan.long import request as long
from ..core.wan.schedule import check_schedule
from .shared import all_checked, checked, record_run, sheets_of_file, shown, wired_inputs
from .wan_inputs import WanSampler, chained_inputs, expert_inputs, sampling_inputs, speed_inputs
from .wan_vace import VACE, WAN, PiyingVACESample, size_inputs, task_sizes_before_run, with_task_sizes
from .widgets import choice, socket

if TYPE_CHECKING:
    from ..core.catalog.installed_model import InstalledModel

PROMPT_TOOLTIP = (
    "What the video shows, in Chinese or English. With times, such as 0s: … on one line and 5s: … on another, each "
    "window follows its own; cfg 3, task 0.5, lora 0.8 and blend 1s may stand before the colon."
)
JOINING = ("window", "overlap", "seams", "match_colours", "anchor")


class PiyingVACELongVideo(WanSampler):
    """Text, and a task where there is one → a video file of any length."""

    CATEGORY = VACE
    DESCRIPTION = (
        "Makes a video of any length in overlapping windows, each continuing from the last frames of the one "
        "before. Takes the memory of one window; a stopped run that is started again resumes after the finished "
        "windows."
    )
    SEARCH_ALIASES = [*WAN, "long video", "长视频", "文生视频"]
    REPLACES = ("WanVideoContextOptions",)
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The video file, 16 frames a second, for Save Video.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets: VACE Sample's, and how windows follow each other."""
        # Taken from there, so that a request means the same in both nodes.
        declared = PiyingVACESample.INPUT_TYPES()
        required = declared["required"]
        kind, options = required["prompt"]
        required["prompt"] = (kind, {**options, "tooltip": PROMPT_TOOLTIP})
        length = "Length of the whole video: 4n+1 frames, 16 a second."
        required["num_frames"] = _frames(long.DEFAULT_LENGTH, vace.MIN_FRAMES, vace.LONGEST_FRAMES, length)
        return {
            "required": {
                **required,
                "window": _frames(
                    long.DEFAULT_WINDOW,
                    vace.MIN_FRAMES + FRAME_STEP,
                    vace.MAX_FRAMES,
                    "Frames per window, 4n+1. Wan2.1 was trained on 81. Memory depends on it, not on num_frames.",
                ),
                "overlap": _frames(
                    long.DEFAULT_OVERLAP,
                    1,
                    vace.MAX_FRAMES - FRAME_STEP,
                    "Frames shared by neighbouring windows, 4n+1. More carry motion over better; each is made twice.",
                ),
                "seams": choice(
                    long.SEAMS,
                    "How the overlap is joined. crossfade: blend both versions. cut: keep the earlier one. blended: "
                    "crossfade, and guide the next window by the latents of the earlier one.",
                ),
                "match_colours": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.05,
                        "tooltip": "How far a window begins with the brightness and contrast of the window before, "
                        "measured on the overlap; fades out towards its end. 0: off.",
                    },
                ),
                "anchor": choice(
                    long.ANCHORS,
                    "What later windows take from the first one, against drift. colours: its colours, for scenes "
                    "that stay the same. reference: its first frame, as a reference picture.",
                ),
            },
            "optional": {
                "task": socket(
                    "VACE_TASK",
                    "From a VACE node, made for the whole length: each window takes its part. Size and length come "
                    "from it as size_from says.",
                ),
                "audio": socket("AUDIO", "Sound of the video; trimmed to its length."),
                **speed_inputs(),
                **size_inputs(),
                **sampling_inputs(),
                **expert_inputs(),
                **chained_inputs(),
            },
            "hidden": declared["hidden"],
        }

    @classmethod
    def check_model(cls, known: Mapping[str, Any], model: InstalledModel) -> None:
        """Refuse a timeline that sets the strength of what is not there, or a loop that is none, too."""
        from ..core.wan.long.timeline import check_timeline, parse_timeline

        super().check_model(known, model)
        lengths = [known[name] for name in ("num_frames", "window", "overlap") if name in known]
        if len(lengths) == 3 and "context" in known and known["context"].loop:
            long.check_lengths(*lengths)
            long.check_loop(*lengths)
        if "prompt" not in known:
            return
        settings = {name: known[name] for name in ("num_frames", "guidance") if name in known}
        video, has_task = vace.WanRequest(known["prompt"], **settings), "task" in known["linked"]
        check_timeline(parse_timeline(known["prompt"]), video, has_task=has_task, has_loras=bool(known["model"].loras))

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        width: int | None,
        height: int | None,
        num_frames: int | None,
        window: int | None,
        overlap: int | None,
        scheduler: str | None = None,
        sigmas: str | None = None,
        prompt: str | None = None,
        seams: str | None = None,
    ) -> bool | str:
        """Name the nearest good number for a size or length that cannot be made, and a schedule that is none."""
        sides = (("width", width), ("height", height))
        results = [checked(vace.check_side, name, value) for name, value in sides if value is not None]
        if num_frames is not None and window is not None and overlap is not None:
            results.append(checked(long.check_lengths, num_frames, window, overlap))
        if seams is not None and overlap is not None:
            results.append(checked(long.check_seams, seams, overlap))
        results.append(checked(check_schedule, scheduler or "auto", sigmas or ""))
        from ..core.wan.long.timeline import parse_timeline

        results.append(checked(parse_timeline, prompt or ""))
        return all_checked(results)

    def sample(
        self,
        model: ModelHandle,
        task: Any = None,
        audio: Any = None,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
        dynprompt: Any = None,
        **widgets: Any,
    ) -> dict[str, Any]:
        """Return the video, and show on the node how it was made."""
        from ..core.wan.long.sample import make_long_video

        widgets = with_task_sizes(widgets, task, wired_inputs(dynprompt, unique_id))
        # What is left over is VACE Sample's own request, whose checks and defaults hold here too.
        joining = {name: widgets.pop(name) for name in JOINING}
        request = long.LongRequest(vace.WanRequest(**widgets), **joining)
        host = get_host()
        path, record = make_long_video(model, request, host, task, audio=audio)
        record_run(extra_pnginfo, unique_id, record)
        # From the file: the frames themselves were in memory window by window, and are gone.
        return shown(record, host.video_file(path), sheets=sheets_of_file(path))

    @staticmethod
    def sizes_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the task sets in place of the widgets; see `task_sizes_before_run`."""
        return task_sizes_before_run(known, sources)

    @staticmethod
    def trained_settings(settings: Mapping[str, float]) -> dict[str, float]:
        """Return the model's settings: its length is that of a window, and the whole may be of any."""
        window = settings["num_frames"]
        overlap = long.DEFAULT_OVERLAP if window >= long.DEFAULT_WINDOW else FRAME_STEP + 1
        return {name: value for name, value in settings.items() if name != "num_frames"} | {
            "window": window,
            "overlap": overlap,
        }

    @staticmethod
    def plan_inputs(known: dict[str, Any], linked: Collection[str]) -> dict[str, Any]:
        """Return what a memory plan is made from: one window at a time is in memory."""
        # With or without a task: later windows are conditioned on the overlap with the one before.
        del linked
        frames = known.get("num_frames", long.DEFAULT_LENGTH), known.get("window", long.DEFAULT_WINDOW)
        cfg = known.get("cfg", vace.DEFAULT_CFG)
        if "prompt" in known:
            from ..core.wan.long.timeline import largest_cfg, parse_timeline

            cfg = largest_cfg(parse_timeline(known["prompt"]), cfg)
        # A loop is one of the whole video, not of the window that is planned.
        context = {"context": replace(known["context"], loop=False)} if "context" in known else {}
        return {**known, **context, "num_frames": min(frames), "cfg": cfg}


def _frames(default: int, least: int, most: int, tooltip: str) -> tuple[str, dict[str, Any]]:
    return "INT", {"default": default, "min": least, "max": most, "step": FRAME_STEP, "tooltip": tooltip}


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingVACELongVideo": PiyingVACELongVideo,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingVACELongVideo": "VACE Long Video",
}
