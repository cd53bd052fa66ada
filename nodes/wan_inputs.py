"""What the nodes of Wan share, with VACE and without: bases, widgets, and what is checked of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.catalog.experts import EXPERTS
from ..core.host.current import get_host
from ..core.wan import request as wan
from ..core.wan.fast_decoder import DECODERS, RESULT_AND_PREVIEWS, USES, with_decoder
from ..core.wan.schedule import check_step_range
from .model_nodes import LoRANode, PlannedNode
from .shared import checked
from .widgets import advanced, choice, line, number, socket, toggle, whole

if TYPE_CHECKING:
    from ..core.catalog.installed_model import InstalledModel
    from ..core.catalog.selection import ModelHandle
    from ..core.families.base import ModelFamily
    from ..core.wan.context import Context

# What is checked before a run beside the sizes.
STEPS = ("steps", "scheduler", "sigmas", "start_at_step", "end_at_step")
SETTINGS = ("cfg_start", "cfg_end", "step_cache", "boundary", "cfg_2", "guidance", "context", *STEPS)
LATENTS_TOOLTIP = "Latents of the video, for another sampler, or for VAE Decode with this VAE."


class WanSampler(PlannedNode):
    """A sampler of Wan."""

    @classmethod
    def check_model(cls, known: Mapping[str, Any], model: InstalledModel) -> None:
        """Refuse settings at odds, steps that are none, and guidance, context or decoder not for the model, too."""
        from ..core.wan.experts import boundary_of, has_two_experts
        from ..core.wan.fast_decoder import decoders_of
        from ..core.wan.model import check_settings

        super().check_model(known, model)
        request = wan.WanRequest("", **{name: value for name, value in known.items() if name in SETTINGS})
        wan.check_speed_settings(request)
        check_settings(model, request.guidance, request.context, decoders_of(known["model"], get_host()))
        if has_two_experts(model) and not request.boundary:
            boundary_of(model)
        if not set(STEPS).intersection(known["linked"]):
            check_step_range(request, "latents" in known["linked"])

    @staticmethod
    def count_before_run(sizes: Mapping[str, Any], sources: Mapping[str, Any]) -> int | None:
        """Return the frames of the video; a loop has some more than it is asked for."""
        count: int | None = sizes.get("num_frames")
        context: Context | None = sizes.get("context")
        if count is None or (context is None and "context" in sources):
            return None  # whether it is a loop is not known either
        return count if context is None else context.frames_given(count)


class WanLoRANode(LoRANode):
    """A LoRA node of Wan, whose models may have two transformers."""

    TWO_EXPERTS = "Wan2.2"  # the models that have them
    REPLACES_GENERIC = ("LoraLoader", "LoraLoaderModelOnly")
    RETURN_NAMES = ("model", "steps", "cfg", "shift")  # links are saved by position: new outputs go last

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare what every LoRA node has, and which expert the LoRA goes on."""
        expert = choice(
            [*EXPERTS],
            f"Models of two experts ({cls.TWO_EXPERTS}): which one the LoRA goes on. auto: what the file's name says "
            "(HIGH, low_noise, …), else both. Chain two of these nodes for a pair. Without effect on models of one.",
        )
        return {**super().INPUT_TYPES(), "optional": {"expert": expert}}


class FastDecoderNode:
    """A model of Wan → the same with a small decoder in place of the VAE's."""

    FAMILY: ModelFamily
    DESCRIPTION = (
        "Has a small decoder (TAEHV) make the frames in place of the VAE, or the previews alone: far quicker and in "
        "less memory, with less detail. Without this node, the latents of the same run are decoded anew and not "
        "sampled again."
    )
    WORDS = ("taehv", "taew2_1", "tiny vae", "vae_approx", "快速解码")
    RETURN_NAMES = ("model",)
    FUNCTION = "add"
    RUNS_AT_ONCE = True  # it reads a header, so that plans and checks know of the decoder before a run

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        # Two nodes of one declaration: a socket has one type, and the families have one each.
        return {
            "required": {
                "model": socket(cls.FAMILY.socket, f"From {cls.FAMILY.loader}, or with LoRAs on it."),
                "decoder": choice(
                    DECODERS.choices(get_host()),
                    "A file in models/vae_approx: taew2_1, lighttaew2_1, or taew2_2 for TI2V-5B. auto: the first one "
                    "that fits, else vae. vae: the model's own VAE.",
                ),
            },
            # Optional: prompts in API form that were saved before this widget came do not have it.
            "optional": {
                "use": choice(
                    USES,
                    "What it decodes. result and previews: the frames, and the pictures of the steps. previews only: "
                    "the VAE makes the frames.",
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, decoder: str | None) -> bool | str:
        """Say which files are here when the chosen one is not."""
        return decoder is None or checked(DECODERS.check, decoder, get_host())

    def add(self, model: ModelHandle, decoder: str, use: str = RESULT_AND_PREVIEWS) -> tuple[ModelHandle]:
        """Return a handle with the decoder."""
        return (with_decoder(model, decoder, get_host(), use),)


def speed_inputs() -> dict[str, Any]:
    """Return the widgets that trade exactness for time; all of them do nothing as they stand."""
    low, high, step = 0.0, 1.0, 0.05
    # Workflow files hold the values of widgets by position: a new one goes last. Each default is the reference, so
    # that a workflow saved before a widget came gives the same frames.
    declared = {
        "speed": choice(
            wan.SPEEDS,
            "reference: every step in full, as published. balanced: steps that hardly differ are skipped and "
            "forecast, and the VAE computes in fp16 on a card. fast: two thirds of the steps, and more of them are "
            "forecast. draft: the same with half the steps. fast and draft use a step-distilled LoRA and its steps "
            "where one is installed. Widgets set by hand stay.",
        ),
        "cfg_start": number(0.0, low, high, step, tooltip="Share of the steps after which guidance begins."),
        "cfg_end": number(
            1.0,
            low,
            high,
            step,
            tooltip="Share of the steps after which guidance ends. A step without takes half the time.",
        ),
        "step_cache": number(
            0.0,
            0.0,
            wan.MAX_STEP_CACHE,
            0.01,
            tooltip="First-block cache: a step whose first blocks change by less than this threshold is forecast from "
            "earlier steps. 0: off. Try 0.05 to 0.15.",
        ),
        "attention": choice(
            wan.ATTENTIONS,
            "Attention kernel. auto: torch's own where speed is reference, else the fastest one that is installed "
            "and runs on this card. sage computes in eight bits, and is chosen for fast and draft only.",
        ),
        "compile_blocks": toggle(
            False,
            "Compile the model's blocks with torch.compile: minutes at first, then faster steps. On a card that "
            "holds the whole model; skipped elsewhere.",
        ),
        "batch_cfg": toggle(
            False,
            "Compute prompt and negative prompt in one batch where memory allows: a little faster for small videos. "
            "Every speed but reference does so.",
        ),
        "vae_precision": choice(
            wan.VAE_PRECISIONS,
            "Number type of the VAE. auto: fp32 where speed is reference, else fp16 on a card. fp16 is faster and "
            "takes half the memory; on overflow it falls back to a wider type.",
        ),
    }
    return advanced(declared, "speed")


def sampling_inputs() -> dict[str, Any]:
    """Return the widgets that say how noise becomes a video; as they stand it is sampled as published."""
    declared = {
        "sampler": choice(
            wan.SAMPLERS,
            "How each step follows the model. auto: the one a step-distilled LoRA was published with, else uni_pc, as "
            "published for Wan. dpmpp_2m_sde and lcm add new noise at every step.",
        ),
        "scheduler": choice(
            wan.SCHEDULERS,
            "Noise levels of the steps. auto: the published ones. simple: evenly spaced, shifted, as ComfyUI's. "
            "causvid: the 9 steps of CausVid 14B, for its LoRA with euler. distill: the 4 steps of LightX2V, shifted. "
            "Those two set the number of steps. beta: dense at both ends, as ComfyUI's; needs SciPy.",
        ),
        "sigmas": line(
            "Noise levels by hand, in place of steps, shift and scheduler: falling numbers from 1, such as 1, 0.9, "
            "0.7, 0.4. Empty: those of the scheduler."
        ),
    }
    return advanced(declared, "sampler")


def chained_inputs() -> dict[str, Any]:
    """Return the sockets of nodes that say more of how it is sampled."""
    return {
        "guidance": socket("WAN_GUIDANCE", "From VACE Guidance: how steps are guided beside cfg."),
        "context": socket("WAN_CONTEXT", "From Wan Context Windows: windows, RIFLEx, loop."),
    }


def partial_inputs() -> dict[str, Any]:
    """Return what has a sampler take some of the steps, from latents of another; as it stands it takes all."""
    declared = {
        "start_at_step": whole(
            0, 0, wan.ALL_STEPS, "First step, from 0. A later one begins from latents: less of them is changed."
        ),
        "end_at_step": whole(
            wan.ALL_STEPS,
            1,
            wan.ALL_STEPS,
            "Step behind the last one. An earlier one leaves the rest to another sampler; frames then show what the "
            "video is going to be.",
        ),
    }
    latents = "Where start_at_step begins: latents of another sampler, or of VAE Encode with this VAE."
    return {**advanced(declared), "latents": socket("LATENT", latents)}


def expert_inputs() -> dict[str, Any]:
    """Return the widgets for the two experts of Wan2.2; at 0 they do nothing, as in a file saved before they came."""
    # 0 stands for "the model's own": the widgets have no other way to be left alone.
    declared = {
        "boundary": number(
            0.0,
            0.0,
            1.0,
            0.005,
            tooltip="Models of two experts (Wan2.2-VACE-Fun): share of all noise down to which the high-noise expert "
            "denoises; the low-noise expert takes the other steps. 0: the model's own, published as 0.875.",
        ),
        "cfg_2": number(
            0.0,
            0.0,
            wan.MAX_CFG,
            0.1,
            tooltip="Models of two experts: the cfg of the low-noise expert. 0: as cfg, which is then that of both.",
        ),
    }
    return advanced(declared)
