"""Packed layers: a language model's matrices in 8 and 16 bits on a CPU, multiplied by FBGEMM as they are.

A CPU writes as fast as it reads weights, once for every token. Files of packed weights (GGUF) hold 4 to 8 bits of
each, so 8 bits for a row's weights with a scale of its own lose next to nothing. The layer that ends a gated MLP is
kept in 16 bits: a few of its inputs are a thousand times as large as the rest, and FBGEMM rounds the inputs of a
layer in 8 bits too.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.functional import embedding

log = logging.getLogger("piying")

ENGINE = "fbgemm"
WIDE_LAYERS = ("down_proj",)  # names of transformers
LEVELS = 127  # of 8 bits with a sign


def can_pack() -> bool:
    """Return whether this processor multiplies packed weights; FBGEMM is for x86 with AVX2."""
    return ENGINE in torch.backends.quantized.supported_engines


class PackedLinear(torch.nn.Module):
    """A Linear layer whose weights FBGEMM holds: in 8 bits with a scale for each row, or in fp16.

    Inputs and outputs are float32 [..., in_features] and [..., out_features].
    """

    def __init__(self, layer: torch.nn.Linear, is_wide: bool) -> None:
        super().__init__()
        weight: torch.Tensor = layer.weight.detach().float()
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.in_features, self.out_features, self.is_wide = layer.in_features, layer.out_features, is_wide
        operations: Any = torch.ops.quantized
        if is_wide:
            self._packed, self._run = operations.linear_prepack_fp16(weight, bias), operations.linear_dynamic_fp16
            return
        scales = weight.abs().amax(dim=1).double().clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed, self._run = operations.linear_prepack(rounded, bias), operations.linear_dynamic

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs times the weights."""
        return self._run(inputs, self._packed)  # type: ignore[no-any-return]


class PackedEmbedding(torch.nn.Module):
    """An embedding table in fp16 whose rows come out as float32."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(table.weight.detach().half(), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of tokens, float32 [..., width]."""
        return embedding(tokens, self.weight).float()


def pack(model: torch.nn.Module) -> None:
    """Replace a model's Linear layers and embeddings by packed ones, one after the other; the rest becomes float32."""
    for name, layer in list(model.named_modules()):
        parent, _, own = name.rpartition(".")
        if isinstance(layer, torch.nn.Linear):
            setattr(model.get_submodule(parent), own, PackedLinear(layer, is_wide=own in WIDE_LAYERS))
        elif isinstance(layer, torch.nn.Embedding):
            setattr(model.get_submodule(parent), own, PackedEmbedding(layer))
    for layer in model.modules():
        if not isinstance(layer, PackedEmbedding):
            for own, parameter in layer.named_parameters(recurse=False):
                setattr(layer, own, torch.nn.Parameter(parameter.detach().float(), requires_grad=False))
    log.info(
        "The prompt model's matrices are computed in 8 bits, its %s in 16: precision fp32 computes them in 32.",
        " and ".join(WIDE_LAYERS),
    )
