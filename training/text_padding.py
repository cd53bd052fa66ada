"""Many padding tokens for the price of one.

Both pipelines let their transformers attend to padding: 512 places for Wan, 77 + 256 for Hunyuan-DiT,
of which a caption fills twenty. All padding looks the same, so attention to n of it equals attention
to one with log(n) added to its score. Training runs on that one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.attention_processor import HunyuanAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

NEVER = -1e4


def padding_scores(lengths: torch.Tensor, longest: int, full: int) -> torch.Tensor:
    """Return what to add to attention scores [B, 1, 1, longest + 1] for texts of some lengths.

    The place behind the longest text stands for all the padding up to `full`; the padding between a
    shorter text and that place counts for nothing.
    """
    places = torch.arange(longest + 1)
    scores = torch.where(places < lengths[:, None], 0.0, NEVER)
    scores[:, longest] = torch.tensor([math.log(max(full - length, 1)) for length in lengths.tolist()])
    return scores[:, None, None]


class WanPaddedText(WanAttnProcessor):
    """Wan's attention, with the scores of the padding added where it looks at text."""

    scores: torch.Tensor | None = None

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *rest: Any
    ) -> torch.Tensor:
        """Attend to the text if there is one, else to the video."""
        if encoder_hidden_states is not None:
            rest = (self.scores, *rest[1:])
        return super().__call__(attn, hidden_states, encoder_hidden_states, *rest)


class HunyuanPaddedText(HunyuanAttnProcessor2_0):
    """Hunyuan-DiT's attention, with the scores of the padding added where it looks at text."""

    scores: torch.Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> torch.Tensor:
        """Attend to the text if there is one, else to the picture."""
        if encoder_hidden_states is not None and self.scores is not None:
            attention_mask = self.scores[:, 0].repeat_interleave(attn.heads, dim=0)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, image_rotary_emb)
