"""GGUF layers: Linear layers of packed blocks, unpacked where they are computed, one layer at a time."""

from __future__ import annotations

from typing import cast

import torch

from ..files.gguf_blocks import BY_NAME, unpack_into
from .stored_linear import StoredLinear


class GgufLinear(StoredLinear):
    """A Linear layer of the packed blocks of a GGUF file.

    Attributes:
        blocks: uint8 buffer [out, bytes of a row]; no Parameter, since models take the type of their first one for
            the type that they compute in.
        kind: the type of the blocks by the name that ggml has for it.
    """

    def __init__(
        self,
        blocks: torch.Tensor,
        kind: str,
        bias: torch.Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        block = BY_NAME[kind]
        super().__init__((blocks.shape[0], blocks.shape[1] // block.bytes * block.weights), bias, compute)
        self.register_buffer("blocks", blocks)
        self.kind = kind

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly unpacked."""
        blocks = cast(torch.Tensor, self.blocks)
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=blocks.device)
        unpack_into(weight, blocks, self.kind)
        return weight

    def extra_repr(self) -> str:
        """Describe the layer as nn.Linear does."""
        return f"{super().extra_repr()}, kind={self.kind}"
