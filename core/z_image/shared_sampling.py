"""Shared sampling of Z-Image: what its transformer is to be shared between ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from ..families.attention_processors import processed_by
from ..families.shared_calls import CallsJob
from ..families.split_blocks import TokenShares, blocks_split
from .blocks import block_order, forget_angles

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

    from ..parallel.group import Group

ROTARY = 2  # the place of the rotary embedding among a block's arguments, behind the tokens and the mask


@dataclass(frozen=True)
class ZImageJob(CallsJob):
    """What the other ranks do while rank 0 draws an image."""

    def blocks(self, transformer: ZImageTransformer2DModel) -> list[torch.nn.Module]:
        """Return the transformer's blocks in the order in which they run."""
        return block_order(transformer)

    def take_part(self, transformer: ZImageTransformer2DModel, group: Group) -> None:
        """Make this rank's part of each call until rank 0 says that all are made."""
        super().take_part(transformer, group)
        forget_angles(transformer)

    @staticmethod
    @contextmanager
    def tokens_split(transformer: ZImageTransformer2DModel, group: Group) -> Iterator[None]:
        """Have each rank take its share of the tokens through the blocks inside the `with` block.

        The image's tokens go through blocks of their own first, and through the others together with the text's. The
        two blocks that the text has before are left to every rank: a few hundred tokens are less than an exchange.
        """
        shares = TokenShares(group)
        own, joint = list(transformer.noise_refiner), list(transformer.layers)
        (head,) = transformer.all_final_layer.values()
        with (
            processed_by(SplitAttention(shares), [block.attention for block in [*own, *joint]]),
            blocks_split(shares, own, own[-1], rotary=ROTARY),
            blocks_split(shares, joint, head, rotary=ROTARY),
        ):
            yield


class SplitAttention:
    """Attention of the blocks to the tokens of all ranks, otherwise that of `ZSingleStreamAttnProcessor`."""

    def __init__(self, shares: TokenShares) -> None:
        self._shares = shares

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        *_given: Any,
        attention_mask: torch.Tensor | None,
        freqs_cis: torch.Tensor,
        **_named: Any,
    ) -> torch.Tensor:
        """Return the attention's output for this rank's tokens [batch, share, dim].

        Args:
            attention_mask: which of all tokens there are [batch, tokens]; None for all.
            freqs_cis: rotations of this rank's tokens [batch, share, half the width of a head], complex.
        """
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        query, key = _turned(query, freqs_cis), _turned(key, freqs_cis)
        result = self._shares.current.attend(query, key, value, partial(dispatch_attention_fn, attn_mask=mask))
        output: torch.Tensor = attn.to_out[0](result.flatten(2, 3).type_as(query))
        return output if len(attn.to_out) == 1 else attn.to_out[1](output)


def _turned(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Return queries or keys [batch, tokens, heads, width] turned by their places, in fp32 as diffusers does it."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations.unsqueeze(2)).flatten(3).type_as(states)
