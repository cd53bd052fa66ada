"""Phases of a prompt model for the planner: one, bound by reading the weights once per generated token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..planner.phases import Component, Phase, Variant, every_storage

COMPONENT = "prompt_model"
# Keys and values of all published sizes of Qwen3: 8 heads of 128 (their config.json).
KEY_VALUE_WIDTH = 1024
# Peak per token and width of the prompt's pass, 16-bit, from live tensors of a small Qwen3.
ACTIVATION_BYTES = 37
# The least room of a fixed cache for the chat: our presets, of about 1,100 characters, all stay below.
MIN_FIXED_CACHE_TOKENS = 1024
LOGIT_BYTES = 4 * 4 * 151_936  # four fp32 copies of one position's scores over the vocabulary


@dataclass(frozen=True)
class PromptWork:
    """What the planner must know of expanding a prompt.

    Attributes:
        prompt_tokens: the system prompt, the worked examples and the line, in tokens. Those of our presets are up to
            750 in Qwen's tokens, with all examples.
        max_new_tokens: the longest answer, for which there must be room.
        answer_tokens: the answer as long as it was asked for, for the time that it takes; 0 for the longest.
        fixed_cache: keys and values have the room of `fixed_cache_tokens` from the start, as compiled code needs.
        may_pack: no number type was asked for: a CPU may hold packed weights as `packed_layers` does.
    """

    prompt_tokens: int = 1024
    max_new_tokens: int = 256
    answer_tokens: int = 0
    fixed_cache: bool = False
    may_pack: bool = False


def fixed_cache_tokens(prompt_tokens: int, max_new_tokens: int) -> int:
    """Return for how many tokens a fixed cache has room.

    The chat's share is a power of two, so that chats of similar length share one size and its compiled code.
    """
    return max(MIN_FIXED_CACHE_TOKENS, 1 << (prompt_tokens - 1).bit_length()) + max_new_tokens


def stays_packed(component: Component, work: PromptWork) -> bool:
    """Return whether a CPU holds a model's matrices packed: those of its file are, and this processor can."""
    if not work.may_pack or work.fixed_cache or not any(one.type == "gguf" and one.linear for one in component.files):
        return False
    from .packed_layers import can_pack

    return can_pack()


def phases(components: Mapping[str, Component], work: PromptWork) -> tuple[Phase, ...]:
    """Return the one phase of expanding a prompt."""
    component = components[COMPONENT]
    tokens = work.prompt_tokens + work.max_new_tokens
    room = fixed_cache_tokens(work.prompt_tokens, work.max_new_tokens) if work.fixed_cache else tokens
    cache_elements = 2 * room * KEY_VALUE_WIDTH * len(component.blocks)
    activations = ACTIVATION_BYTES * work.prompt_tokens * component.hidden
    passes = min(work.answer_tokens or work.max_new_tokens, work.max_new_tokens)
    return (
        Phase(
            name="expand",
            component=component,
            computes=("bf16",),
            storages=every_storage(component),
            # The chat's tokens go through in one pass, then one token a pass.
            flops=2.0 * component.parameters * (work.prompt_tokens + passes) / passes,
            linear_share=0.0,
            passes=passes,
            variants=(Variant("whole", activations + 2 * cache_elements, fixed=LOGIT_BYTES),),
            streamable=True,
            packed_on_cpu=stays_packed(component, work),
        ),
    )
