"""Wan VACE nodes: load a model, put a LoRA on it, sample a video."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.image_sizes import MULTIPLE
from ..core.wan import request as vace
from ..core.wan.family import WAN_VACE
from ..core.wan.latents import FRAME_STEP
from ..core.wan.schedule import check_schedule
from ..core.wan.task.options import SIZES_FROM
from .model_nodes import CFG_TOOLTIP, STEPS_TOOLTIP, DiffusionLoader
from .shared import CATEGORY, HIDDEN, all_checked, checked, record_run, seed_input, sheets_of, shown, wired_inputs
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
from .widgets import choice, number

if TYPE_CHECKING:
    from ..core.wan.task.canvas import Canvas
    from ..core.wan.task.vace_task import VACETask

log = logging.getLogger("piying")

VACE = f"{CATEGORY}/VACE"
WAN = ["wan", "wan2.1", "vace", "万相"]  # what people type to find any of these nodes


class PiyingLoadWanVACE(DiffusionLoader):
    """Choose a Wan2.1-VACE model."""

    FAMILY = WAN_VACE
    CATEGORY = VACE
    DESCRIPTION = "Chooses a Wan2.1-VACE or Wan2.2-VACE-Fun model. Nothing is loaded until a sampler needs it."
    SEARCH_ALIASES = [*WAN, "load video model", "加载模型"]
    REPLACES = (
        "WanVideoModelLoader", "WanVideoVACEModelSelect", "WanVideoExtraModelSelect", "WanVideoVAELoader",
        "LoadWanVideoT5TextEncoder", "WanVideoBlockSwap", "WanVideoSetBlockSwap", "WanVideoVRAMManagement",
    )  # fmt: skip
    REPLACES_GENERIC = ("UNETLoader", "UnetLoaderGGUF", "CLIPLoader", "CLIPLoaderGGUF", "VAELoader")
    MODEL_NAMES = ("vace",)
    RETURN_TYPES = ("WAN_VACE",)
    ALSO = ", or single files under models/diffusion_models with a text encoder and a VAE beside them"
    OUTPUT_TOOLTIPS = ("The model, for VACE Sample.",)
    PRECISION_TOOLTIP = (
        "Number type of text encoder and transformer. auto: bf16 on a card, fp32 on a CPU. The number type of the "
        "VAE is set by vae_precision of the sampler: fp32 where speed is reference, else fp16 on a card."
    )


class PiyingLoRA(WanLoRANode):
    """A Wan VACE model → the same with a LoRA on it."""

    FAMILY = WAN_VACE
    SETTINGS = {"steps": vace.DEFAULT_STEPS, "cfg": vace.DEFAULT_CFG, "shift": vace.DEFAULT_SHIFT}
    CATEGORY = VACE
    DESCRIPTION = (
        "Puts a LoRA on a Wan2.1-VACE model; several can be chained. Removing it or changing its strength reads no "
        "weights again. A step-distilled LoRA outputs its steps, cfg and shift: wire them to the sampler."
    )
    SEARCH_ALIASES = [*WAN, "lora", "lora loader", "causvid", "lightx2v", "加载LoRA", "步数蒸馏"]
    REPLACES = ("WanVideoLoraSelect", "WanVideoLoraSelectMulti", "WanVideoSetLoRAs")
    RETURN_TYPES = ("WAN_VACE", "INT", "FLOAT", "FLOAT")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA, for VACE Sample.",
        STEPS_TOOLTIP.format(node="VACE Sample"),
        CFG_TOOLTIP.format(node="VACE Sample"),
        "The shift it was made for, else the published one. For VACE Sample.",
    )


class PiyingFastDecoder(FastDecoderNode):
    """A Wan VACE model → the same with a small decoder in place of the VAE's."""

    FAMILY = WAN_VACE
    CATEGORY = VACE
    SEARCH_ALIASES = [*WAN, *FastDecoderNode.WORDS]
    RETURN_TYPES = ("WAN_VACE",)
    OUTPUT_TOOLTIPS = ("The model with the decoder, for VACE Sample.",)


class PiyingVACESample(WanSampler):
    """Text, and a task where there is one → video frames."""

    CATEGORY = VACE
    DESCRIPTION = "Makes a video with Wan2.1-VACE. Gives its frames; Create Video and Save Video make a file of them."
    SEARCH_ALIASES = [*WAN, "text to video", "txt2vid", "t2v", "sampler", "文生视频", "采样"]
    REPLACES = (
        "WanVideoSampler", "WanVideoTextEncode", "WanVideoTextEncodeCached", "WanVideoEmptyEmbeds",
        "WanVideoDecode", "WanVideoTeaCache", "WanVideoTorchCompileSettings",
    )  # fmt: skip
    REPLACES_GENERIC = (
        "KSampler", "KSamplerAdvanced", "ModelSamplingSD3", "CLIPTextEncode", "TrimVideoLatent", "VAEDecode",
        "VAEDecodeTiled", "EmptyHunyuanLatentVideo",
    )  # fmt: skip
    RETURN_TYPES = ("IMAGE", "LATENT")
    RETURN_NAMES = ("frames", "latents")
    OUTPUT_TOOLTIPS = ("The video's frames, to be played at 16 frames per second.", LATENTS_TOOLTIP)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        return {
            "required": {
                "model": ("WAN_VACE", {"tooltip": "From Load Wan VACE."}),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What the video shows, in Chinese or English.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": vace.NEGATIVE_PROMPT,
                        "tooltip": "What to steer away from. The default is the list published with Wan2.1. "
                        "Without effect at cfg 1.",
                    },
                ),
                "width": ("INT", _side(vace.DEFAULT_WIDTH, "Width")),
                "height": ("INT", _side(vace.DEFAULT_HEIGHT, "Height")),
                "num_frames": (
                    "INT",
                    {
                        "default": vace.DEFAULT_FRAMES,
                        "min": vace.MIN_FRAMES,
                        "max": vace.MAX_FRAMES,
                        "step": FRAME_STEP,
                        "tooltip": "Length of the video: 4n+1 frames, 16 a second. Wan2.1 was trained on 81.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": vace.DEFAULT_STEPS,
                        "min": 1,
                        "max": 1000,
                        "tooltip": "Denoising steps. Published: 50; 20 to 30 often suffice.",
                    },
                ),
                "cfg": number(
                    vace.DEFAULT_CFG,
                    1.0,
                    30.0,
                    0.1,
                    tooltip="How strictly to follow the prompt. Published: 5. 1 ignores the negative prompt and takes "
                    "half the time.",
                ),
                "shift": number(
                    vace.DEFAULT_SHIFT,
                    0.1,
                    100.0,
                    0.1,
                    tooltip="Timestep shift of the noise schedule: higher spends more steps on layout and motion. "
                    "Published for VACE: 16; other tools use 3 to 8.",
                ),
                # The page puts "control after generate" behind it, which takes a place among the saved values too.
                "seed": seed_input(vace.DEFAULT_SEED),
            },
            "optional": {
                "task": (
                    "VACE_TASK",
                    {
                        "tooltip": "From a VACE node: what the video is made from beside its prompt. Without one it "
                        "is text to video. Size and length come from it as size_from says."
                    },
                ),
                **speed_inputs(),
                **size_inputs(),
                **sampling_inputs(),
                **expert_inputs(),
                **chained_inputs(),
                **partial_inputs(),
            },
            # The graph tells a wired size from one of a widget.
            "hidden": {**HIDDEN, "dynprompt": "DYNPROMPT"},
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
        """Name the nearest good number for a size or length the model cannot make, and a schedule that is none."""
        checks = (("width", width), ("height", height))
        results = [checked(vace.check_side, name, value) for name, value in checks if value is not None]
        if num_frames is not None:
            results.append(checked(vace.check_num_frames, num_frames))
        results.append(checked(check_schedule, scheduler or "auto", sigmas or ""))
        return all_checked(results)

    def sample(
        self,
        model: ModelHandle,
        task: Any = None,
        latents: Any = None,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
        dynprompt: Any = None,
        **widgets: Any,
    ) -> dict[str, Any]:
        """Return the frames [N, H, W, 3] and their latents, and show on the node how they were made."""
        from ..core.wan.run import sample
        from ..core.wan.task.canvas import compared_with

        sized = with_task_sizes(widgets, task, wired_inputs(dynprompt, unique_id))
        canvases: list[Canvas] = []
        left: dict[str, Any] = {}
        frames, record = sample(
            model,
            vace.WanRequest(**sized),
            get_host(),
            task,
            latent=latents,
            on_canvas=canvases.append,
            on_latent=left.update,
        )
        record_run(extra_pnginfo, unique_id, record)
        sheets = sheets_of(frames, lambda: compared_with(task, canvases[0], len(frames)) if task else {})
        return shown(record, frames, left, sheets=sheets)

    @staticmethod
    def foreign_definitions() -> dict[str, dict[str, Any]]:
        """Return definitions of the nodes of others whose workflows can be converted, as in ComfyUI's /object_info."""
        from .vace_conversion import foreign_definitions

        return foreign_definitions()

    @staticmethod
    def convert_workflow(graph: dict[str, Any], info: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return a workflow of others in our nodes, and what it could not carry over; see `vace_conversion`."""
        from .vace_conversion import convert

        return convert(graph, info)

    @staticmethod
    def sizes_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the task sets in place of the widgets; see `task_sizes_before_run`."""
        return task_sizes_before_run(known, sources)

    @staticmethod
    def plan_inputs(known: dict[str, Any], linked: Collection[str]) -> dict[str, Any]:
        """Return what a memory plan is made from; whether there is a task only its wire tells before a run."""
        return {**known, "task": "task" in linked}


def size_inputs() -> dict[str, Any]:
    """Return the widget that says where size and length come from; a file saved before it came means what it meant."""
    return {
        "size_from": choice(
            SIZES_FROM,
            "Where size and length come from if they are not wired. auto: from the task, where its frames are of one "
            "size or length only (fit or length: refuse, and the num_frames of VACE: Extend); else from the widgets. "
            "task: from the task's video, at the nearest multiple of 16 below. widgets: from the widgets.",
        )
    }


def with_task_sizes(widgets: dict[str, Any], task: VACETask | None, wired: Collection[str]) -> dict[str, Any]:
    """Return a sampler's widgets without `size_from`, with the task's size and length where it takes those."""
    own = {name: value for name, value in widgets.items() if name != "size_from"}
    found = {} if task is None else task.sampler_sizes(widgets.get("size_from", "auto"), wired)
    changed = [name for name, value in found.items() if own[name] != value]
    if changed:
        log.info("From the task: %s.", ", ".join(f"{name} {found[name]}" for name in changed))
    return own | found


def task_sizes_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, int | None]:
    """Return what `with_task_sizes` will set, as far as a graph tells; see `PlannedNode.sizes_before_run`."""
    size_from = known.get("size_from", "auto")
    if "task" not in sources or size_from == "widgets":
        return {}
    found = sizes_of_source(sources["task"], size_from)
    if {"width", "height"}.intersection(sources):
        found = {name: value for name, value in found.items() if name == "num_frames"}
    return {name: value for name, value in found.items() if name not in sources}


def sizes_of_source(source: Any, size_from: str) -> dict[str, int | None]:
    """Return the sizes that the task of a node sets; all of them may be set by a node that is none of ours."""
    sizes = getattr(source and source.node_class, "sizes_before_run", None)
    if sizes is None:
        return dict.fromkeys(("width", "height", "num_frames"))
    found: dict[str, int | None] = sizes(source.known, source.sources, size_from)
    return found


def _side(default: int, name: str) -> dict[str, Any]:
    return {
        "default": default,
        # The page rounds a typed number to the step, counted from the minimum: that is a multiple of it too.
        "min": vace.MIN_SIDE,
        "max": vace.MAX_SIDE,
        "step": MULTIPLE,
        "tooltip": f"{name} in pixels, a multiple of 16. 1.3B was trained at 832×480; 14B also at 1280×720.",
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadWanVACE": PiyingLoadWanVACE,
    "PiyingLoRA": PiyingLoRA,
    "PiyingFastDecoder": PiyingFastDecoder,
    "PiyingVACESample": PiyingVACESample,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadWanVACE": "Load Wan VACE",
    "PiyingLoRA": "Add LoRA",
    "PiyingFastDecoder": "Fast Decoder",
    "PiyingVACESample": "VACE Sample",
}
