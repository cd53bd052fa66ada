"""INT8 layers: Linear layers of one byte a weight, computed in the type of the input.

Rotated ones (ComfyUI's int8-convrot files) hold W H, with H the regular Hadamard matrix of a group of inputs, which
spreads outliers over the group before they are rounded. H is symmetric and its own inverse, as in comfy-kitchen's
`_build_hadamard`, so that inputs rotated alike give the same product.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import nn

from ..files.stored_tensor import PIECE, StoredTensor
from . import scaled_tensor
from .scaled_tensor import ScaledTensor, dequantize
from .stored_linear import StoredLinear

LARGEST = 127
HALF = (torch.bfloat16, torch.float16)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 values [out, in] and their float32 scale [out, 1]; `values * scale` gives the weights back.

    The largest weight of each output channel becomes 127.

    Args:
        weight: [out, in], any floating type, finite.
    """
    return scaled_tensor.quantize(weight, torch.int8, LARGEST)


@cache
def hadamard(size: int) -> torch.Tensor:
    """Return the regular Hadamard matrix of a power of 4, float32 [size, size], symmetric and orthogonal."""
    smallest = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.kron(found, smallest)
    scaled: torch.Tensor = found / size**0.5
    return scaled


def rotated(numbers: torch.Tensor, group: int) -> torch.Tensor:
    """Return numbers [..., in] with each group of the last dimension times the Hadamard matrix; it undoes itself."""
    # It is symmetric; comfy-kitchen transposes it, and matrix products may round another way then.
    matrix = hadamard(group).to(numbers.device, numbers.dtype).t()
    return (numbers.reshape(*numbers.shape[:-1], -1, group) @ matrix).reshape(numbers.shape)


def quantize_rotated(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `quantize` does of a weight that is rotated first, some rows at a time."""
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], 1, device=weight.device)
    step = max(1, PIECE // max(1, weight.shape[1]))
    for rows, *made in zip(weight.split(step), values.split(step), scale.split(step), strict=True):
        for target, found in zip(made, quantize(rotated(rows.detach().float(), group)), strict=True):
            target.copy_(found)
    return values, scale


class RotatedTensor(ScaledTensor):
    """A scaled tensor whose true values are rotated in groups of `group` inputs."""

    def __init__(self, values: StoredTensor, scale: StoredTensor, group: int) -> None:
        super().__init__(values, scale)
        self.group = group

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts."""
        found = cast(list[ScaledTensor], super().split(parts))
        return [RotatedTensor(one.values, one.scale, self.group) for one in found]

    def _true(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return rotated(super()._true(values, scale), self.group)


def _native_product(
    inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, *, bias: torch.Tensor | None, group: int
) -> torch.Tensor:
    """Return inputs times an INT8 weight plus the bias, in the type of the inputs.

    Args:
        inputs: [..., in], bf16 or fp16, not yet rotated.
        values: int8 [out, in].
        scale: float32 [out, 1].
        bias: [out] in the type of the inputs, or None.
        group: of how many inputs each is rotated; 0 where none is.
    """
    import comfy_kitchen

    rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
    found: torch.Tensor = comfy_kitchen.int8_linear(
        inputs, values, scale, bias=bias, out_dtype=inputs.dtype, **rotation
    )
    return found


class Int8Linear(StoredLinear):
    """A Linear layer with weights in int8.

    Attributes:
        values: int8 buffer [out, in]; whole numbers make no Parameter.
        scale: float32 buffer [out, blocks], see `scaled_tensor.dequantize`.
        group: of how many inputs each is rotated; 0 where none is.
    """

    def __init__(
        self,
        values: torch.Tensor,
        scale: torch.Tensor,
        group: int = 0,
        *,
        bias: torch.Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__((values.shape[0], values.shape[1]), bias, compute)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.group = group

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly computed and rotated back."""
        weight = self._stored(torch.float32 if self.group else dtype)
        return rotated(weight, self.group).to(dtype) if self.group else weight

    def _stored(self, dtype: torch.dtype) -> torch.Tensor:
        return dequantize(cast(torch.Tensor, self.values), cast(torch.Tensor, self.scale), dtype)

    def product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the layer's output, multiplied in INT8 where that is asked for and works; see `StoredLinear`.

        Inputs are rotated rather than weights, which takes less memory.
        """
        values, scale = cast(torch.Tensor, self.values), cast(torch.Tensor, self.scale)
        if self.native_matmul and inputs.dtype in HALF and scale.shape[1] == 1:
            return _native_product(inputs, values, scale, bias=bias, group=self.group)
        inputs = rotated(inputs, self.group) if self.group else inputs
        return nn.functional.linear(inputs, self._stored(inputs.dtype), bias)
