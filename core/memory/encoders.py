"""What a text encoder does and holds, for any family."""

from __future__ import annotations

from .components import Component
from .work import Variant

HEAD = 64  # width of an attention head in T5 and BERT

# Peaks of one forward pass in a 16-bit type, by the width between blocks and the tokens, from live tensors
# of small T5, UMT5 and BERT models: activations, and T5's attention scores (scores, bias, softmax in fp32).
ACTIVATION_BYTES = 28
SCORE_BYTES = 12


def encoding(component: Component, tokens: int) -> tuple[float, Variant]:
    """Return the operations of one pass over `tokens` tokens, and its memory."""
    weights = sum(block.linear for block in component.blocks)
    attention = 4 * tokens**2 * component.hidden * len(component.blocks)
    scores = SCORE_BYTES * (component.hidden // HEAD) * tokens**2
    held = ACTIVATION_BYTES * tokens * component.hidden
    return 2.0 * weights * tokens + attention, Variant("whole", held + scores)
