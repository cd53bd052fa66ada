"""Normalized attention guidance (NAG, Chen et al. 2025, arXiv 2505.21179): a negative prompt without a second pass.

Cross-attention is computed with the negative prompt too, and its result turned from that, no further than its own norm
allows. Equals `NAGWanAttnProcessor2_0` of ChenDarYen/Normalized-Attention-Guidance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from ..families.attention_processors import processed_by
from .conditioning import MAX_PROMPT_TOKENS
from .transformer import block_order

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanAttention

    from .guidance import Guidance
    from .transformer import Transformer


class NAGProcessor:
    """Cross-attention of Wan's blocks, guided for the first rows of a batch.

    Attributes:
        negative: the negative prompt's tokens [1, 512, dim] as the blocks read them.
        rows: how many rows of the batch are guided; those of other prompts are not.
    """

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self.negative: torch.Tensor | None = None
        self.rows = 0

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *absent: None,
    ) -> torch.Tensor:
        """Return the attention's output, shaped like `hidden_states`; cross-attention has neither mask nor rotary.

        What it reads of pictures, whose tokens stand in front of the text's, is not guided.
        """
        del absent
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        before = encoder_hidden_states.shape[1] - MAX_PROMPT_TOKENS if attn.add_k_proj is not None else 0
        result = self._attend(attn, query, encoder_hidden_states[:, before:])
        if self.rows and self.negative is not None:
            own = result[: self.rows]
            away = self._attend(attn, query[: self.rows], self.negative.expand(self.rows, -1, -1))
            result = torch.cat([self._guided(own, away), result[self.rows :]])
        if before:
            result = result + self._look(attn, query, encoder_hidden_states[:, :before])
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](result))
        return output

    @staticmethod
    def _attend(attn: WanAttention, query: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        key = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(text).unflatten(2, (attn.heads, -1))
        result: torch.Tensor = dispatch_attention_fn(query, key, value)
        return result.flatten(2, 3).type_as(query)

    @staticmethod
    def _look(attn: WanAttention, query: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        assert attn.add_k_proj is not None and attn.add_v_proj is not None
        key = attn.norm_added_k(attn.add_k_proj(pictures)).unflatten(2, (attn.heads, -1))
        value = attn.add_v_proj(pictures).unflatten(2, (attn.heads, -1))
        result: torch.Tensor = dispatch_attention_fn(query, key, value)
        return result.flatten(2, 3).type_as(query)

    def _guided(self, own: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
        scale, tau, alpha = self.guidance.nag_scale, self.guidance.nag_tau, self.guidance.nag_alpha
        turned = own * scale - away * (scale - 1)
        before, after = (torch.norm(one, p=1, dim=-1, keepdim=True) for one in (own, turned))
        limited = turned / (after + 1e-7) * before * tau
        turned = torch.where((after / before).nan_to_num(10) > tau, limited, turned)
        return turned * alpha + own * (1 - alpha)


@contextmanager
def nag_enabled(transformer: Transformer, guidance: Guidance) -> Iterator[NAGProcessor | None]:
    """Have the blocks' cross-attention guided inside the `with` block; None where that is off."""
    if not guidance.has_nag:
        yield None
        return
    with processed_by(made := NAGProcessor(guidance), [block.attn2 for block in block_order(transformer)]):
        yield made
