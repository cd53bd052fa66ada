"""Control makers: from a video to what VACE: Repaint follows."""

from __future__ import annotations

from typing import Any

from ..core.catalog.installed_model import has_built_in
from ..core.catalog.selection import model_choices
from ..core.controls import choices, models
from ..core.controls.family import DEPTH, DETECTOR, POSE, SEGMENTATION, AnnotatorFamily
from ..core.host.current import get_host
from .shared import CATEGORY, HIDDEN, checked, record_run, shown
from .widgets import Declared, choice, number, socket, whole

CONTROLS = f"{CATEGORY}/controls"
FRAMES = socket("IMAGE", "The video's frames.")
# The trained colours come first: the first word of a choice is its default.
LINES = choice(choices.LINES, "Colour of lines and paper. VACE was trained on black on white.")


def _models(family: AnnotatorFamily) -> Declared:
    fallback = "the built-in toy model" if has_built_in(family.key) else "an error says what to download"
    tooltip = f"auto: the largest {family.title} model under models/{family.folder}, else {fallback}."
    return choice(model_choices(family, get_host()), tooltip)


def _stepped(step: int, declared: Declared) -> Declared:
    # The model's own steps, so that a control video made here needs no fitting.
    return declared[0], {**declared[1], "step": step}


class _Control:
    """What the control makers share."""

    CATEGORY = CONTROLS
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    RETURN_NAMES: tuple[str, ...] = ("control",)
    OUTPUT_TOOLTIPS: tuple[str, ...] = ("The control video, for VACE: Repaint.",)
    FUNCTION = "make"


class PiyingControlGray(_Control):
    """Frames without colour."""

    DESCRIPTION = "Takes the colour out of a video. VACE puts new colours in and keeps everything else."
    SEARCH_ALIASES = ["grayscale", "colorize", "灰度", "上色"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        tooltip = "as VACE: what its own tool makes, red and blue exchanged in weight. brightness: what the eye sees."
        return {"required": {"frames": FRAMES, "weights": choice(choices.GRAY_WEIGHTS, tooltip)}}

    def make(self, frames: Any, weights: str) -> tuple[Any]:
        """Return the frames in gray [N, H, W, 3]."""
        from ..core.controls.lines import gray

        return (gray(frames, weights, get_host()),)


class PiyingControlEdges(_Control):
    """Canny edges."""

    DESCRIPTION = "Draws the edges of a video, one pixel wide (Canny)."
    SEARCH_ALIASES = ["canny", "edges", "边缘"]
    REPLACES = ("Canny", "CannyEdgePreprocessor")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        most = 1020  # the largest Sobel gradient along one axis: 4 × 255
        return {
            "required": {
                "frames": FRAMES,
                "low": whole(100, 0, most, "Low threshold: an edge continues while it is stronger than this."),
                "high": whole(200, 0, most, "High threshold: an edge begins where it is stronger than this."),
                "lines": choice(choices.LINES[::-1], "Colour of lines and paper."),
            }
        }

    def make(self, frames: Any, low: int, high: int, lines: str) -> tuple[Any]:
        """Return the edges [N, H, W, 3]."""
        from ..core.controls.lines import edges

        return (edges(frames, low=low, high=high, lines=lines, host=get_host()),)


class PiyingControlScribble(_Control):
    """Pencil lines."""

    DESCRIPTION = "Draws a video in pencil: soft lines without shading, as VACE's scribble control."
    SEARCH_ALIASES = ["scribble", "sketch", "lineart", "线稿"]
    REPLACES = ("ScribblePreprocessor", "LineArtPreprocessor")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "frames": FRAMES,
                "line_width": number(1.0, 0.3, 10.0, 0.1, tooltip="Softness of the pencil, in pixels."),
                "strength": number(1.0, 0.1, 10.0, 0.1, tooltip="How dark weak edges become."),
                "lines": LINES,
            }
        }

    def make(self, frames: Any, line_width: float, strength: float, lines: str) -> tuple[Any]:
        """Return the drawing [N, H, W, 3]."""
        from ..core.controls.lines import scribble

        control = scribble(frames, line_width=line_width, strength=strength, lines=lines, host=get_host())
        return (control,)


class PiyingControlFlow(_Control):
    """Optical flow."""

    DESCRIPTION = "Visualises the motion of a video: hue is the direction, saturation the speed, white is still."
    SEARCH_ALIASES = ["optical flow", "motion", "光流"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "frames": FRAMES,
                "method": choice(
                    choices.FLOW_METHODS, "dis: fast and sharp. farneback: smoother, better on flat areas."
                ),
                "scale": choice(
                    choices.SCALES,
                    "What full colour means: the fastest pixel of each frame, as VACE was trained, or of all frames.",
                ),
            }
        }

    def make(self, frames: Any, method: str, scale: str) -> tuple[Any]:
        """Return the painted motion [N, H, W, 3]."""
        from ..core.controls.flow import optical_flow

        return (optical_flow(frames, method, scale, get_host()),)


class PiyingControlLayoutMask(_Control):
    """Outlines of a mask."""

    DESCRIPTION = "Draws where a thing is in every frame, from its mask: VACE puts the thing of the prompt there."
    SEARCH_ALIASES = ["layout", "track", "布局"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "mask": socket("MASK", "One mask per frame; above 0.5 is the thing."),
                "outline": choice(choices.OUTLINES, "A box around all of it, its convex hull, or its own outline."),
                "lines": LINES,
            }
        }

    def make(self, mask: Any, outline: str, lines: str) -> tuple[Any]:
        """Return the outlines [N, H, W, 3]."""
        from ..core.controls.layout import mask_layout

        return (mask_layout(mask, outline, lines, get_host()),)


class PiyingControlLayoutBox(_Control):
    """A box that moves from one place to another."""

    DESCRIPTION = "Draws a box that moves and grows evenly from one place to another: VACE moves a thing along."
    SEARCH_ALIASES = ["layout", "bounding box", "trajectory", "轨迹", "布局"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        how = "left, top, right, bottom, in parts of the picture (0.1, 0.2, 0.5, 0.6) or in pixels."
        return {
            "required": {
                "start": ("STRING", {"default": "0.05, 0.3, 0.35, 0.7", "tooltip": f"Box in the first frame: {how}"}),
                "end": ("STRING", {"default": "0.65, 0.3, 0.95, 0.7", "tooltip": f"Box in the last frame: {how}"}),
                "width": _stepped(16, whole(832, 16, 2048, "Width in pixels, as in VACE Sample.")),
                "height": _stepped(16, whole(480, 16, 2048, "Height in pixels, as in VACE Sample.")),
                "num_frames": _stepped(4, whole(81, 1, 241, "Number of frames, as in VACE Sample.")),
                "lines": LINES,
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start: str | None, end: str | None, width: int | None, height: int | None) -> bool | str:
        """Read the boxes before anything runs; linked values are not known yet."""
        if width is None or height is None:
            return True
        from ..core.controls.layout import parse_box

        boxes = [(name, box) for name, box in (("start", start), ("end", end)) if box is not None]
        results = [checked(parse_box, name, box, width, height) for name, box in boxes]
        return next((result for result in results if isinstance(result, str)), True)

    def make(self, start: str, end: str, width: int, height: int, num_frames: int, lines: str) -> tuple[Any]:
        """Return the moving box [num_frames, height, width, 3]."""
        from ..core.controls.layout import box_path, parse_box

        first, last = (parse_box(*box, width, height) for box in (("start", start), ("end", end)))
        control = box_path(
            first, last, num_frames=num_frames, width=width, height=height, lines=lines, host=get_host()
        )
        return (control,)


class PiyingControlDepth(_Control):
    """Depth maps."""

    DESCRIPTION = "Measures how near everything is: near is light, far is dark."
    SEARCH_ALIASES = ["depth", "depth anything", "深度"]
    REPLACES = (
        "DepthAnythingPreprocessor", "DepthAnythingV2Preprocessor", "DepthAnything_V2",
        "MiDaS-DepthMapPreprocessor",
    )  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        tooltip = (
            "Normalisation range: each frame by itself, as VACE was trained, or all frames, which is steadier where "
            "things come and go."
        )
        widgets = {"frames": FRAMES, "model": _models(DEPTH), "range_of": choice(choices.SCALES, tooltip)}
        return {"required": widgets, "hidden": {**HIDDEN}}

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are installed when the chosen one is not."""
        return model is None or checked(models.check_model, DEPTH, model, get_host())

    def make(
        self, frames: Any, model: str, range_of: str, extra_pnginfo: Any = None, unique_id: str | None = None
    ) -> tuple[Any]:
        """Return the depth [N, H, W, 3]."""
        from ..core.controls.depth import depth

        control, record = depth(frames, model, range_of, get_host())
        record_run(extra_pnginfo, unique_id, record)
        return (control,)


class PiyingControlPose(_Control):
    """People as sticks."""

    DESCRIPTION = "Finds people and draws their joints as coloured sticks."
    SEARCH_ALIASES = ["pose", "openpose", "dwpose", "姿态"]
    REPLACES = ("DWPreprocessor", "OpenposePreprocessor")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        detector_tooltip = (
            "Detects people first. auto: the largest detector under models/annotators, else the whole frame counts "
            f"as one person. {models.install_hint(DETECTOR)}"
        )
        colours_tooltip = "as VACE: what its own tool makes of videos, red and blue exchanged. OpenPose: as others do."
        return {
            "required": {
                "frames": FRAMES,
                "model": _models(POSE),
                "detector": choice(models.detector_choices(get_host()), detector_tooltip),
                "min_score": number(0.5, 0.0, 1.0, 0.05, tooltip="Confidence threshold of the detector."),
                "colours": choice(choices.POSE_COLOURS, colours_tooltip),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None, detector: str | None) -> bool | str:
        """Say which models are installed when the chosen one is not, and what to fetch where there is none."""
        good = model is None or checked(models.check_model, POSE, model, get_host())
        return (
            good if isinstance(good, str) or detector is None else checked(models.check_detector, detector, get_host())
        )

    def make(
        self,
        frames: Any,
        model: str,
        detector: str,
        min_score: float,
        colours: str,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
    ) -> tuple[Any]:
        """Return the people [N, H, W, 3]."""
        from ..core.controls.pose import pose

        control, record = pose(frames, model, detector=detector, min_score=min_score, colours=colours, host=get_host())
        record_run(extra_pnginfo, unique_id, record)
        return (control,)


class PiyingSegment(_Control):
    """A mask of the things named."""

    DESCRIPTION = "Masks what you name in every frame: for VACE: Inpaint, or for the layout of a control video."
    SEARCH_ALIASES = ["segment", "mask by text", "抠图", "分割", "遮罩"]
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("mask",)
    OUTPUT_TOOLTIPS = ("One mask per frame: 1 on what was named.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        tooltip = (
            "What to mask, in the model's own words, separated by commas. The built-in model knows circle, "
            "square, triangle and background."
        )
        return {
            "required": {
                "frames": FRAMES,
                "model": _models(SEGMENTATION),
                "names": ("STRING", {"default": "circle", "tooltip": tooltip}),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are installed when the chosen one is not."""
        return model is None or checked(models.check_model, SEGMENTATION, model, get_host())

    def make(
        self, frames: Any, model: str, names: str, extra_pnginfo: Any = None, unique_id: str | None = None
    ) -> dict[str, Any]:
        """Return the mask [N, H, W], and show on the node what was found."""
        from ..core.controls.segmentation import segment

        mask, record = segment(frames, model, names, get_host())
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, mask)


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingControlGray": PiyingControlGray,
    "PiyingControlEdges": PiyingControlEdges,
    "PiyingControlScribble": PiyingControlScribble,
    "PiyingControlFlow": PiyingControlFlow,
    "PiyingControlLayoutMask": PiyingControlLayoutMask,
    "PiyingControlLayoutBox": PiyingControlLayoutBox,
    "PiyingControlDepth": PiyingControlDepth,
    "PiyingControlPose": PiyingControlPose,
    "PiyingSegment": PiyingSegment,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingControlGray": "Control: Gray",
    "PiyingControlEdges": "Control: Edges",
    "PiyingControlScribble": "Control: Scribble",
    "PiyingControlFlow": "Control: Optical Flow",
    "PiyingControlLayoutMask": "Control: Layout from Mask",
    "PiyingControlLayoutBox": "Control: Layout from Boxes",
    "PiyingControlDepth": "Control: Depth",
    "PiyingControlPose": "Control: Pose",
    "PiyingSegment": "Segment by Name",
}
