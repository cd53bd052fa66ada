"""What a video costs: the phases of a run, their arithmetic and their memory.

Peaks come from live tensors of the real configurations on torch's meta device, attention counted by
its output alone (tests/core/test_plan_peaks.py runs them again).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..planner.phases import Component, Phase, Variant, encoding
from .speed import EXACT, VAETypes

BLOCK_LISTS = {"text_encoder": ("encoder.block",), "transformer": ("blocks", "vace_blocks"), "vae": ()}
# The VACE blocks' projections in and out are among the most sensitive to rounding; an embedding is no Linear layer.
FP8_KEEP = {
    "text_encoder": ("*.relative_attention_bias",),
    "transformer": ("vace_blocks.*.proj_in", "vace_blocks.*.proj_out"),
    "vae": (),
}

BATCHED = "batched"  # the name of a way of sampling: both prompts in one batch
TEXT_TOKENS = 512
HEAD = 128  # width of an attention head; rotary embeddings are two fp32 tables of it
LATENT_CHANNELS, CONTROL_CHANNELS = 16, 96
# fp32 copies of the latents during a prediction: latents, their 16-bit twin, and what UniPC keeps of steps before.
LATENT_COPIES = 6

# The VAE, per pixel: bytes of a pass over one latent frame as a share that scales with the number type and one
# that does not, and operations for the first latent frame and for each further one, at 96 channels.
VAE_CHANNELS = 96
DECODE_BYTES, ENCODE_BYTES, VAE_FIXED_BYTES = 9363, 6650, 785
DECODE_FLOPS, ENCODE_FLOPS = (10.8e6, 33.8e6), (6.7e6, 20.0e6)
TILE, TILE_STRIDE = 256, 192  # diffusers' AutoencoderKLWan
FRAME_BYTES = 12  # a pixel of a frame: three float32
REMEMBERED = 0.125  # activations a branch: every eighth token's first change (StepCache)
CONDITION_COPIES = 5  # frames, video, its two parts and the mask, in main memory


def latent_frames(num_frames: int) -> int:
    """Return the latent frames of 4n+1 frames."""
    return 1 + (num_frames - 1) // 4


def work(
    components: Mapping[str, Component],
    width: int,
    height: int,
    num_frames: int,
    references: int = 0,
    cfg: float = 5.0,
    steps: int = 50,
    task: bool = True,
    step_cache: bool = False,
    batch_cfg: bool = False,
    notes: tuple[str, ...] = (),
    vae: VAETypes = EXACT,
) -> tuple[Phase, ...]:
    """Return the phases of a run.

    Args:
        components: `transformer`, `text_encoder` and `vae`.
        width, height: pixels.
        num_frames: 4n+1.
        references: pictures of what is to appear; each is one more latent frame.
        cfg: above 1 each step predicts twice, in one pass over the weights.
        steps: denoising steps.
        task: whether there is a video to follow or keep; its two parts are then encoded one by one.
        step_cache: whether a StepCache looks at the steps.
        batch_cfg: whether both prompts may go through a block in one batch, where that fits.
        notes: sentences on how it samples, for the plan's text.
        vae: the number types it may compute in.
    """
    branches = 2 if cfg > 1 else 1
    tokens = (latent_frames(num_frames) + references) * (width // 16) * (height // 16)
    frames = FRAME_BYTES * width * height * num_frames
    ways = (True, False) if batch_cfg and branches > 1 else (False,)
    variants = tuple(sampling_memory(components["transformer"], tokens, branches, step_cache, way) for way in ways)
    shape = (components["vae"], vae, width, height, num_frames)
    return (
        _encode(components["text_encoder"], branches, frames),
        _vae_phase("condition", *shape, 2 if task else 1),
        replace(_sample(components["transformer"], variants, tokens, branches, steps, frames), notes=notes),
        _vae_phase("decode", *shape, 1),
    )


def _encode(encoder: Component, prompts: int, frames: int) -> Phase:
    flops, variant = encoding(encoder, TEXT_TOKENS)
    return Phase(
        name="encode",
        component=encoder,
        computes=("bf16",),
        storages=_storages(encoder),
        flops=flops,
        linear_share=0.0,
        passes=prompts,
        variants=(variant,),
        streamable=True,
        patient=True,
        host=frames,
    )


def _sample(
    transformer: Component, variants: tuple[Variant, ...], tokens: int, branches: int, steps: int, frames: int
) -> Phase:
    linear, attention = flops_per_token(transformer, tokens)
    return Phase(
        name="sample",
        component=transformer,
        computes=("fp16", "bf16") if transformer.stored == "fp16" else ("bf16",),
        storages=_storages(transformer),
        flops=branches * tokens * (linear + attention),
        linear_share=linear / (linear + attention),
        passes=steps,
        variants=variants,
        streamable=True,
        host=2 * frames,
        fp8_inputs=_fp8_inputs(transformer, tokens),
    )


def _storages(component: Component) -> tuple[str, ...]:
    return ("fp8",) if component.stored == "fp8" else ("bf16", "fp8")


def flops_per_token(transformer: Component, tokens: int) -> tuple[float, float]:
    """Return the operations per token of one prediction: in Linear layers, and in attention.

    A block has six products of hidden × hidden (self-attention and half of cross-attention) and two of
    hidden × inner. For 14B at 480p × 81 this gives the 2,014 TFLOP of the published counts.
    """
    hidden, inner, blocks = transformer.hidden, transformer.inner, len(transformer.blocks)
    return blocks * 2.0 * (6 * hidden**2 + 2 * hidden * inner), blocks * 4.0 * (tokens + TEXT_TOKENS) * hidden


def sampling_memory(
    transformer: Component, tokens: int, branches: int, step_cache: bool = False, batched: bool = False
) -> Variant:
    """Return what a prediction holds beside the weights, VACE hints interleaved.

    In units of one activation (tokens × hidden): the busiest moment inside a block is its feed-forward
    (3 units and twice the inner width) or the norm in fp32 of the first VACE block (11). Outside are
    the first branch's tokens, control and result, and two units for each further branch. What a
    StepCache remembers of each comes on top. In one batch every branch is inside at once.
    """
    unit = 2 * tokens * transformer.hidden
    held = branches * (_inside(transformer) + 3) if batched else _inside(transformer) + 3 + 2 * (branches - 1)
    held += REMEMBERED * branches if step_cache else 0
    pixels = 4 * tokens  # of the latents; a token covers 2 × 2
    latents = pixels * (LATENT_COPIES * LATENT_CHANNELS * 4 + CONTROL_CHANNELS * 2)
    if batched:
        latents += branches * pixels * (LATENT_CHANNELS + CONTROL_CHANNELS) * 2
    rotary = tokens * HEAD * 2 * 4
    return Variant(BATCHED if batched else "whole", int(unit * held), fixed=latents + rotary)


def _inside(transformer: Component) -> float:
    return max(3 + 2 * transformer.inner / max(1, transformer.hidden), 11)


def _fp8_inputs(transformer: Component, tokens: int) -> int:
    """Return what bringing the widest layer's input to FP8 by way of fp32 adds to the peak."""
    ratio = transformer.inner / max(1, transformer.hidden)
    return int(2 * tokens * transformer.hidden * max(0.0, 3 + 5 * ratio - _inside(transformer)))


def _vae_phase(
    name: str, vae: Component, types: VAETypes, width: int, height: int, num_frames: int, passes: int
) -> Phase:
    first, further = DECODE_FLOPS if name == "decode" else ENCODE_FLOPS
    wide = vae.hidden / VAE_CHANNELS
    frames = FRAME_BYTES * width * height * num_frames
    return Phase(
        name=name,
        component=vae,
        computes=types.computes,
        on_cpu=types.on_cpu,
        why=types.why,
        storages=("fp32",),
        flops=wide**2 * width * height * (first + further * (latent_frames(num_frames) - 1)),
        linear_share=0.0,
        passes=passes,
        variants=vae_memory(name, vae, width, height, num_frames),
        streamable=False,
        host=frames * (2 if name == "decode" else CONDITION_COPIES),
    )


def vae_memory(name: str, vae: Component, width: int, height: int, num_frames: int) -> tuple[Variant, ...]:
    """Return what encoding (`condition`) or decoding holds on the device, whole and in tiles.

    Decoded frames leave the device latent frame by latent frame; a video to encode is there whole.
    """
    decode = name == "decode"
    pixels, tile = width * height, min(width, TILE) * min(height, TILE)
    wide = vae.hidden / VAE_CHANNELS
    each = (DECODE_BYTES if decode else ENCODE_BYTES) * wide
    fixed = VAE_FIXED_BYTES * wide
    video = 0 if decode else FRAME_BYTES // 2 * pixels * num_frames
    latents = 2 * LATENT_CHANNELS * 4 * pixels // 64 * latent_frames(num_frames)
    whole = Variant("whole", int(each * pixels) + video, 1.0, int(fixed * pixels) + latents)
    if tile == pixels:
        return (whole,)
    again = tiled_length(width) * tiled_length(height) / pixels
    return whole, Variant("tiled", int(each * tile) + video, again, int(fixed * tile) + latents)


def tiled_length(length: int) -> int:
    """Return how many pixels the tiles of a side cover together, overlaps counted twice."""
    return sum(min(TILE, length - start) for start in range(0, length, TILE_STRIDE))
