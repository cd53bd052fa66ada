"""VACE's jobs: each node takes what a person has and gives a task for VACE Sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.wan.request import DEFAULT_FRAMES, FPS, LONGEST_FRAMES, MAX_SIDE
from ..core.wan.task.options import ASPECTS, COUNTS, FITS, LENGTHS, SHAPES, UNITS, check_asked_length
from .shared import checked, sheets_of
from .wan_vace import VACE, WAN, sizes_of_source
from .widgets import Declared, choice, line, number, socket, toggle, whole

MORE = (2, 3, 4)  # further pictures a Reference node takes; for still more, one follows another


class _Task:
    """What the task nodes share: a task goes in, a larger one comes out."""

    CATEGORY = VACE
    RETURN_TYPES: tuple[str, ...] = ("VACE_TASK",)
    RETURN_NAMES: tuple[str, ...] = ("task",)
    OUTPUT_TOOLTIPS: tuple[str, ...] = ("For VACE Sample, or for another VACE node to build on.",)
    FUNCTION = "make"

    @classmethod
    def sizes_before_run(
        cls, known: Mapping[str, Any], sources: Mapping[str, Any], size_from: str
    ) -> dict[str, int | None]:
        """Return the sizes that the task sets, None where only the run knows; see `task_sizes_before_run`."""
        own = cls._own_sizes(known, sources, size_from)
        earlier = sizes_of_source(sources["task"], size_from) if "task" in sources else {}
        # What one of the two knows holds: they go together, or the run refuses them.
        return own | {name: own.get(name) if value is None else value for name, value in earlier.items()}

    @classmethod
    def _own_sizes(cls, known: Mapping[str, Any], sources: Mapping[str, Any], size_from: str) -> dict[str, int | None]:
        del known, sources, size_from
        return {}


class _SizedTask(_Task):
    """A task with pictures of its own, which says the size and length it is to be sampled at."""

    # Outputs beside the task, since a wire carries no values to the widgets of the node it ends at.
    RETURN_TYPES = ("VACE_TASK", "INT", "INT", "INT")
    RETURN_NAMES = ("task", "width", "height", "num_frames")
    OUTPUT_TOOLTIPS = (
        *_Task.OUTPUT_TOOLTIPS,
        "The task's width, for VACE Sample; the nearest multiple of 16 below where a fit is chosen.",
        "The task's height, for VACE Sample; the nearest multiple of 16 below where a fit is chosen.",
        "The task's number of frames, for VACE Sample: 4n+1.",
    )

    @classmethod
    def _own_sizes(cls, known: Mapping[str, Any], sources: Mapping[str, Any], size_from: str) -> dict[str, int | None]:
        fitted = {"width": "fit", "height": "fit", "num_frames": "length"}
        return {
            name: None
            for name, widget in fitted.items()
            if size_from == "task" or widget in sources or known.get(widget, "refuse") == "refuse"
        }


class PiyingVACEReference(_Task):
    """Pictures of what the video is to show."""

    DESCRIPTION = (
        "Gives the model reference pictures of a subject, an object or a place, in the order given, each on a white "
        "canvas. They define what things look like; the prompt says where they are and what they do."
    )
    SEARCH_ALIASES = [*WAN, "reference to video", "subject to video", "参考图", "主体"]
    REPLACES = ("WanVaceToVideo", "WanVideoVACEEncode")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare sockets and widgets."""
        # Numbered sockets, since a V1 node declares them all beforehand.
        more = {}
        for index in MORE:
            more[f"image_{index}"] = socket("IMAGE", "More pictures, of any size; they come after those above.")
            more[f"mask_{index}"] = socket("MASK", f"White is the subject of image_{index}; the rest becomes white.")
        return {
            "required": {
                "image": socket("IMAGE", "One picture or several of one size. Transparent areas become white."),
                "invert_mask": toggle(
                    False, "For masks whose black part is the subject, such as those of Load Image."
                ),
                "crop": toggle(
                    False,
                    "Crop each picture to its mask, so that the subject is as large as possible. Pictures without a "
                    "mask stay whole.",
                ),
            },
            "optional": {
                "task": _task_input("The pictures are appended to its own."),
                "mask": socket(
                    "MASK", "White is the subject; the rest becomes white. One for all pictures, or one for each."
                ),
                **more,
            },
        }

    def make(
        self, image: Any, invert_mask: bool, crop: bool, task: Any = None, mask: Any = None, **more: Any
    ) -> tuple[Any]:
        """Return the task with the pictures."""
        from ..core.wan.task.reference import reference

        numbered = [(more.get(f"image_{index}"), more.get(f"mask_{index}")) for index in MORE]
        pictures = [(image, mask), *((picture, own) for picture, own in numbered if picture is not None)]
        return (reference(pictures, invert_mask, crop, task),)


class PiyingVACERepaint(_SizedTask):
    """A control video says where things are."""

    DESCRIPTION = (
        "Makes a video that follows a control video: depth, pose, edges or scribble, gray, optical flow or layout "
        "boxes. The prompt says what it looks like. To change a part of a video and keep the rest use VACE: Inpaint."
    )
    SEARCH_ALIASES = [*WAN, "controlnet video", "video to video", "视频转视频", "重绘"]
    REPLACES = ("WanVaceToVideo", "WanVideoVACEEncode")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare sockets and widgets."""
        return {
            "required": {
                "control": socket("IMAGE", "The control video from a preprocessor."),
                "strength": number(
                    1.0,
                    0.0,
                    2.0,
                    0.05,
                    tooltip="How strongly the model follows the task. It has one strength for all of it: less also "
                    "loosens references and kept parts.",
                ),
                "start_percent": number(
                    0.0, 0.0, 1.0, 0.01, tooltip="Share of the steps from which the task applies: 0 is the first step."
                ),
                "end_percent": number(
                    1.0, 0.0, 1.0, 0.01, tooltip="Share of the steps up to which the task applies: 1 is the last step."
                ),
                **_fitting_inputs(),
            },
            "optional": {
                "task": _task_input("The control applies where that task generates."),
                "mask": socket("MASK", "White is where the control applies. One frame, or as many as control has."),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start_percent: float | None, end_percent: float | None) -> bool | str:
        """Say so where no step would be left."""
        # None is a value that comes over a wire, which only the run knows.
        from ..core.wan.task.options import check_steps

        return start_percent is None or end_percent is None or checked(check_steps, start_percent, end_percent)

    def make(
        self,
        control: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        task: Any = None,
        mask: Any = None,
        **fitting: Any,
    ) -> tuple[Any, int, int, int]:
        """Return the task with the control video."""
        from ..core.wan.task.repaint import repaint
        from ..core.wan.task.vace_task import Strength

        chosen = Strength(strength, start_percent, end_percent)
        return _sized(repaint(control, mask, strength=chosen, **fitting, task=task))


class PiyingVACEInpaint(_SizedTask):
    """The masked part of a video is generated."""

    DESCRIPTION = (
        "Generates the white part of a mask again, to match the rest of the video. The gray that the model expects "
        "there is filled in automatically. The prompt describes the result, not the change."
    )
    SEARCH_ALIASES = [*WAN, "inpaint video", "mask video", "remove object", "replace object", "局部重绘"]
    REPLACES = ("WanVaceToVideo", "WanVideoVACEEncode")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare sockets and widgets."""
        return {
            "required": {
                "video": socket("IMAGE", "The frames of the video."),
                "mask": socket(
                    "MASK",
                    "White is generated, black is kept; a soft mask is thresholded at 0.5. One frame for all, or as "
                    "many as the video has.",
                ),
                "invert": toggle(False, "For masks whose black part is to be generated."),
                "shape": choice(
                    SHAPES,
                    "Area that is generated: the mask as drawn, or the box or the convex hull around it in each "
                    "frame. Choose a larger one where the new object has another outline.",
                ),
                "grow": whole(
                    0, -256, 256, "Dilation of the mask in pixels of the video; a negative number erodes it."
                ),
                **_keeping_inputs("the original outside the mask", "outside the mask"),
                **_fitting_inputs(),
            },
            "optional": {"task": _task_input("Pixels that both keep are kept.")},
        }

    def make(
        self, video: Any, mask: Any, invert: bool, shape: Any, grow: int, task: Any = None, **rest: Any
    ) -> dict[str, Any] | tuple[Any, int, int, int]:
        """Return the task with the video and the area, and show the area over the video where a page is open."""
        from ..core.wan.task.inpaint import Brush, inpaint

        made = inpaint(video, mask, Brush(invert, shape, grow), **rest, task=task)
        layer = made.layers[-1]
        sheets = sheets_of(layer.frames, lambda: {"mask": layer.area})
        return {"ui": sheets, "result": _sized(made)} if sheets else _sized(made)


class PiyingVACEOutpaint(_SizedTask):
    """What lies around a video is made."""

    DESCRIPTION = (
        "Puts a video on a larger canvas and generates what is around it. The canvas, not the video, is the size to "
        "sample at: VACE Sample takes it from here."
    )
    SEARCH_ALIASES = [*WAN, "outpaint video", "expand video", "扩图", "扩画面"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare sockets and widgets."""
        return {
            "required": {
                "video": socket("IMAGE", "The frames of the video."),
                # Not 0 on all sides: the node as it is put on the canvas has to run.
                "left": whole(25, 0, MAX_SIDE, "How much is added left of the video."),
                "top": whole(0, 0, MAX_SIDE, "How much is added above the video."),
                "right": whole(25, 0, MAX_SIDE, "How much is added right of the video."),
                "bottom": whole(0, 0, MAX_SIDE, "How much is added below the video."),
                "unit": choice(
                    UNITS,
                    "percent: of the video's width and height, rounded up to a canvas of multiples of 16. pixels: "
                    "exactly as many.",
                ),
                "aspect": choice(
                    ASPECTS,
                    "Extends the canvas further, to this aspect ratio: evenly, or in the ratio of left to right "
                    "(top to bottom).",
                ),
                "overlap": whole(
                    0, 0, 256, "Pixels of the video's edge that are generated as well, against a visible seam."
                ),
                **_keeping_inputs("the original video", "inside the video's edge"),
                **_fitting_inputs(),
            },
            "optional": {"task": _task_input("Its pictures have to be of the canvas's size.")},
        }

    def make(
        self,
        video: Any,
        left: int,
        top: int,
        right: int,
        bottom: int,
        unit: Any,
        aspect: Any,
        task: Any = None,
        **rest: Any,
    ) -> tuple[Any, int, int, int]:
        """Return the task with the canvas."""
        from ..core.wan.task.outpaint import Sides, outpaint

        return _sized(outpaint(video, Sides(left, top, right, bottom, unit, aspect), **rest, task=task))


class PiyingVACEExtend(_SizedTask):
    """Some frames are given, the others are made."""

    DESCRIPTION = (
        "Generates the missing frames: after a first frame or clip, before a last one, between both, or around "
        "frames at given times. Wire at least one of first, last and between."
    )
    SEARCH_ALIASES = [
        *WAN, "extend video", "image to video", "first frame", "first last frame", "图生视频", "首帧",
        "首尾帧", "延长",
    ]  # fmt: skip
    REPLACES = ("WanVideoVACEStartToEndFrame",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare sockets and widgets."""
        return {
            "required": {
                "num_frames": whole(
                    DEFAULT_FRAMES,
                    1,
                    LONGEST_FRAMES,
                    "How many frames: in all or new, as count says. In all it is 4n+1, over 241 for VACE Long Video.",
                ),
                "count": choice(COUNTS, "in all: given and new frames together. new: the new ones alone."),
                "times": line(
                    "Positions of the frames of between, one for each: 40 is a frame counted from 0, 2.5s a time in "
                    "seconds. Example: 20, 40, 3.5s"
                ),
                "clip_frames": whole(
                    0,
                    0,
                    LONGEST_FRAMES,
                    "How many frames of a clip are given: the last ones of first, the first ones of last. 0: all.",
                ),
                # Set by hand or wired from Get Video Components: an IMAGE batch has no rate.
                "fps": number(
                    float(FPS),
                    1.0,
                    240.0,
                    0.01,
                    tooltip="Frames a second of the clips. At another rate than 16 frames are dropped or repeated, so "
                    "that they keep their speed.",
                ),
                "keep": toggle(True, "Restore the given frames bit for bit."),
                "fit": _fit_input("given frames"),
            },
            "optional": {
                "task": _task_input("The given frames are layered on top of its video."),
                "first": socket("IMAGE", "The frame or the clip that the video begins with."),
                "last": socket("IMAGE", "The frame or the clip that it ends with."),
                "between": socket("IMAGE", "Keyframes; times has their positions."),
            },
        }

    @classmethod
    def _own_sizes(cls, known: Mapping[str, Any], sources: Mapping[str, Any], size_from: str) -> dict[str, int | None]:
        in_all = known.get("count") == "in all"
        return super()._own_sizes(known, sources, size_from) | {
            "num_frames": known.get("num_frames") if in_all else None
        }

    @classmethod
    def VALIDATE_INPUTS(cls, num_frames: int | None, count: str | None) -> bool | str:
        """Say so where the length in all cannot be made; how many new ones go with a clip only the run knows."""
        return num_frames is None or count is None or checked(check_asked_length, num_frames, count)

    def make(
        self,
        num_frames: int,
        count: Any,
        times: str,
        clip_frames: int,
        fps: float,
        keep: bool,
        fit: Any,
        task: Any = None,
        first: Any = None,
        last: Any = None,
        between: Any = None,
    ) -> tuple[Any, int, int, int]:
        """Return the task with the given frames."""
        from ..core.wan.task.extend import GivenFrames, extend

        given = GivenFrames(first, last, between, times, clip_frames, fps)
        return _sized(extend(given, num_frames, count, keep=keep, fit=fit, task=task))


def _sized(task: Any) -> tuple[Any, int, int, int]:
    return (task, *task.offered_size(), task.offered_length())


def _task_input(how: str) -> Declared:
    return socket("VACE_TASK", f"A task to build on, from another VACE node. {how}")


def _fit_input(what: str) -> Declared:
    return choice(
        FITS,
        f"What to do where the {what} are of another size than VACE Sample makes. refuse: stop with an error. crop: "
        "scale to cover, centre crop. letterbox: scale to fit, with black bars. stretch: ignore the aspect ratio.",
    )


def _fitting_inputs() -> dict[str, Declared]:
    # Both refuse at first: what is cropped or dropped is for the creator to decide.
    return {
        "fit": _fit_input("frames"),
        "length": choice(
            LENGTHS,
            "What to do where there are more or fewer frames than VACE Sample makes. refuse: stop with an error. "
            "trim: cut the end. hold: repeat the last frame. resample: take 16 frames a second, then cut the end. "
            "spread: take frames evenly from beginning to end, which changes the speed. continue: the model makes "
            "the frames after the last one.",
        ),
        "fps": number(
            float(FPS),
            1.0,
            240.0,
            0.01,
            tooltip="Frames a second of the source, for length resample; without effect otherwise.",
        ),
    }


def _keeping_inputs(what: str, where: str) -> dict[str, Declared]:
    return {
        "keep": toggle(True, f"Restore {what} bit for bit. Off: as the VAE decodes it, softer."),
        "feather": whole(
            8,
            0,
            256,
            f"Width in pixels, {where}, over which old and new are blended. 0: a hard border. Without effect where "
            "keep is off.",
        ),
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingVACEReference": PiyingVACEReference,
    "PiyingVACERepaint": PiyingVACERepaint,
    "PiyingVACEInpaint": PiyingVACEInpaint,
    "PiyingVACEOutpaint": PiyingVACEOutpaint,
    "PiyingVACEExtend": PiyingVACEExtend,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingVACEReference": "VACE: Reference",
    "PiyingVACERepaint": "VACE: Repaint",
    "PiyingVACEInpaint": "VACE: Inpaint",
    "PiyingVACEOutpaint": "VACE: Outpaint",
    "PiyingVACEExtend": "VACE: Extend",
}
