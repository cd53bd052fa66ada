"""Phases of a prompt model for the planner: one, bound by reading the weights once per generated token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..catalog.component_sizes import wanted_components
from ..planner.machine import Machine, read_machine
from ..planner.phases import Component, Phase, Variant
from ..planner.plan import plan
from ..planner.report import Estimate

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle
    from ..host.base import Host

COMPONENT = "prompt_model"
BLOCK_LISTS = {COMPONENT: ("model.layers",)}
FP8_KEEP: dict[str, tuple[str, ...]] = {COMPONENT: ()}

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
        prompt_tokens: the system prompt and the line, in tokens.
        max_new_tokens: the longest answer.
        fixed_cache: keys and values have the room of `fixed_cache_tokens` from the start, as compiled code needs.
    """

    prompt_tokens: int = 512
    max_new_tokens: int = 256
    fixed_cache: bool = False


def fixed_cache_tokens(prompt_tokens: int, max_new_tokens: int) -> int:
    """Return for how many tokens a fixed cache has room.

    The chat's share is a power of two, so that chats of similar length share one size and its compiled code.
    """
    return max(MIN_FIXED_CACHE_TOKENS, 1 << (prompt_tokens - 1).bit_length()) + max_new_tokens


def phases(components: Mapping[str, Component], work: PromptWork) -> tuple[Phase, ...]:
    """Return the one phase of expanding a prompt."""
    component = components[COMPONENT]
    tokens = work.prompt_tokens + work.max_new_tokens
    room = fixed_cache_tokens(work.prompt_tokens, work.max_new_tokens) if work.fixed_cache else tokens
    cache_elements = 2 * room * KEY_VALUE_WIDTH * len(component.blocks)
    activations = ACTIVATION_BYTES * work.prompt_tokens * component.hidden
    return (
        Phase(
            name="expand",
            component=component,
            computes=("bf16",),
            storages=("bf16", "fp8"),
            # The chat's tokens go through in one pass, then one token a pass.
            flops=2.0 * component.parameters * tokens / work.max_new_tokens,
            linear_share=0.0,
            passes=work.max_new_tokens,
            variants=(Variant("whole", activations + 2 * cache_elements, fixed=LOGIT_BYTES),),
            streamable=True,
        ),
    )


def estimate(handle: ModelHandle, host: Host, work: PromptWork) -> Estimate:
    """Return the plan of expanding a prompt before anything is loaded.

    Raises:
        PiyingError: the model is neither installed nor listed with its sizes, or the device cannot be used.
    """
    name, components = wanted_components(handle, host, BLOCK_LISTS, FP8_KEEP)
    machine = read_machine(host)
    made = plan(
        phases(components, work),
        machine,
        precision=handle.precision,
        memory=handle.memory,
        advise=lambda: what_fits(components, machine, handle, work),
    )
    return Estimate(name, made, machine)


def what_fits(components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: PromptWork) -> str:
    """Return a sentence on what would fit: the weights alone are too large, and no setting makes them smaller."""
    del components, machine, handle, work
    return "Choose a smaller model."
