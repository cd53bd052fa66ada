"""Wan request: what to sample, with defaults, and the rules it must keep."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import PiyingError
from ..image_sizes import check_multiple, either, nearest_multiples
from .latents import FRAME_STEP

if TYPE_CHECKING:
    from .context import Context
    from .guidance import Guidance

MIN_SIDE, MAX_SIDE = 16, 2048
MIN_FRAMES, MAX_FRAMES = 1, 241
LONGEST_FRAMES = 9601  # of a video made in windows: ten minutes
FPS = 16  # what Wan2.1 was trained on

# Defaults published with Wan2.1-VACE (vace_wan_inference.py).
DEFAULT_WIDTH, DEFAULT_HEIGHT, DEFAULT_FRAMES = 832, 480, 81
DEFAULT_STEPS, DEFAULT_CFG, DEFAULT_SHIFT, DEFAULT_SEED = 50, 5.0, 16.0, 2025

# How much may be given up for speed; speed.py has what each does.
SpeedName = Literal["reference", "balanced", "fast", "draft"]
# Which kernel computes attention; attention.py has them.
AttentionName = Literal["auto", "sdpa", "cudnn", "flash", "xformers", "sage"]
# What the VAE computes in; what auto is stands in speed.py.
VAEPrecision = Literal["auto", "fp32", "fp16"]
# How latents get from one noise level to the next; samplers.py has them, under ComfyUI's names. `auto` is what the
# LoRA was published with, else UniPC.
SamplerName = Literal["auto", "uni_pc", "euler", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "res_multistep"]
# Which noise levels there are; schedule.py has them. `auto` is the sampler's own: evenly spaced ones, shifted.
SchedulerName = Literal["auto", "simple", "causvid", "distill", "beta"]
SPEEDS: tuple[SpeedName, ...] = get_args(SpeedName)
ATTENTIONS: tuple[AttentionName, ...] = get_args(AttentionName)
VAE_PRECISIONS: tuple[VAEPrecision, ...] = get_args(VAEPrecision)
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
REFERENCE: SpeedName = "reference"
AUTO_ATTENTION: AttentionName = "auto"
SDPA: AttentionName = "sdpa"
AUTO_VAE: VAEPrecision = "auto"
MAX_STEP_CACHE = 1.0
MAX_CFG = 30.0
ALL_STEPS = 10000  # as end_at_step: the last one, as in ComfyUI's KSamplerAdvanced

# The negative prompt published with Wan2.1 (wan/configs/shared_config.py, sample_neg_prompt).
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def _plain_guidance() -> Guidance:
    from .guidance import PLAIN

    return PLAIN


def _plain_context() -> Context:
    from .context import PLAIN

    return PLAIN


@dataclass(frozen=True)
class WanRequest:
    """One video to make.

    Attributes:
        prompt: what the video shows, in Chinese or English.
        negative_prompt: what to steer away from; used when `cfg` > 1, and by NAG.
        width, height: pixels, multiples of 16.
        num_frames: 4n+1.
        steps: denoising steps.
        cfg: classifier-free guidance scale; 1 turns guidance off and halves the work.
        shift: timestep shift of the flow-matching schedule; higher spends more steps on layout.
        seed: 0 … 2**64-1.
        cfg_start, cfg_end: shares of the steps between which guidance is on, 0..1; outside of them a step
            follows the prompt alone and takes half the time.
        step_cache: relative change below which a step is forecast from those before (see `step_cache.StepCache`); 0
            computes every step.
        speed: one of `SPEEDS`, a set of such settings on top of those made by hand.
        attention: one of `ATTENTIONS`; `auto` is torch's own where `speed` is reference.
        compile_blocks: have `torch.compile` make code for the transformer's blocks, on a card that holds them all.
        batch_cfg: have each step predict for both prompts in one batch, where memory allows.
        vae_precision: one of `VAE_PRECISIONS`; `auto` is fp32 where `speed` is reference and on a CPU, else fp16.
        sampler: one of `SAMPLERS`.
        scheduler: one of `SCHEDULERS`; causvid and distill have a number of steps of their own.
        sigmas: the noise levels of the steps by hand, as a text (see `schedule.parse_sigmas`); "" for the scheduler's.
        boundary: of a model of two experts, the share of all noise down to which the first one denoises, 0..1; 0 takes
            the model's own.
        cfg_2: the guidance scale of the second expert; 0 takes `cfg`.
        guidance: how steps are guided beside `cfg`.
        context: how a video longer than the model was trained on is parted while it is sampled.
        start_at_step, end_at_step: the first step taken, from 0, and the one behind the last, of `steps`.
        earlier_prompt: a prompt whose embedding is mixed with that of `prompt`, where one turns into the other.
        earlier_share: its share, 0..1.
    """

    prompt: str
    negative_prompt: str = NEGATIVE_PROMPT
    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    num_frames: int = DEFAULT_FRAMES
    steps: int = DEFAULT_STEPS
    cfg: float = DEFAULT_CFG
    shift: float = DEFAULT_SHIFT
    seed: int = DEFAULT_SEED
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    step_cache: float = 0.0
    speed: SpeedName = REFERENCE
    attention: AttentionName = AUTO_ATTENTION
    compile_blocks: bool = False
    batch_cfg: bool = False
    vae_precision: VAEPrecision = AUTO_VAE
    sampler: SamplerName = "auto"
    scheduler: SchedulerName = "auto"
    sigmas: str = ""
    boundary: float = 0.0
    cfg_2: float = 0.0
    guidance: Guidance = field(default_factory=_plain_guidance)
    context: Context = field(default_factory=_plain_context)
    start_at_step: int = 0
    end_at_step: int = ALL_STEPS
    earlier_prompt: str = ""
    earlier_share: float = 0.0

    def cfg_at(self, step: int, steps: int) -> float:
        """Return the guidance scale of step `step` (from 0) of `steps`: `cfg` in [start, end), 1 outside."""
        return self.guidance.cfg_at(step, self.cfg) if self.cfg_start <= step / steps < self.cfg_end else 1.0

    @property
    def taken(self) -> range:
        """The steps that are taken, from 0, of `steps`."""
        return range(self.start_at_step, min(self.end_at_step, self.steps))

    @property
    def is_partial(self) -> bool:
        """Whether some steps are left to another sampler."""
        return len(self.taken) < self.steps

    @property
    def largest_cfg(self) -> float:
        """The largest guidance scale of any step."""
        return max(self.guidance.cfg_steps, default=self.cfg)

    @property
    def reads_negative(self) -> bool:
        """Whether the negative prompt has an effect."""
        return self.largest_cfg > 1 or self.guidance.has_nag

    def of_second_expert(self) -> WanRequest:
        """Return the request as the second of two experts sees it."""
        return replace(self, cfg=self.cfg_2 or self.cfg)


def check_side(name: str, value: int) -> None:
    """Accept a multiple of 16 between 16 and 2048.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    check_multiple(name, value, "Wan VACE", low=MIN_SIDE, high=MAX_SIDE)


def check_num_frames(value: int, model: str = "Wan VACE") -> None:
    """Accept 4n+1 frames between 1 and 241 for a model of that title.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    if value % FRAME_STEP != 1 or not MIN_FRAMES <= value <= MAX_FRAMES:
        nearest = nearest_multiples(value, FRAME_STEP, MIN_FRAMES, MAX_FRAMES, offset=1)
        longer = " Longer ones are made by VACE Long Video." if value > MAX_FRAMES and model == "Wan VACE" else ""
        raise PiyingError(
            f"num_frames is {value}. {model} takes 4n+1 frames from {MIN_FRAMES} to {MAX_FRAMES} "
            f"(5, 9, … 81): use {either(nearest)}.{longer}"
        )


def check_request(request: WanRequest) -> None:
    """Accept a request whose values the model can use without changes.

    Raises:
        PiyingError: a size or length is off; the nearest good ones are named.
    """
    check_side("width", request.width)
    check_side("height", request.height)
    check_num_frames(request.num_frames)
    check_speed_settings(request)


def check_speed_settings(request: WanRequest) -> None:
    """Accept the settings for speed.

    Raises:
        PiyingError: a range of steps is empty, or a value is outside of its own range.
    """
    start, end = request.cfg_start, request.cfg_end
    if not 0 <= start < end <= 1:
        raise PiyingError(
            f"cfg_start is {start:g} and cfg_end {end:g}. Choose a start below the end, both from 0 to 1; for no "
            "guidance at all set cfg to 1."
        )
    if not 0 <= request.step_cache <= MAX_STEP_CACHE:
        raise PiyingError(f"step_cache is {request.step_cache:g}. It goes from 0 (off) to {MAX_STEP_CACHE:g}.")
    if not 0 <= request.boundary <= 1:
        raise PiyingError(f"boundary is {request.boundary:g}. It goes from 0 (the model's own) to 1.")
    if request.cfg_2 and not 1 <= request.cfg_2 <= MAX_CFG:
        raise PiyingError(f"cfg_2 is {request.cfg_2:g}. It is 0 (as cfg), or goes from 1 to {MAX_CFG:g}.")
    if request.speed not in SPEEDS:
        raise PiyingError(f"speed is {request.speed!r}. Choose one of: {', '.join(SPEEDS)}.")
    if request.attention not in ATTENTIONS:
        raise PiyingError(f"attention is {request.attention!r}. Choose one of: {', '.join(ATTENTIONS)}.")
    if request.vae_precision not in VAE_PRECISIONS:
        raise PiyingError(f"vae_precision is {request.vae_precision!r}. Choose one of: {', '.join(VAE_PRECISIONS)}.")
    if request.cfg_2 and request.guidance.cfg_steps:
        raise PiyingError(
            "cfg_2 is set, and cfg_steps gives the cfg of each step. Set cfg_2 to 0, or empty cfg_steps."
        )
    if request.sampler not in SAMPLERS:
        raise PiyingError(f"sampler is {request.sampler!r}. Choose one of: {', '.join(SAMPLERS)}.")
