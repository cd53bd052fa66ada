"""What an image costs: the phases of a run, their arithmetic and their memory.

Peaks come from live tensors of the real configurations on torch's meta device, attention counted by
its output alone (tests/core/test_plan_peaks.py runs them again).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..families.image_vae import vae_phase
from ..parallel.cards import ONE_CARD, Cards, CardSplit
from ..parallel.ways import Split, attention_bytes, exchange, share_divides, share_of, splits_of
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
# Where cards share the tokens: keys and values of all of them, where those are gathered, and what attention holds of
# the card's own beside them, in the same units. What is of the text is there on every card: bytes of a prompt in 16
# bits, while its T5 states are embedded (8192 wide inside, with fp32 copies) and afterwards.
GATHERED, ATTENDING = 3, 8.8
EMBEDDING_BYTES, TEXT_BYTES = 10 * T5_TOKENS * 8192, 2_600_000
HEAD = 88  # width of an attention head
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class ImageWork:
    """What the planner must know of an image.

    Attributes:
        width, height: pixels.
        cfg: above 1 each step predicts twice, in one batch.
        steps: denoising steps.
        split: how its predictions are shared between cards.
    """

    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    cfg: float = DEFAULT_CFG
    steps: int = DEFAULT_STEPS
    split: CardSplit = ONE_CARD

    @classmethod
    def of(cls, request: ImageRequest) -> ImageWork:
        """Return the work of a request."""
        return cls(request.width, request.height, request.cfg, request.steps)


def phases(components: Mapping[str, Component], work: ImageWork) -> tuple[Phase, ...]:
    """Return the phases of a run.

    Args:
        components: `text_encoder`, `text_encoder_2`, `transformer` and `vae`.
    """
    branches = branches_of(work)
    return (
        _encode("encode", components["text_encoder"], BERT_TOKENS, branches),
        _encode("encode_2", components["text_encoder_2"], T5_TOKENS, branches),
        _sample(components["transformer"], work),
        vae_phase("decode", components["vae"], work.width, work.height, computes=COMPUTES),
    )


def branches_of(work: ImageWork) -> int:
    """Return how many predictions a step makes."""
    return 2 if work.cfg > 1 else 1


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


def _sample(transformer: Component, work: ImageWork) -> Phase:
    tokens, branches = work.width * work.height // 256, branches_of(work)
    on_a_card = share_of(work.split, branches, tokens)
    blocks = len(transformer.blocks)
    linear = 2.0 * sum(block.linear for block in transformer.blocks)
    attention = 4.0 * blocks * (tokens + BERT_TOKENS + T5_TOKENS) * transformer.hidden
    return Phase(
        name="sample",
        component=transformer,
        computes=COMPUTES,
        storages=every_storage(transformer, "fp16"),
        flops=branches * tokens * (linear + attention) * on_a_card.arithmetic,
        split=work.split,
        exchange=_exchange(transformer, tokens, branches, work.split),
        linear_share=linear / (linear + attention),
        passes=work.steps,
        variants=(sampling_memory(transformer, tokens, on_a_card.branches, cards=work.split.holders),),
        streamable=True,
    )


def sampling_memory(transformer: Component, tokens: int, branches: int, *, cards: int = 1) -> Variant:
    """Return what a prediction holds beside the weights: a block's inside, and the skips that wait for their use.

    Args:
        tokens: of the image.
        branches: predictions of a step, in one batch.
        cards: between which the tokens are shared.
    """
    skips = max(0, len(transformer.blocks) // 2 - 1)
    units = INSIDE + skips + 2 * transformer.inner / max(1, transformer.hidden)
    whole = 2 * branches * tokens * transformer.hidden
    if cards == 1:
        return Variant("whole", int(whole * units))
    own = 2 * branches * math.ceil(tokens / cards) * transformer.hidden
    gathers = not share_divides(transformer.hidden // HEAD, cards)
    held = max(own * units, GATHERED * whole + own * (skips + ATTENDING) if gathers else 0)
    return Variant("whole", int(max(held + branches * TEXT_BYTES, whole + branches * EMBEDDING_BYTES)))


def _exchange(transformer: Component, tokens: int, branches: int, split: CardSplit) -> float:
    """Return the seconds in which a card waits for what it sends, or receives, in a step."""
    latents = 2 * 4 * tokens * LATENT_CHANNELS
    attention = attention_bytes(transformer, split.count, tokens, transformer.hidden // HEAD)
    # It predicts the variance too, which nothing reads.
    return exchange(split, branches, given=branches * latents, made=2 * latents, attention=attention)


def splits(components: Mapping[str, Component], work: ImageWork, cards: Cards, machine: Machine) -> tuple[Split, ...]:
    """Return the ways to share an image's predictions between cards, that without sharing first."""

    def shared(work: ImageWork) -> tuple[Phase, ...]:
        return phases(components, work)

    return splits_of(work, branches_of(work), cards, machine, phases=shared, in_one_batch=True)


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
