"""What an image costs: the phases of a run, their arithmetic and their memory.

Peaks come from live tensors of the real configurations on torch's meta device, attention counted by
its output alone (tests/core/test_plan_peaks.py runs them again).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..families.image_vae import vae_phase
from ..planner.machine import Machine
from ..planner.phases import Component, Phase, Variant, encoding, every_storage
from ..planner.plan import plan
from ..planner.plan_types import Compute, PhaseName
from .request import DEFAULT_CFG, DEFAULT_HEIGHT, DEFAULT_STEPS, DEFAULT_WIDTH, SIZES, ImageRequest

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle

BERT_TOKENS, T5_TOKENS = 77, 256
# The published type, and for weights that overflow in it one that takes the same memory and does not.
COMPUTES: tuple[Compute, ...] = ("fp16", "bf16")
# In units of one activation (both branches' tokens × hidden): what a block holds beside twice its inner width and
# the skips that its first half leaves for the second.
INSIDE = 7.3


@dataclass(frozen=True)
class ImageWork:
    """What the planner must know of an image.

    Attributes:
        width, height: pixels.
        cfg: above 1 each step predicts twice, in one batch.
        steps: denoising steps.
    """

    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    cfg: float = DEFAULT_CFG
    steps: int = DEFAULT_STEPS

    @classmethod
    def of(cls, request: ImageRequest) -> ImageWork:
        """Return the work of a request."""
        return cls(request.width, request.height, request.cfg, request.steps)


def phases(components: Mapping[str, Component], work: ImageWork) -> tuple[Phase, ...]:
    """Return the phases of a run.

    Args:
        components: `text_encoder`, `text_encoder_2`, `transformer` and `vae`.
    """
    branches = 2 if work.cfg > 1 else 1
    return (
        _encode("encode", components["text_encoder"], BERT_TOKENS, branches),
        _encode("encode_2", components["text_encoder_2"], T5_TOKENS, branches),
        _sample(components["transformer"], work.width * work.height // 256, branches, work.steps),
        vae_phase("decode", components["vae"], work.width, work.height, computes=COMPUTES),
    )


def _encode(name: PhaseName, encoder: Component, tokens: int, prompts: int) -> Phase:
    flops, variant = encoding(encoder, tokens)
    # T5 overflows in fp16; bf16 has fp32's range.
    computes: tuple[Compute, ...] = COMPUTES if name == "encode" else ("bf16",)
    return Phase(
        name=name,
        component=encoder,
        computes=computes,
        storages=every_storage(encoder, computes[0]),
        flops=flops,
        linear_share=0.0,
        passes=prompts,
        variants=(variant,),
        streamable=True,
        movable=True,
        cast_last_resort=True,
    )


def _sample(transformer: Component, tokens: int, branches: int, steps: int) -> Phase:
    blocks = len(transformer.blocks)
    linear = 2.0 * sum(block.linear for block in transformer.blocks)
    attention = 4.0 * blocks * (tokens + BERT_TOKENS + T5_TOKENS) * transformer.hidden
    return Phase(
        name="sample",
        component=transformer,
        computes=COMPUTES,
        storages=every_storage(transformer, "fp16"),
        flops=branches * tokens * (linear + attention),
        linear_share=linear / (linear + attention),
        passes=steps,
        variants=(sampling_memory(transformer, tokens, branches),),
        streamable=True,
    )


def sampling_memory(transformer: Component, tokens: int, branches: int) -> Variant:
    """Return what a prediction holds beside the weights: a block's inside, and the skips that wait for their use."""
    skips = max(0, len(transformer.blocks) // 2 - 1)
    units = INSIDE + skips + 2 * transformer.inner / max(1, transformer.hidden)
    return Variant("whole", int(2 * branches * tokens * transformer.hidden * units))


def fitting(
    components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: ImageWork
) -> list[ImageWork]:
    """Return the image of the largest size that fits, where any does."""

    def fits(size: tuple[int, int]) -> bool:
        smaller = replace(work, width=size[0], height=size[1])
        return plan(phases(components, smaller), machine, precision=handle.precision, memory=handle.memory).fits

    width, height = max(filter(fits, SIZES), key=lambda size: size[0] * size[1], default=(0, 0))
    return [replace(work, width=width, height=height)] if width else []


def what_fits(found: Sequence[ImageWork]) -> str:
    """Return a sentence on what `fitting` has found."""
    return f"What would fit: {found[0].width}×{found[0].height}." if found else "No size fits."
