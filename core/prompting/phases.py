"""What writing a prompt costs: one phase, whose time is that of reading the weights once a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..planner.phases import Component, Phase, Variant, every_storage

# Keys and values of all published sizes of Qwen3: 8 heads of 128 (their config.json).
KEY_VALUE_WIDTH = 1024
# Peak per token and width of the prompt's pass, 16-bit, from live tensors of a small Qwen3.
ACTIVATION_BYTES = 37
# Tokens of a prompt that a cache of one size has room for at least: ours, of about 1,100 characters, are all below.
SMALLEST_ROOM = 1024
LOGIT_BYTES = 4 * 4 * 151_936  # four fp32 copies of one position's scores over the vocabulary


def fixed_cache_tokens(prompt_tokens: int, max_new_tokens: int) -> int:
    """Return for how many tokens a cache of one size has room: prompts of much the same length share a size."""
    return max(SMALLEST_ROOM, 1 << (prompt_tokens - 1).bit_length()) + max_new_tokens


@dataclass(frozen=True)
class PromptWork:
    """What the planner must know of writing a prompt.

    Attributes:
        prompt_tokens: the system prompt and the line, in tokens.
        max_new_tokens: the longest answer.
        fixed_cache: keys and values have the room of `fixed_cache_tokens` from the start, as compiled code wants it.
    """

    prompt_tokens: int = 512
    max_new_tokens: int = 256
    fixed_cache: bool = False


def phases(components: Mapping[str, Component], work: PromptWork) -> tuple[Phase, ...]:
    """Return the one phase of writing a prompt.

    Args:
        components: `prompt_model`.
    """
    component, prompt_tokens, max_new_tokens = components["prompt_model"], work.prompt_tokens, work.max_new_tokens
    tokens = prompt_tokens + max_new_tokens
    room = fixed_cache_tokens(prompt_tokens, max_new_tokens) if work.fixed_cache else tokens
    cache = 2 * room * KEY_VALUE_WIDTH * len(component.blocks)  # elements
    active = ACTIVATION_BYTES * prompt_tokens * component.hidden
    return (
        Phase(
            name="expand",
            component=component,
            computes=("bf16",),
            storages=every_storage(),
            # The prompt's tokens go through at once, then one at a time.
            flops=2.0 * component.parameters * tokens / max_new_tokens,
            linear_share=0.0,
            passes=max_new_tokens,
            variants=(Variant("whole", active + 2 * cache, fixed=LOGIT_BYTES),),
            streamable=True,
        ),
    )
