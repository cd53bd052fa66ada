"""What a video costs: the phases of a run, their arithmetic and their memory.

Peaks come from live tensors of the real configurations on torch's meta device, attention counted by
its output alone (tests/core/test_plan_peaks.py runs them again).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..families.base import SECOND_EXPERT
from ..image_sizes import MULTIPLE
from ..parallel.cards import ONE_CARD, Cards, CardSplit
from ..parallel.ways import Split, attention_bytes, exchange, share_divides, share_of, splits_of
from ..planner.machine import Machine
from ..planner.phases import Block, Component, Phase, Variant, encoding, every_storage
from ..planner.plan import largest, plan
from ..planner.plan_types import PhaseName, Storage, VariantName
from ..quantization.registry import weight_format
from .context import LOOP_LEAD, Context
from .context import PLAIN as WHOLE
from .experts import DEFAULT_BOUNDARY, EXPERT_PHASES, high_steps, planned_timesteps, shared_steps
from .latents import CHANNELS, FRAME_STEP, STRIDE, TI2V_CHANNELS, TI2V_STRIDE, latent_frames
from .request import (
    DEFAULT_CFG,
    DEFAULT_SHIFT,
    DEFAULT_STEPS,
    MIN_FRAMES,
    WanRequest,
    check_speed_settings,
)
from .schedule import sigmas
from .speed import FP32_FIRST, VAETypes, vae_types, with_speed

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle
    from ..families.base import ModelFamily

Work = TypeVar("Work", bound="VideoWork")

BATCHED: VariantName = "batched"  # the name of a way of sampling: both prompts in one batch
TEXT_TOKENS = 512
HEAD = 128  # width of an attention head; rotary embeddings are two fp32 tables of it
CONTROL_CHANNELS = 96
# fp32 copies of the latents during a prediction: latents, their 16-bit twin, and what UniPC keeps of steps before.
LATENT_COPIES = 6


@dataclass(frozen=True)
class VAECost:
    """What half of a VAE costs, per pixel.

    Attributes:
        bytes, fixed: of a pass over one latent frame, as a share that scales with the number type and one that does
            not.
        flops: for the first latent frame, and for each further one.
        side: of a tile, in pixels of the video.
    """

    bytes: float
    fixed: float
    flops: tuple[float, float]
    side: int


# TAEHV by stride, per pixel: bytes in 16 bits, and operations for a latent frame. It has no tiles, and needs none.
FAST_COSTS: Mapping[int, tuple[float, float]] = {STRIDE: (1062, 1.363e6), TI2V_STRIDE: (282, 0.3516e6)}
FAST_PARAMETERS = 9_900_000
FAST_PREVIEWS = "TAEHV makes the previews."
VAE_CHANNELS = {STRIDE: 96, TI2V_STRIDE: 256}  # of the decoder at full size, by stride: the costs are of VAEs so wide
# By stride, decoding and encoding (`condition`). Wan2.2's VAE, of stride 16, folds 2×2 pixels into channels, and tiles
# what is folded: those it encodes are twice as wide.
VAE_COSTS: Mapping[tuple[int, str], VAECost] = {
    (STRIDE, "decode"): VAECost(9363, 785, (10.8e6, 33.8e6), 256),
    (STRIDE, "condition"): VAECost(6650, 785, (6.7e6, 20.0e6), 256),
    (TI2V_STRIDE, "decode"): VAECost(10773, 0, (22.8e6, 73.6e6), 256),
    (TI2V_STRIDE, "condition"): VAECost(3532, 315, (4.65e6, 14.0e6), 512),
}
TILE, TILE_STRIDE = 256, 192  # diffusers' AutoencoderKLWan
BYTES_PER_PIXEL = 12  # of a frame: three float32
REMEMBERED = 0.125  # activations a branch: every eighth token's first change (StepCache)
REMEMBERED_PREDICTIONS = 2  # of each branch (StepCache)
SWITCH = "It takes the place of the other one once: they are not on the card together."
GATHERED = 3  # activations of all tokens: keys, and values in parts and joined
ATTENDING = 5  # activations that attention holds beside them
EMBEDDED = 2  # and of them as they are embedded, with VACE one more
CONDITION_COPIES = 5  # frames, video, its two parts and the mask, in main memory


class FastDecoding(NamedTuple):
    """What TAEHV decodes, as a plan has to know: the frames, and the previews of the steps."""

    result: bool = False
    previews: bool = False


NO_FAST_DECODING = FastDecoding()


def fast_decoding(handle: ModelHandle) -> FastDecoding:
    """Return what a handle has decoded by TAEHV."""
    return FastDecoding(bool(handle.decoder), bool(handle.preview_decoder))


@dataclass(frozen=True)
class VideoWork:
    """What the planner must know of a video.

    Attributes:
        width, height: pixels.
        num_frames: 4n+1.
        references: pictures of what is to appear; each is one more latent frame.
        cfg: above 1 each step predicts twice, in one pass over the weights.
        steps: denoising steps.
        taken: those of them that are taken; None for all.
        has_nag: whether blocks read the negative prompt too (`nag`), at cfg 1 as well.
        skips_blocks: whether steps predict once more without some blocks (`guidance.Guidance`).
        has_task: whether there is a video to follow or keep; its two parts are then encoded one by one.
        step_cache: whether a StepCache looks at the steps.
        batch_cfg: whether both prompts may go through a block in one batch, where that fits.
        vae: the number types the VAE may compute in.
        shift: of the noise schedule, which with the boundary divides the steps between two experts.
        levels: its noise levels, where they are not those of UniPC.
        boundary: see `WanRequest`; 0 for that of most models.
        cfg_2: of the second expert; 0 for `cfg`.
        high_steps: how many steps the first of two experts has; None to have it worked out.
        stride: pixels of a latent pixel; 16 of Wan2.2-TI2V's VAE, which folds 2×2 pixels into channels first.
        has_vace: whether the transformer has VACE blocks.
        token_times: whether each token has a timestep of its own, as in Wan2.2-TI2V.
        context: how it is parted while it is sampled.
        fast: what TAEHV decodes.
        split: how its predictions are shared between cards.
        notes: sentences on how it samples, for the plan's text.
    """

    width: int
    height: int
    num_frames: int
    _: KW_ONLY
    references: int = 0
    cfg: float = DEFAULT_CFG
    steps: int = DEFAULT_STEPS
    taken: range | None = None
    has_nag: bool = False
    skips_blocks: bool = False
    has_task: bool = True
    step_cache: bool = False
    batch_cfg: bool = False
    vae: VAETypes = FP32_FIRST
    shift: float = DEFAULT_SHIFT
    levels: tuple[float, ...] | None = None
    boundary: float = 0.0
    cfg_2: float = 0.0
    high_steps: int | None = None
    stride: int = STRIDE
    has_vace: bool = True
    token_times: bool = False
    context: Context = WHOLE
    fast: FastDecoding = NO_FAST_DECODING
    split: CardSplit = ONE_CARD
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls: type[Work],
        request: WanRequest,
        references: int = 0,
        has_task: bool = True,
        *,
        notes: tuple[str, ...] = (),
        high_steps: int | None = None,
        fast: FastDecoding = NO_FAST_DECODING,
    ) -> Work:
        """Return the work of a request as the user made it; what its `speed` stands for is applied here.

        Raises:
            PiyingError: a setting for speed is out of range.
        """
        check_speed_settings(request)
        request = with_speed(request)
        of_context = request.context.notes(latent_frames(request.num_frames))
        return cls(
            request.width,
            request.height,
            request.num_frames,
            references=references,
            cfg=request.largest_cfg,
            has_nag=request.guidance.has_nag,
            skips_blocks=request.guidance.skips_blocks,
            steps=request.steps,
            taken=request.taken,
            has_task=has_task,
            step_cache=request.step_cache > 0,
            batch_cfg=request.batch_cfg,
            vae=vae_types(request.vae_precision, request.speed),
            shift=request.shift,
            levels=sigmas(request),
            boundary=request.boundary,
            cfg_2=request.cfg_2,
            high_steps=high_steps,
            context=request.context,
            fast=fast,
            notes=(*notes, *request.guidance.notes(request.steps, request.cfg), *of_context),
        )


def phases(components: Mapping[str, Component], work: VideoWork) -> tuple[Phase, ...]:
    """Return the phases of a run.

    Args:
        components: `transformer`, `text_encoder` and `vae`, and `transformer_2` of a model of two experts.
    """
    samples = samplers(components, work)
    return (
        encode_phase(components["text_encoder"], samples, work),
        vae_phase("condition", components["vae"], work, passes=2 if work.has_task else 1),
        *(sample_phase(transformer, of_one) for transformer, of_one in samples),
        decode_phase(components["vae"], work),
    )


def samplers(components: Mapping[str, Component], work: VideoWork) -> list[tuple[Component, VideoWork]]:
    """Return the transformer with the work, or each of two experts that has a step, with its share of it."""
    if SECOND_EXPERT in components:
        return _experts(components, work)
    if work.taken is None or len(work.taken) == work.steps:
        return [(components["transformer"], work)]
    note = f"It takes {_steps_text(work.taken)} of {work.steps}."
    return [(components["transformer"], replace(work, steps=len(work.taken), notes=(*work.notes, note)))]


def _steps_text(taken: range) -> str:
    return f"step {taken.stop}" if len(taken) == 1 else f"steps {taken.start + 1} to {taken.stop}"


def _experts(components: Mapping[str, Component], work: VideoWork) -> list[tuple[Component, VideoWork]]:
    boundary, high = work.boundary or DEFAULT_BOUNDARY, work.high_steps
    if high is None:
        high = high_steps(planned_timesteps(work.steps, work.shift, work.levels), boundary)
    taken = range(work.steps) if work.taken is None else work.taken
    shares = zip((work.cfg, work.cfg_2 or work.cfg), shared_steps(taken, high), strict=True)
    found: list[tuple[Component, VideoWork]] = []
    for (_, part, title), (cfg, own) in zip(EXPERT_PHASES, shares, strict=True):
        if own:
            notes = [*work.notes, f"The {title} takes {_steps_text(own)} of {work.steps}."]
            notes += [SWITCH] if found else []
            found.append((components[part], replace(work, cfg=cfg, steps=len(own), notes=tuple(notes))))
    return found


def encode_phase(encoder: Component, samples: Sequence[tuple[Component, VideoWork]], work: VideoWork) -> Phase:
    """Return the phase of the prompts.

    Args:
        samples: of `samplers`, any of which may be guided.
    """
    guided = max((of_one.cfg for _, of_one in samples), default=work.cfg)
    flops, variant = encoding(encoder, TEXT_TOKENS)
    return Phase(
        name="encode",
        component=encoder,
        computes=("bf16",),
        storages=storages_of(encoder),
        flops=flops,
        linear_share=0.0,
        passes=2 if guided > 1 or work.has_nag else 1,
        variants=(variant,),
        streamable=True,
        movable=True,
        cast_last_resort=True,
        host=frame_bytes(work),
    )


def sample_phase(transformer: Component, work: VideoWork) -> Phase:
    """Return the phase of the transformer, or of one of two experts."""
    branches, side = branches_of(work), 2 * work.stride
    frames = latent_frames(work.num_frames)
    a_frame, windows = (work.width // side) * (work.height // side), work.context.windows(frames, 0)
    # Of the windows of a step one is on the card at a time.
    tokens = (len(windows[0]) + work.references) * a_frame
    linear, attention = flops_per_token(transformer, tokens)
    # Of all predictions but that of the negative prompt.
    guided = 1 + work.skips_blocks if work.has_nag else 0
    each = branches * (linear + attention) + guided * nag_flops_per_token(transformer)
    on_a_card = share_of(work.split, branches, tokens)
    # One batch takes the same blocks for all of it; what several cards have the prompts of is no batch.
    together = work.batch_cfg and on_a_card.branches > 1 and work.split.way != "prompts"
    batched = (True, False) if together and not work.skips_blocks else (False,)
    inside = inside_a_block(transformer, has_vace=work.has_vace, token_times=work.token_times)
    # What rounding the widest layer's input by way of fp32 adds to the peak, in activations.
    rounded = 3 + 3.5 * transformer.inner / max(1, transformer.hidden) - inside
    return Phase(
        name=next(name for name, part, _ in EXPERT_PHASES if part == transformer.name),
        component=transformer,
        computes=("fp16", "bf16") if transformer.stored == "fp16" else ("bf16",),
        storages=storages_of(transformer),
        flops=len(windows) * tokens * each * on_a_card.arithmetic,
        split=work.split,
        exchange=len(windows) * _exchange(transformer, tokens, branches, work),
        linear_share=branches * linear / each,
        passes=work.steps,
        variants=tuple(
            with_previews(
                sampling_memory(
                    transformer,
                    tokens,
                    on_a_card.branches,
                    share=on_a_card.tokens,
                    gathers=work.split.way == "sequence" and not heads_divide(transformer, work.split.count),
                    step_cache=work.step_cache,
                    batched=way,
                    has_vace=work.has_vace,
                    token_times=work.token_times,
                    channels=_channels(work.stride),
                ),
                work,
            )
            for way in batched
        ),
        streamable=True,
        host=2 * frame_bytes(work),
        rounded_inputs=int(2 * on_a_card.tokens * transformer.hidden * max(0.0, rounded)),
        notes=(*work.notes, *([FAST_PREVIEWS] if work.fast.previews else [])),
    )


def with_previews(sampling: Variant, work: VideoWork) -> Variant:
    """Return what sampling holds with TAEHV on the device, which decodes between two predictions."""
    if not work.fast.previews:
        return sampling
    activations = int(FAST_COSTS[work.stride][0] * work.width * work.height)
    return replace(
        sampling,
        activations=max(sampling.activations, activations) + 2 * FAST_PARAMETERS,
        fixed=sampling.fixed + fast_latents(work),
    )


def fast_latents(work: VideoWork) -> int:
    """Return the bytes of the latents that TAEHV is given, in fp32."""
    return _channels(work.stride) * 4 * work.width * work.height // work.stride**2 * latent_frames(work.num_frames)


def heads_divide(transformer: Component, count: int) -> bool:
    """Return whether so many cards have equally many heads each."""
    return share_divides(transformer.hidden // HEAD, count)


def _exchange(transformer: Component, tokens: int, branches: int, work: VideoWork) -> float:
    """Return the seconds in which a card waits for what it sends, or receives, in a step."""
    latents = 2 * 4 * tokens * _channels(work.stride)
    attention = attention_bytes(transformer, work.split.count, tokens, transformer.hidden // HEAD)
    return exchange(work.split, branches, given=latents, made=latents, attention=attention)


def splits(
    family: ModelFamily, components: Mapping[str, Component], work: VideoWork, *, cards: Cards, machine: Machine
) -> tuple[Split, ...]:
    """Return the ways to share a video's predictions between cards, that without sharing first."""
    most = max(branches_of(of_one) for _, of_one in samplers(components, work))
    return splits_of(work, most, cards, machine, phases=lambda shared: family.phases(components, shared))


def _channels(stride: int) -> int:
    """Return the channels of latents: Wan2.2-TI2V's have three times as many for four times as many pixels."""
    return CHANNELS if stride == STRIDE else TI2V_CHANNELS


def branches_of(work: VideoWork) -> int:
    """Return how many predictions a step makes at most."""
    return (2 if work.cfg > 1 else 1) + work.skips_blocks


def frame_bytes(work: VideoWork) -> int:
    """Return the bytes of the frames in main memory."""
    return BYTES_PER_PIXEL * work.width * work.height * work.num_frames


def storages_of(component: Component) -> tuple[Storage, ...]:
    """Return what a component's weights may be stored in."""
    stored = weight_format(component.stored)
    return (component.stored,) if stored is not None and stored.can_cast else every_storage(component)


def flops_per_token(transformer: Component, tokens: int) -> tuple[float, float]:
    """Return the operations per token of one prediction: in Linear layers, and in attention.

    A block has six products of hidden × hidden (self-attention and half of cross-attention) and two of
    hidden × inner. For 14B at 480p × 81 this gives the 2,014 TFLOP of the published counts.
    """
    hidden, inner, blocks = transformer.hidden, transformer.inner, len(transformer.blocks)
    return blocks * 2.0 * (6 * hidden**2 + 2 * hidden * inner), blocks * 4.0 * (tokens + TEXT_TOKENS) * hidden


def nag_flops_per_token(transformer: Component) -> float:
    """Return the operations per token of a second cross-attention in each block, which NAG adds to one prediction."""
    return len(transformer.blocks) * 4.0 * TEXT_TOKENS * transformer.hidden


def sampling_memory(
    transformer: Component,
    tokens: int,
    branches: int,
    *,
    step_cache: bool = False,
    batched: bool = False,
    has_vace: bool = True,
    token_times: bool = False,
    channels: int = CHANNELS,
    share: int = 0,
    gathers: bool = False,
) -> Variant:
    """Return what a prediction holds beside the weights, VACE hints interleaved.

    In units of one activation (tokens × hidden). Outside of the block are the first branch's tokens, control and
    result, and two units for each further branch; without VACE one each. What a StepCache keeps of each comes on
    top. In one batch every branch is inside at once.

    Args:
        tokens: of the video.
        branches: predictions of a step.
        channels: of the latents.
        share: of the tokens, those that this card has between the blocks; 0 for all.
        gathers: whether it has the keys and values of all tokens in attention.
    """
    whole, unit = 2 * tokens * transformer.hidden, 2 * (share or tokens) * transformer.hidden
    inside = inside_a_block(transformer, has_vace=has_vace, token_times=token_times)
    own, further = (3, 2) if has_vace else (1, 1)
    # The timesteps of tokens: for the blocks, and for the output head.
    own, further = (own + 7, further + 7) if token_times else (own, further)
    held = branches * (inside + own) if batched else inside + own + further * (branches - 1)
    held += REMEMBERED * branches if step_cache else 0
    pixels, given = 4 * tokens, CONTROL_CHANNELS if has_vace else channels + 4  # a token covers 2 × 2 of the latents
    latents = pixels * (LATENT_COPIES * channels * 4 + given * 2)
    if step_cache:
        latents += branches * REMEMBERED_PREDICTIONS * pixels * channels * 2
    if batched:
        latents += branches * pixels * (channels + given) * 2
    rotary = (share or tokens) * HEAD * 2 * 4
    words = "" if batched else "one prompt after the other"
    # All tokens are embedded before they are shared, and what is gathered is there in parts and joined.
    embedded = whole * (EMBEDDED + has_vace) * (branches if batched else 1) + 7 * whole * branches * token_times
    # The keys and values are there beside what attention holds of its own.
    gathered = GATHERED * whole * (branches if batched else 1) + unit * (held - inside + ATTENDING) if gathers else 0
    activations = max(unit * held, gathered, embedded if unit < whole else 0)
    return Variant(BATCHED if batched else "whole", int(activations), fixed=latents + rotary, words=words)


def inside_a_block(transformer: Component, *, has_vace: bool = True, token_times: bool = False) -> float:
    """Return what the busiest moment inside a block holds, in activations.

    That is its feed-forward (3 units and twice the inner width), or a norm in fp32: of the first VACE block (11), or
    without VACE of any block (10). Timesteps of tokens are brought to fp32 for all six places of a block.
    """
    wide = 3 + 2 * transformer.inner / max(1, transformer.hidden)
    return max(wide, 11 if has_vace else 10) + (12 if token_times else 0)


def vae_phase(name: PhaseName, vae: Component, work: VideoWork, passes: int) -> Phase:
    """Return a phase of the VAE: encoding (`condition`) or decoding."""
    first, further = VAE_COSTS[work.stride, name].flops
    wide = vae.hidden / VAE_CHANNELS[work.stride]
    return Phase(
        name=name,
        component=vae,
        computes=work.vae.computes,
        on_cpu=work.vae.on_cpu,
        why=work.vae.why,
        storages=("fp32",),
        flops=wide**2 * work.width * work.height * (first + further * (latent_frames(work.num_frames) - 1)),
        linear_share=0.0,
        passes=passes,
        variants=vae_memory(
            name, vae, width=work.width, height=work.height, num_frames=work.num_frames, stride=work.stride
        ),
        streamable=False,
        convolutional=True,
        movable=True,
        host=frame_bytes(work) * (2 if name == "decode" else CONDITION_COPIES),
    )


def decode_phase(vae: Component, work: VideoWork) -> Phase:
    """Return the phase that makes frames of latents."""
    if work.context.loop:
        work = replace(work, num_frames=work.num_frames + FRAME_STEP * LOOP_LEAD)
    return fast_decode_phase(work) if work.fast.result else vae_phase("decode", vae, work, passes=1)


def fast_decode_phase(work: VideoWork) -> Phase:
    """Return the phase of TAEHV, which makes one frame after the other."""
    pixels, latents = work.width * work.height, latent_frames(work.num_frames)
    each, flops = FAST_COSTS[work.stride]
    return Phase(
        name="decode",
        component=Component("taehv", Block(0, FAST_PARAMETERS), (), "fp32"),
        computes=work.vae.computes,
        on_cpu=work.vae.on_cpu,
        storages=("fp32",),
        flops=flops * pixels * latents,
        linear_share=0.0,
        passes=1,
        variants=(Variant("whole", int(each * pixels), 1.0, fast_latents(work)),),
        streamable=False,
        convolutional=True,
        movable=True,
        host=2 * frame_bytes(work),
        notes=("TAEHV decodes in place of the VAE: a twentieth of the work for less detail.",),
    )


def vae_memory(
    name: str, vae: Component, *, width: int, height: int, num_frames: int, stride: int = STRIDE
) -> tuple[Variant, ...]:
    """Return what encoding (`condition`) or decoding holds on the device, whole and in tiles.

    Decoded frames leave the device latent frame by latent frame; a video to encode is there whole.
    """
    cost, wide = VAE_COSTS[stride, name], vae.hidden / VAE_CHANNELS[stride]
    pixels, tile = width * height, min(width, cost.side) * min(height, cost.side)
    each, fixed = cost.bytes * wide, cost.fixed * wide
    video = 0 if name == "decode" else BYTES_PER_PIXEL // 2 * pixels * num_frames
    latents = 2 * _channels(stride) * 4 * pixels // stride**2 * latent_frames(num_frames)
    whole = Variant("whole", int(each * pixels) + video, 1.0, int(fixed * pixels) + latents)
    if tile == pixels:
        return (whole,)
    again = tiled_length(width, cost.side) * tiled_length(height, cost.side) / pixels
    return whole, Variant("tiled", int(each * tile) + video, again, int(fixed * tile) + latents, words="in pieces")


def tiled_length(length: int, side: int = TILE) -> int:
    """Return how many pixels the tiles of a side cover together, overlaps counted twice."""
    return sum(min(side, length - start) for start in range(0, length, side * TILE_STRIDE // TILE))


def fitting(
    components: Mapping[str, Component],
    machine: Machine,
    handle: ModelHandle,
    work: VideoWork,
) -> list[VideoWork]:
    """Return the longest video of this size and the largest of this length that fit, where any do."""
    width, height, multiple = work.width, work.height, MULTIPLE * work.stride // STRIDE

    def fits(smaller: VideoWork) -> bool:
        made = plan(
            handle.family.phases(components, smaller), machine, precision=handle.precision, memory=handle.memory
        )
        return made.fits

    def scaled(units: int) -> VideoWork:
        """Return a video of the same shape whose shorter side is `units` times what sides are multiples of."""
        short = units * multiple
        long = max(1, round(short * max(width, height) / min(width, height) / multiple)) * multiple
        size = (long, short) if width >= height else (short, long)
        return replace(work, width=size[0], height=size[1])

    frames = largest(lambda count: fits(replace(work, num_frames=count)), MIN_FRAMES, work.num_frames, FRAME_STEP)
    units = largest(lambda count: fits(scaled(count)), 1, min(width, height) // multiple, 1)
    found = [replace(work, num_frames=frames)] if frames else []
    return [*found, scaled(units)] if units else found


def what_fits(found: Sequence[VideoWork], work: VideoWork) -> str:
    """Return a sentence on what `fitting` has found in place of `work`."""
    if not found:
        return "No size or length fits. Choose a smaller model, or one whose files are in FP8."
    words = (
        f"num_frames {one.num_frames} at {one.width}×{one.height}"
        if one.num_frames < work.num_frames
        else f"{one.width}×{one.height} with num_frames {one.num_frames}"
        for one in found
    )
    return f"What would fit: {', or '.join(words)}."
