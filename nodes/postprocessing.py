"""Post-processing: larger frames, and more of them in a second."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from ..core.host.current import get_host
from ..core.image_sizes import VideoSize
from ..core.postprocessing.choices import INTERPOLATION, METHODS, UPSCALING
from ..core.postprocessing.file_checks import check_interpolator, check_upscaler
from .shared import CATEGORY, HIDDEN, checked, frames_of, record_run, shown
from .timing import RATES
from .widgets import choice, number, socket, whole

if TYPE_CHECKING:
    from ..core.planner.report import Estimate
    from ..core.postprocessing.estimate import UnknownEstimate
    from ..core.postprocessing.interpolate import NewRate

POSTPROCESSING = f"{CATEGORY}/post-processing"
DEFAULT_FPS = 16.0


class PostprocessingNode:
    """A node that makes other frames of frames, whose memory plan is made from their size."""

    VALIDATE_INPUTS: Callable[..., bool | str]
    PLANNED: tuple[str, ...]  # the inputs that its plan depends on

    @classmethod
    def refusal(cls, known: Mapping[str, Any], linked: Collection[str] = ()) -> str:
        """Return why a run would refuse its inputs, else ""; see `PlannedNode.refusal`."""
        del linked
        answer, given = cls.VALIDATE_INPUTS(known.get("model")), known.get("frames")
        if answer is True and isinstance(given, VideoSize) and not cls.unknown_inputs(known):
            answer = checked(cls.size_made, given, known)
        return "" if answer is True else str(answer)

    @classmethod
    def sizes_before_run(cls, known: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, Any]:
        """Return the size and number of the frames that it is given, in place of the frames themselves."""
        del known
        return {"frames": frames_of(sources.get("frames"))}

    @classmethod
    def frames_before_run(cls, known: Mapping[str, Any], sources: Mapping[str, Any]) -> VideoSize | None:
        """Return the size and number of the frames that it gives; see `PlannedNode.frames_before_run`."""
        given = frames_of(sources.get("frames"))
        unknown = given is None or cls.unknown_inputs({**known, "frames": given})
        return None if given is None or unknown else cls.size_made(given, known)

    @classmethod
    def unknown_inputs(cls, known: Mapping[str, Any]) -> list[str]:
        """Return the inputs that only the run will know, of those that its plan depends on."""
        return [name for name in cls.PLANNED if known.get(name) is None]

    @staticmethod
    def size_made(given: VideoSize, known: Mapping[str, Any]) -> VideoSize:
        """Return the size and number of the frames that it makes of given ones.

        Raises:
            PiyingError: there are no such frames.
        """
        raise NotImplementedError

    @staticmethod
    def estimate(known: Mapping[str, Any]) -> Estimate:
        """Return what a run would need; for the errors see `size_made`."""
        raise NotImplementedError

    def plan_memory(self, linked: Collection[str] = (), **known: Any) -> Estimate | UnknownEstimate:
        """Return what a run would need; of a model no more than the header of its file is read where that will do.

        Args:
            linked: the names of the inputs that only the run will know.
            known: the others; `frames` has their size and number.
        """
        del linked
        unknown = self.unknown_inputs({"frames": None, **known})
        if unknown:
            from ..core.postprocessing.estimate import UnknownEstimate

            return UnknownEstimate(str(known.get("model", "")), tuple(unknown))
        return self.estimate(known)


class PiyingUpscaleVideo(PostprocessingNode):
    """Larger frames."""

    CATEGORY = POSTPROCESSING
    DESCRIPTION = (
        "Makes frames larger, one after the other: with an upscaling model in tiles that fit the free memory, or by "
        "resampling alone."
    )
    SEARCH_ALIASES = ["upscale", "esrgan", "super resolution", "enlarge", "放大", "超分", "高清"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("frames",)
    OUTPUT_TOOLTIPS = ("The larger frames.",)
    FUNCTION = "upscale"
    # How a network's result is resampled makes no difference to speak of.
    PLANNED = ("frames", "model", "scale", "width", "height", "tile")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "frames": socket("IMAGE", "The video's frames, or any pictures."),
                "model": choice(
                    UPSCALING.choices(get_host()),
                    "A file in models/upscale_models, such as ESRGAN, Real-ESRGAN or SwinIR. auto: the first one, "
                    "else none. none: resampling alone, which adds no detail.",
                ),
                "scale": number(
                    2.0, 0.1, 8.0, 0.05, tooltip="Times the size of the frames, where width and height are 0."
                ),
                # 0 leaves a side open: an optional widget would leave no place for its value in saved workflows.
                "width": whole(0, 0, 16384, "Width in pixels. 0: from the height, or from scale."),
                "height": whole(
                    0,
                    0,
                    16384,
                    "Height in pixels. 0: from the width, or from scale. With both, frames are cut to fit.",
                ),
                "method": choice(
                    METHODS, "How frames are resampled: to the size, or from what the model makes to it."
                ),
                "tile": whole(
                    0, 0, 4096, "Side of the pieces that a model is given, in pixels. 0: as large as memory allows."
                ),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are here when the chosen one is not, and what it needs."""
        # Before anything runs: frames to make larger may have taken an hour to make.
        return model is None or checked(check_upscaler, model, get_host())

    @staticmethod
    def size_made(given: VideoSize, known: Mapping[str, Any]) -> VideoSize:
        """Return the size that the frames will have."""
        from ..core.postprocessing.upscale import WantedSize

        wanted = WantedSize(known["scale"], known["width"], known["height"])
        return VideoSize(*wanted.of(given.width, given.height), given.num_frames)

    @staticmethod
    def estimate(known: Mapping[str, Any]) -> Estimate:
        """Return what making them larger would need."""
        from ..core.postprocessing.estimate import estimate_upscaling
        from ..core.postprocessing.upscale import WantedSize

        wanted = WantedSize(known["scale"], known["width"], known["height"])
        return estimate_upscaling(known["model"], known["frames"], wanted, tile=known["tile"], host=get_host())

    def upscale(
        self,
        frames: Any,
        model: str,
        scale: float,
        width: int,
        height: int,
        method: str,
        tile: int,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Return the frames at the new size, and show on the node what made them."""
        from ..core.postprocessing.upscale import WantedSize, upscale

        wanted = WantedSize(scale, width, height)
        larger, record = upscale(frames, model=model, wanted=wanted, method=method, tile=tile, host=get_host())
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, larger)


class PiyingInterpolateFrames(PostprocessingNode):
    """More frames in a second."""

    CATEGORY = POSTPROCESSING
    DESCRIPTION = (
        "Makes frames between the frames of a video, for smoother motion or slow motion: by optical flow, or with a "
        "RIFE model. Cuts stay sharp."
    )
    SEARCH_ALIASES = ["interpolate", "rife", "slow motion", "fps", "插帧", "补帧", "慢动作"]
    RETURN_TYPES = ("IMAGE", "FLOAT", "INT")
    RETURN_NAMES = ("frames", "fps", "num_frames")
    OUTPUT_TOOLTIPS = (
        "The frames at the new rate.",
        "The new rate, for Create Video. For slow motion keep the old one.",
        "Number of frames.",
    )
    FUNCTION = "interpolate"
    # Where there are cuts only the frames tell: a plan counts with none.
    PLANNED = ("frames", "model", "fps", "multiplier", "to_fps")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "frames": socket("IMAGE", "The video's frames."),
                # As Frame Rate's, whose outputs go on to the same nodes.
                "fps": number(DEFAULT_FPS, *RATES, tooltip="Their rate. Wan makes 16 frames a second."),
                "model": choice(
                    INTERPOLATION.choices(get_host()),
                    "A RIFE file (4.7 to 4.26) in models/frame_interpolation. auto: the first one, else optical flow, "
                    "which needs no model and is weaker on fast motion.",
                ),
                "multiplier": whole(2, 1, 16, "Times the frame rate, where to_fps is 0."),
                "to_fps": number(
                    0.0, 0.0, RATES[1], RATES[2], tooltip="The new rate. 0: multiplier times the old one."
                ),
                "scene_cut": number(
                    0.4,
                    0.0,
                    1.0,
                    0.05,
                    tooltip="Which share of a picture has to be new for a cut, where no frames are made. 1: no cuts.",
                ),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are here when the chosen one is not, or is none."""
        # Before anything runs, as for upscaling.
        return model is None or checked(check_interpolator, model, get_host())

    @classmethod
    def unknown_inputs(cls, known: Mapping[str, Any]) -> list[str]:
        """Return the inputs that only the run will know; at a multiple of the rate the rate makes no difference."""
        return [name for name in super().unknown_inputs(known) if name != "fps" or known.get("to_fps")]

    @staticmethod
    def size_made(given: VideoSize, known: Mapping[str, Any]) -> VideoSize:
        """Return how many frames there will be."""
        return given._replace(num_frames=len(_rate(known).frames(given.num_frames)))

    @staticmethod
    def estimate(known: Mapping[str, Any]) -> Estimate:
        """Return what making them would need."""
        from ..core.postprocessing.estimate import estimate_interpolation

        return estimate_interpolation(known["model"], known["frames"], _rate(known), host=get_host())

    def interpolate(
        self,
        frames: Any,
        fps: float,
        model: str,
        multiplier: int,
        to_fps: float,
        scene_cut: float,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Return the frames at the new rate, that rate and their count, and show on the node what made them."""
        from ..core.postprocessing.interpolate import NewRate, interpolate

        rate = NewRate(fps, multiplier, to_fps)
        made, new_fps, record = interpolate(frames, model=model, rate=rate, scene_cut=scene_cut, host=get_host())
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, made, new_fps, len(made))


def _rate(known: Mapping[str, Any]) -> NewRate:
    from ..core.postprocessing.interpolate import NewRate

    return NewRate(known.get("fps", DEFAULT_FPS), known["multiplier"], known["to_fps"])


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingUpscaleVideo": PiyingUpscaleVideo,
    "PiyingInterpolateFrames": PiyingInterpolateFrames,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingUpscaleVideo": "Upscale Video",
    "PiyingInterpolateFrames": "Interpolate Frames",
}
