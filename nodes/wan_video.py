"""Wan nodes without VACE: load a model, put a LoRA on it, make a video from text and a first and a last frame."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ..core.catalog.selection import ModelHandle, choose_model, is_imagined
from ..core.host.current import get_host
from ..core.wan import request as wan
from ..core.wan.latents import FRAME_STEP
from ..core.wan.schedule import check_schedule
from ..core.wan_video.family import WAN_VIDEO
from ..core.wan_video.request import (
    DEFAULT_SHIFT,
    FRAME_FITS,
    FRAME_SIZES,
    TITLE,
    check_side,
    shaped_like,
)
from .model_nodes import CFG_TOOLTIP, STEPS_TOOLTIP, DiffusionLoader
from .shared import CATEGORY, HIDDEN, all_checked, checked, frames_of, record_run, seed_input, sheets_of, shown
from .wan_inputs import (
    LATENTS_TOOLTIP,
    FastDecoderNode,
    WanLoRANode,
    WanSampler,
    chained_inputs,
    expert_inputs,
    partial_inputs,
    sampling_inputs,
    speed_inputs,
)
from .widgets import choice, number, socket, whole

if TYPE_CHECKING:
    from ..core.image_sizes import VideoSize

VIDEO = f"{CATEGORY}/Wan"
WORDS = ["wan", "wan2.1", "wan2.2", "万相"]  # what people type to find any of these nodes


class PiyingLoadWanVideo(DiffusionLoader):
    """Choose a Wan model without VACE."""

    FAMILY = WAN_VIDEO
    CATEGORY = VIDEO
    DESCRIPTION = (
        "Chooses a Wan2.1 or Wan2.2 model: text to video (T2V), image to video (I2V), first and last frame (FLF2V), "
        "or both in one (TI2V-5B). Nothing is loaded until a sampler needs it."
    )
    SEARCH_ALIASES = [*WORDS, "load video model", "i2v", "t2v", "ti2v", "加载模型"]
    REPLACES_GENERIC = (
        "UNETLoader",
        "UnetLoaderGGUF",
        "CLIPLoader",
        "CLIPLoaderGGUF",
        "VAELoader",
        "CLIPVisionLoader",
    )
    MODEL_NAMES = ("i2v", "flf2v")
    RETURN_TYPES = ("WAN_VIDEO",)
    ALSO = ", or single files under models/diffusion_models with a text encoder and a VAE beside them"
    OUTPUT_TOOLTIPS = ("The model, for Wan Sample.",)
    PRECISION_TOOLTIP = (
        "Number type of text encoder, image encoder and transformer. auto: bf16 on a card, fp32 on a CPU. The number "
        "type of the VAE is set by vae_precision of the sampler."
    )


class PiyingWanLoRA(WanLoRANode):
    """A Wan model → the same with a LoRA on it."""

    FAMILY = WAN_VIDEO
    SETTINGS = {"steps": wan.DEFAULT_STEPS, "cfg": wan.DEFAULT_CFG, "shift": DEFAULT_SHIFT}
    CATEGORY = VIDEO
    TWO_EXPERTS = "Wan2.2 A14B"
    DESCRIPTION = (
        "Puts a LoRA on a Wan model; several can be chained. Removing it or changing its strength reads no weights "
        "again. A step-distilled LoRA outputs its steps, cfg and shift: wire them to the sampler."
    )
    SEARCH_ALIASES = [*WORDS, "lora", "lora loader", "lightx2v", "加载LoRA"]
    RETURN_TYPES = ("WAN_VIDEO", "INT", "FLOAT", "FLOAT")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA, for Wan Sample.",
        STEPS_TOOLTIP.format(node="Wan Sample"),
        CFG_TOOLTIP.format(node="Wan Sample"),
        "The shift it was made for, else the published one. For Wan Sample.",
    )


class PiyingWanFastDecoder(FastDecoderNode):
    """A Wan model → the same with a small decoder in place of the VAE's."""

    FAMILY = WAN_VIDEO
    CATEGORY = VIDEO
    SEARCH_ALIASES = [*WORDS, *FastDecoderNode.WORDS]
    RETURN_TYPES = ("WAN_VIDEO",)
    OUTPUT_TOOLTIPS = ("The model with the decoder, for Wan Sample.",)


class PiyingWanSample(WanSampler):
    """Text, and a first and a last frame where there are such → video frames."""

    CATEGORY = VIDEO
    DESCRIPTION = (
        "Makes a video with Wan2.1 or Wan2.2 from text, from a first frame, or from a first and a last frame, as the "
        "model can. Gives its frames; Create Video and Save Video make a file of them."
    )
    SEARCH_ALIASES = [
        *WORDS, "text to video", "image to video", "first frame", "last frame", "first last frame", "i2v", "t2v",
        "flf2v", "文生视频", "图生视频", "首帧", "首尾帧",
    ]  # fmt: skip
    REPLACES_GENERIC = (
        "KSampler", "KSamplerAdvanced", "ModelSamplingSD3", "CLIPTextEncode", "VAEDecode", "WanImageToVideo",
        "WanFirstLastFrameToVideo", "Wan22ImageToVideoLatent", "EmptyHunyuanLatentVideo",
    )  # fmt: skip
    RETURN_TYPES = ("IMAGE", "FLOAT", "LATENT")
    RETURN_NAMES = ("frames", "fps", "latents")
    OUTPUT_TOOLTIPS = (
        "The video's frames.",
        "Frames a second to play them at: 24 for TI2V-5B, 16 for the others.",
        LATENTS_TOOLTIP,
    )
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        text = {"multiline": True}
        return {
            "required": {
                "model": socket("WAN_VIDEO", "From Load Wan Video."),
                "prompt": (
                    "STRING",
                    {
                        **text,
                        "default": "",
                        "tooltip": "What the video shows, in Chinese or English; with a first frame, what happens.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {
                        **text,
                        "default": wan.NEGATIVE_PROMPT,
                        "tooltip": "What to steer away from. The default is the list published with Wan2.1. "
                        "Without effect at cfg 1.",
                    },
                ),
                "width": ("INT", _side(wan.DEFAULT_WIDTH, "Width")),
                "height": ("INT", _side(wan.DEFAULT_HEIGHT, "Height")),
                "num_frames": (
                    "INT",
                    {
                        "default": wan.DEFAULT_FRAMES,
                        "min": wan.MIN_FRAMES,
                        "max": wan.MAX_FRAMES,
                        "step": FRAME_STEP,
                        "tooltip": "Length of the video: 4n+1 frames. Trained on 81; TI2V-5B on 121.",
                    },
                ),
                "steps": whole(wan.DEFAULT_STEPS, 1, 1000, "Denoising steps. Published: 40 to 50; 20 to 30 often do."),
                "cfg": number(
                    wan.DEFAULT_CFG,
                    1.0,
                    wan.MAX_CFG,
                    0.1,
                    tooltip="How strictly to follow the prompt. Published: 3.5 to 6. 1 ignores the negative prompt "
                    "and takes half the time.",
                ),
                "shift": number(
                    DEFAULT_SHIFT,
                    0.1,
                    100.0,
                    0.1,
                    tooltip="Timestep shift of the noise schedule: higher spends more steps on layout and motion. "
                    "Published: 5; 3 for I2V at 480p, 12 for T2V-A14B, 16 for FLF2V.",
                ),
                "seed": seed_input(wan.DEFAULT_SEED),
            },
            # Sockets for all that some model can do: which of them a chosen one reads is said before a run, and in it.
            "optional": {
                "first_frame": socket(
                    "IMAGE", "What the video begins with, for I2V, FLF2V and TI2V models; of several the first."
                ),
                "last_frame": socket(
                    "IMAGE", "What the video ends with, for FLF2V and Wan2.2 I2V models; of several the last."
                ),
                "size_from": choice(
                    FRAME_SIZES,
                    "Where the shape comes from with a given frame. frame: as many pixels as width × height, in the "
                    "shape of the frame. widgets: width × height, and the frame is fitted.",
                ),
                "fit": choice(
                    FRAME_FITS,
                    "How a given frame comes to another shape. crop: fill, cutting edges. letterbox: fit, adding gray "
                    "bars. stretch: distort.",
                ),
                **speed_inputs(),
                **sampling_inputs(),
                **expert_inputs(),
                **chained_inputs(),
                **partial_inputs(),
            },
            "hidden": {**HIDDEN},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        width: int | None,
        height: int | None,
        num_frames: int | None,
        scheduler: str | None = None,
        sigmas: str | None = None,
    ) -> bool | str:
        """Name the nearest good number for a size or length that no model can make, and a schedule that is none."""
        # Sides of 16 here, which every model but TI2V-5B takes: what the chosen one takes is checked with it.
        sides = (("width", width), ("height", height))
        results = [checked(check_side, name, value) for name, value in sides if value is not None]
        if num_frames is not None:
            results.append(checked(wan.check_num_frames, num_frames, TITLE))
        results.append(checked(check_schedule, scheduler or "auto", sigmas or ""))
        return all_checked(results)

    def sample(
        self,
        model: ModelHandle,
        first_frame: Any = None,
        last_frame: Any = None,
        size_from: str = "frame",
        fit: Any = "crop",
        latents: Any = None,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
        **widgets: Any,
    ) -> dict[str, Any]:
        """Return the frames [N, H, W, 3], their rate and their latents, and show on the node how they were made."""
        from ..core.wan_video.run import sample

        left: dict[str, Any] = {}
        frames, fps, record = sample(
            model,
            wan.WanRequest(**widgets),
            get_host(),
            first=first_frame,
            last=last_frame,
            fit=fit,
            shaped=size_from == "frame",
            latent=latents,
            on_latent=left.update,
        )
        record_run(extra_pnginfo, unique_id, record)
        return shown(record, frames, fps, left, sheets=sheets_of(frames))

    @staticmethod
    def sizes_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the size in the shape of a given frame whose own size is known; see `PlannedNode.sizes_before_run`.

        Raises:
            PiyingError: the frame is too long and narrow for it, or the model cannot be used.
        """
        frame, handle = frames_of(sources.get(shaping_input(known, sources))), known.get("model")
        width, height = known.get("width"), known.get("height")
        if frame is None or width is None or height is None or not isinstance(handle, ModelHandle):
            return {}
        host = get_host()
        model = None if is_imagined(handle, host) else choose_model(handle, host, quiet=True)
        stride = WAN_VIDEO.inputs_read(handle, model).stride
        shaped = shaped_like(width, height, (frame.width, frame.height), 2 * stride)
        return dict(zip(("width", "height"), shaped, strict=True))

    @classmethod
    def frames_before_run(cls, known: Mapping[str, Any], sources: Mapping[str, Any]) -> VideoSize | None:
        """Return the size and number of its frames, None in the shape of a frame whose own size only the run knows."""
        if shaping_input(known, sources) and not cls.sizes_before_run(known, sources):
            return None
        return super().frames_before_run(known, sources)

    @staticmethod
    def plan_inputs(known: dict[str, Any], linked: Collection[str]) -> dict[str, Any]:
        """Return what a memory plan is made from; whether there are frames only their wires tell before a run."""
        return {**known, "first_frame": "first_frame" in linked, "last_frame": "last_frame" in linked}


def shaping_input(known: Mapping[str, Any], sources: Mapping[str, Any]) -> str:
    """Return the input whose frame gives the video its shape, "" where width and height do."""
    if known.get("size_from", "frame") != "frame":
        return ""
    return next((name for name in ("first_frame", "last_frame") if name in sources), "")


def _side(default: int, name: str) -> dict[str, Any]:
    return {
        "default": default,
        "min": wan.MIN_SIDE,
        "max": wan.MAX_SIDE,
        "step": 16,
        "tooltip": f"{name} in pixels, a multiple of 16; of 32 for TI2V-5B. Trained at 832×480 and 1280×720; TI2V-5B "
        "at 1280×704.",
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadWanVideo": PiyingLoadWanVideo,
    "PiyingWanLoRA": PiyingWanLoRA,
    "PiyingWanFastDecoder": PiyingWanFastDecoder,
    "PiyingWanSample": PiyingWanSample,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadWanVideo": "Load Wan Video",
    "PiyingWanLoRA": "Add Wan LoRA",
    "PiyingWanFastDecoder": "Wan Fast Decoder",
    "PiyingWanSample": "Wan Sample",
}
