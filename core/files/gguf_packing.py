"""GGUF packing: weights in blocks of GGUF's types, as ggml's reference quantizers make them, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .gguf_blocks import BY_NAME
from .stored_tensor import PIECE

if TYPE_CHECKING:
    import torch


def packed_q8_0(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight [out, in] in Q8_0, uint8 [out, bytes of a row], as ggml's `quantize_row_q8_0_ref` does.

    Args:
        weight: any floating type, its rows whole blocks of 32.
    """
    return _packed(weight, "Q8_0", _q8_0)


def packed_q4_0(weight: torch.Tensor) -> torch.Tensor:
    """Return the same in Q4_0, as ggml's `quantize_row_q4_0_ref` does."""
    return _packed(weight, "Q4_0", _q4_0)


def _packed(
    weight: torch.Tensor, type_name: str, pack: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    import torch

    kind = BY_NAME[type_name]
    rows, columns = weight.shape
    packed = torch.empty(rows, columns // kind.weights, kind.bytes, dtype=torch.uint8, device=weight.device)
    step = max(1, PIECE // max(1, columns))
    for part, target in zip(weight.split(step), packed.split(step), strict=True):
        scale, codes = pack(part.float().reshape(len(part), -1, kind.weights))
        target[..., :2] = scale.half().view(torch.uint8)
        target[..., 2:] = codes
    return packed.flatten(1)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(scale == 0, 0.0, 1 / scale)


def _q8_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of each block, and a byte for each weight."""
    import torch

    scale = blocks.abs().amax(dim=2, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    # ggml rounds halves away from zero, torch to the even neighbour.
    size = scaled.abs()
    whole = size.floor()
    whole += size.sub_(whole).mul_(2).floor_()
    return scale, whole.copysign_(scaled).to(torch.int8).view(torch.uint8)


def _q4_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale, by which the weight farthest from 0 is -8, and a byte for the weights i and i + 16."""
    import torch

    scale = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True)) / -8
    codes = (blocks * _inverse(scale) + 8.5).clamp_(0, 15).to(torch.uint8)  # cuts, as ggml does
    low, high = codes.chunk(2, dim=2)
    return scale, low | high << 4


PACKERS = {"Q8_0": packed_q8_0, "Q4_0": packed_q4_0}
