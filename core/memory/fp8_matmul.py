"""Matrix products in FP8, for cards whose tensor cores have them."""

from __future__ import annotations

import torch

VALUES = torch.float8_e4m3fn
LARGEST = 448.0
MULTIPLE = 16  # torch._scaled_mm needs K and N divisible by it (torch/_meta_registrations.py)
FIRST_CAPABILITY = (8, 9)  # Ada; older cards store FP8 but cannot multiply it
SMALLEST = 1e-12  # keeps the scale of an all-zero row above 0


def can_multiply(inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> bool:
    """Return whether `multiply` works for these sizes on this device.

    Rowwise scaling gives bf16 alone on a card, and takes one scale per output channel.
    """
    rows, columns = values.shape
    sizes = rows % MULTIPLE == 0 and columns % MULTIPLE == 0 and scale.shape[1] == 1
    types = values.dtype == VALUES and inputs.dtype == torch.bfloat16
    return bool(sizes and types) and _has_fp8(inputs.device)


def _has_fp8(device: torch.device) -> bool:
    if device.type == "cpu":
        return True  # slow, and exact in what it computes: for tests
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY)


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
    small = (rows.float() / row_scale).clamp_(-LARGEST, LARGEST).to(VALUES)
    product = torch._scaled_mm(
        small, values.t(), scale_a=row_scale, scale_b=scale.t().contiguous(), bias=bias, out_dtype=inputs.dtype
    )
    return product.reshape(*inputs.shape[:-1], values.shape[0])
