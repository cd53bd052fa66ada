"""What an image of Z-Image costs: the phases of a run, their arithmetic and their memory.

Peaks come from live tensors of the real configuration on torch's meta device, attention counted by its output
alone (tests/core/test_z_image_plan.py runs them again).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..families.image_vae import vae_phase
from ..image_sizes import MULTIPLE
from ..parallel.cards import ONE_CARD, Cards, CardSplit
from ..parallel.ways import Split, attention_bytes, exchange, share_divides, share_of, splits_of
from ..planner.machine import Machine
from ..planner.phases import Component, Phase, Variant, every_storage
from ..planner.plan import largest, plan
from ..planner.plan_types import Compute
from .request import DEFAULT_CFG, DEFAULT_HEIGHT, DEFAULT_STEPS, DEFAULT_WIDTH, MIN_SIDE, ZImageRequest

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle

TEXT_TOKENS = 512  # the longest prompt; shorter ones take less
# Bytes per token and width of the encoder's pass in a 16-bit type: a layer's inside, and what all layers leave: their
# states, of which the last but one is taken, and keys and values, which transformers keeps by itself.
ENCODER_INSIDE, ENCODER_LAYER = 29, 3.6
# In units of one activation (tokens of picture and text × width): the inside of a block, its inner width included.
BLOCK_UNITS = 15.81
# Where cards share the tokens: a block's inside for the card's own, and what is there of all: the picture before and
# after it is joined with the text. Where keys and values are gathered they are there in parts and joined.
SHARED_UNITS, WHOLE_UNITS = 14.72, 2.0
ATTENDING_UNITS, GATHERED_UNITS = 5.2, 5.1
HEAD = 128  # width of an attention head
LATENT_CHANNELS = 16
LATENT_COPIES = 6  # fp32: latents, both predictions, what they come to, and the scheduler's
# The published VAE is bf16; fp16 has more bits and not its range.
VAE_COMPUTES: tuple[Compute, ...] = ("bf16", "fp32")


@dataclass(frozen=True)
class ZImageWork:
    """What the planner must know of an image.

    Attributes:
        width, height: pixels.
        cfg: above 1 each step predicts twice, in one batch.
        steps: denoising steps that are taken.
        has_image: image to image: the picture is encoded first.
        split: how its predictions are shared between cards.
    """

    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    cfg: float = DEFAULT_CFG
    steps: int = DEFAULT_STEPS
    has_image: bool = False
    split: CardSplit = ONE_CARD

    @classmethod
    def of(cls, request: ZImageRequest, has_image: bool = False) -> ZImageWork:
        """Return the work of a request; with a picture a share of the steps is left out."""
        steps = max(1, round(request.steps * request.strength)) if has_image else request.steps
        return cls(request.width, request.height, request.cfg, steps, has_image)


def phases(components: Mapping[str, Component], work: ZImageWork) -> tuple[Phase, ...]:
    """Return the phases of a run: encode, condition where there is a picture, sample, decode.

    Args:
        components: `text_encoder`, `transformer` and `vae`.
    """
    size = (work.width, work.height)
    condition = vae_phase("condition", components["vae"], *size, computes=VAE_COMPUTES, decodes=False)
    return (
        _encode(components["text_encoder"], _branches(work)),
        *((condition,) if work.has_image else ()),
        _sample(components["transformer"], work),
        vae_phase("decode", components["vae"], *size, computes=VAE_COMPUTES),
    )


def _branches(work: ZImageWork) -> int:
    return 2 if work.cfg > 1 else 1


def _encode(encoder: Component, prompts: int) -> Phase:
    layers = len(encoder.blocks)
    attention = 4 * TEXT_TOKENS**2 * encoder.hidden * layers
    held = int(TEXT_TOKENS * encoder.hidden * (ENCODER_INSIDE + ENCODER_LAYER * layers))
    return Phase(
        name="encode",
        component=encoder,
        computes=("bf16",),
        storages=every_storage(encoder),
        flops=2.0 * sum(block.linear for block in encoder.blocks) * TEXT_TOKENS + attention,
        linear_share=0.0,
        passes=prompts,
        variants=(Variant("whole", held),),
        streamable=True,
        movable=True,
        cast_last_resort=True,
    )


def _sample(transformer: Component, work: ZImageWork) -> Phase:
    tokens = work.width * work.height // 256 + TEXT_TOKENS
    on_a_card = share_of(work.split, _branches(work), tokens)
    linear = 2.0 * sum(block.linear for block in transformer.blocks)
    attention = 4.0 * len(transformer.blocks) * tokens * transformer.hidden
    return Phase(
        name="sample",
        component=transformer,
        computes=("bf16",),
        storages=every_storage(transformer),
        flops=_branches(work) * tokens * (linear + attention) * on_a_card.arithmetic,
        split=work.split,
        exchange=_exchange(transformer, tokens, _branches(work), work.split),
        linear_share=linear / (linear + attention),
        passes=work.steps,
        variants=(sampling_memory(transformer, tokens, on_a_card.branches, cards=work.split.holders),),
        streamable=True,
    )


def sampling_memory(transformer: Component, tokens: int, branches: int, *, cards: int = 1) -> Variant:
    """Return what a prediction holds beside the weights.

    Args:
        tokens: of the picture and the text together.
        branches: predictions of a step, in one batch.
        cards: between which the tokens are shared.
    """
    latents, each = LATENT_COPIES * branches * tokens * 4 * LATENT_CHANNELS * 4, 2 * branches * transformer.hidden
    if cards == 1:
        return Variant("whole", int(each * tokens * BLOCK_UNITS), fixed=latents)
    own = math.ceil(tokens / cards)
    held = SHARED_UNITS * own + WHOLE_UNITS * tokens
    if not share_divides(transformer.hidden // HEAD, cards):
        held = max(held, ATTENDING_UNITS * own + GATHERED_UNITS * tokens)
    # The text goes through its own blocks on every card, beside the picture.
    refined = SHARED_UNITS * TEXT_TOKENS + tokens - TEXT_TOKENS
    return Variant("whole", int(each * max(held, refined)), fixed=latents)


def _exchange(transformer: Component, tokens: int, branches: int, split: CardSplit) -> float:
    """Return the seconds in which a card waits for what it sends, or receives, in a step."""
    latents = 2 * 4 * tokens * LATENT_CHANNELS
    attention = attention_bytes(transformer, split.count, tokens, transformer.hidden // HEAD)
    return exchange(split, branches, given=branches * latents, made=latents, attention=attention)


def splits(components: Mapping[str, Component], work: ZImageWork, cards: Cards, machine: Machine) -> tuple[Split, ...]:
    """Return the ways to share an image's predictions between cards, that without sharing first."""

    def shared(work: ZImageWork) -> tuple[Phase, ...]:
        return phases(components, work)

    return splits_of(work, _branches(work), cards, machine, phases=shared, in_one_batch=True)


def fitting(
    components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: ZImageWork
) -> list[ZImageWork]:
    """Return the image of the largest size of the same shape that fits, where any does."""
    short = min(work.width, work.height)

    def scaled(units: int) -> ZImageWork:
        sides = (round(side * units * MULTIPLE / short / MULTIPLE) * MULTIPLE for side in (work.width, work.height))
        width, height = (max(MIN_SIDE, side) for side in sides)
        return replace(work, width=width, height=height)

    def fits(units: int) -> bool:
        made = plan(phases(components, scaled(units)), machine, precision=handle.precision, memory=handle.memory)
        return made.fits

    units = largest(fits, MIN_SIDE // MULTIPLE, max(MIN_SIDE, short) // MULTIPLE, 1)
    return [] if units is None else [scaled(units)]


def what_fits(found: Sequence[ZImageWork]) -> str:
    """Return a sentence on what `fitting` has found."""
    if not found:
        return "No size fits. Choose a model whose files are in FP8."
    return f"What would fit: {found[0].width}×{found[0].height}."
