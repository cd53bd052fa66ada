"""Shared sampling of Hunyuan-DiT: what its transformer is to be shared between ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

from ..families.attention_processors import processed_by
from ..families.shared_calls import CallsJob
from ..families.split_blocks import TokenShares, blocks_split

if TYPE_CHECKING:
    from diffusers import HunyuanDiT2DModel

    from ..parallel.group import Group


@dataclass(frozen=True)
class HunyuanDiTJob(CallsJob):
    """What the other ranks do while rank 0 draws an image."""

    def blocks(self, transformer: HunyuanDiT2DModel) -> list[torch.nn.Module]:
        """Return the transformer's blocks in the order in which they run."""
        return list(transformer.blocks)

    @staticmethod
    @contextmanager
    def tokens_split(transformer: HunyuanDiT2DModel, group: Group) -> Iterator[None]:
        """Have each rank take its share of the image's tokens through the blocks inside the `with` block.

        The output head works on single tokens, and what it makes of them is smaller.
        """
        blocks, shares = list(transformer.blocks), TokenShares(group)
        with (
            processed_by(SplitAttention(shares), [block.attn1 for block in blocks]),
            blocks_split(shares, blocks, transformer.proj_out, rotary="image_rotary_emb"),
        ):
            yield


class SplitAttention:
    """Self-attention of the blocks to the tokens of all ranks, otherwise that of diffusers' `HunyuanAttnProcessor2_0`.

    Cross-attention needs none of this: the text is whole on every rank.
    """

    def __init__(self, shares: TokenShares) -> None:
        self._shares = shares

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, *_given: Any, image_rotary_emb: Any, **_named: Any
    ) -> torch.Tensor:
        """Return the attention's output for this rank's tokens [batch, share, dim].

        Args:
            image_rotary_emb: cosines and sines of their places [share, width of a head].
        """
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query, key = _turned(query, image_rotary_emb), _turned(key, image_rotary_emb)
        result = self._shares.current.attend(query, key, value, dispatch_attention_fn)
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](result.flatten(2, 3).type_as(query)))
        return output


def _turned(states: torch.Tensor, rotary: Any) -> torch.Tensor:
    """Return queries or keys [batch, tokens, heads, width] turned by their places."""
    turned: torch.Tensor = apply_rotary_emb(states, rotary, sequence_dim=1)  # type: ignore[assignment]
    return turned
