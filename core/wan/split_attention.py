"""Split attention: self-attention of Wan's blocks to the tokens of all ranks, where each has a share of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from ..families.attention_processors import processed_by
from ..parallel.sequence import SequenceSplit
from .transformer import block_order

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanAttention

    from ..parallel.group import Group
    from .transformer import Transformer


class SplitAttention:
    """Self-attention of Wan's blocks, which is diffusers' `WanAttnProcessor` but for what the ranks exchange.

    Cross-attention needs none of this: the text is whole on every rank.

    Attributes:
        shares: of the tokens of the prediction that is being made.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.shares: SequenceSplit | None = None

    def begin(self, tokens: int) -> SequenceSplit:
        """Return the shares of a prediction of so many tokens, which attention goes by from now on."""
        self.shares = SequenceSplit(self._group, tokens)
        return self.shares

    def __call__(self, attn: WanAttention, hidden_states: torch.Tensor, *given: Any) -> torch.Tensor:
        """Return the attention's output for this rank's tokens [batch, share, dim].

        Args:
            given: neither other states to attend to nor a mask, but the rotary embedding.
        """
        rotary = given[2]
        assert self.shares is not None
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query, key = _turned(query, rotary), _turned(key, rotary)
        result = self.shares.attend(query, key, value, dispatch_attention_fn)
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](result.flatten(2, 3).type_as(query)))
        return output


def _turned(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return queries or keys turned by their places, as `WanAttnProcessor` turns them."""
    real, imaginary = states.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotary[0][..., 0::2], rotary[1][..., 1::2]
    turned = torch.empty_like(states)
    turned[..., 0::2] = real * cosine - imaginary * sine
    turned[..., 1::2] = real * sine + imaginary * cosine
    return turned


@contextmanager
def attention_split(transformer: Transformer, group: Group) -> Iterator[SplitAttention]:
    """Have the blocks' self-attention shared between the ranks of a group inside the `with` block."""
    with processed_by(made := SplitAttention(group), [block.attn1 for block in block_order(transformer)]):
        yield made
