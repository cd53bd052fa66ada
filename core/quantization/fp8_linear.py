"""FP8 layers: Linear layers of one byte a weight, computed in the type of the input or multiplied in FP8.

e4m3 has three mantissa bits: a weight is off by up to 1/16 of itself, and a layer of Gaussian
weights by 2.6 % in the root mean square. One scale per output channel takes every row to the top of
e4m3's range, so that no weight is lost to its smallest steps of 2**-9, as happens where weights are
cast as they are.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from . import scaled_tensor
from .base import FP8_TENSOR_CORES
from .scaled_tensor import dequantize
from .stored_linear import StoredLinear

VALUES = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3fn; torch.finfo(torch.float8_e4m3fn).max
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e4m3 values [out, in] and their float32 scale [out, 1].

    The largest weight of each output channel becomes 448; `values * scale` gives the weights back.

    Args:
        weight: [out, in], any floating type, finite.
    """
    return scaled_tensor.quantize(weight, VALUES, LARGEST)


class Fp8Linear(StoredLinear):
    """A Linear layer with weights in float8; multiplying in FP8 adds the rounding of the input to e4m3.

    Attributes:
        values: float8 Parameter [out, in].
        scale: float32 buffer [out, blocks], see `scaled_tensor.dequantize`.
    """

    def __init__(
        self,
        values: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__((values.shape[0], values.shape[1]), bias, compute)
        self.values = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly computed."""
        return dequantize(self.values, cast(torch.Tensor, self.scale), dtype)

    def product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the layer's output, multiplied in FP8 where that is asked for and works; see `StoredLinear`."""
        scale = cast(torch.Tensor, self.scale)
        if self.native_matmul and can_multiply(inputs, self.values, scale):
            return multiply(inputs, self.values, scale, bias)
        return super().product(inputs, bias)


MULTIPLE = 16  # torch._scaled_mm needs K and N divisible by it (torch/_meta_registrations.py)
SMALLEST = 1e-12  # keeps the scale of an all-zero row above 0


def can_multiply(inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> bool:
    """Return whether `multiply` works for these sizes on this device.

    Rowwise scaling gives bf16 alone on a card, and takes one scale per output channel.
    """
    rows, columns = values.shape
    sizes = rows % MULTIPLE == 0 and columns % MULTIPLE == 0 and scale.shape[1] == 1
    types = values.dtype == VALUES and inputs.dtype == torch.bfloat16
    if not (sizes and types):
        return False
    if inputs.device.type == "cpu":
        return True  # slow, and exact in what it computes: for tests
    on_card = inputs.device.type == "cuda"
    return on_card and bool(torch.cuda.get_device_capability(inputs.device) >= FP8_TENSOR_CORES)


def multiply(
    inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return inputs times the weight plus the bias, multiplied in FP8.

    Each row of the input is brought to e4m3 by a scale of its own, found as it comes.

    Args:
        inputs: bf16 [..., in].
        values: e4m3 [out, in].
        scale: float32 [out, 1].
        bias: bf16 [out] or None.

    Returns:
        bf16 [..., out].
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    largest = rows.abs().amax(dim=1, keepdim=True).float()
    row_scale = (largest / LARGEST).clamp_(min=SMALLEST)
    # In place: of a wide layer's input one float32 copy is most of what the layer takes.
    small = rows.float().div_(row_scale).clamp_(-LARGEST, LARGEST).to(VALUES)
    product = torch._scaled_mm(
        small, values.t(), scale_a=row_scale, scale_b=scale.t().contiguous(), bias=bias, out_dtype=inputs.dtype
    )
    return product.reshape(*inputs.shape[:-1], values.shape[0])
