"""GGUF packing: weights in blocks of GGUF's types, as ggml's reference quantizers make them, in torch.

The reference: quantize_row_*_ref, make_qx_quants and make_qkx2_quants in ggml-quants.c of ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .gguf_blocks import BY_NAME
from .stored_tensor import PIECE

if TYPE_CHECKING:
    import torch

LARGEST_SCALE = 63  # of 32 weights in Q4_K and Q5_K: six bits
LEAST = 1e-15  # blocks whose numbers are all smaller are zeros


def packed(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """Return a weight [out, in] in one of `PACKERS`, uint8 [out, bytes of a row].

    Args:
        weight: any floating type, its rows whole blocks of the type.
    """
    import torch

    kind = BY_NAME[type_name]
    rows, columns = weight.shape
    found = torch.empty(rows, columns // kind.weights, kind.bytes, dtype=torch.uint8, device=weight.device)
    step = max(1, PIECE // max(1, columns))
    for part, target in zip(weight.split(step), found.split(step), strict=True):
        blocks = part.float().reshape(-1, kind.weights)
        target.copy_(PACKERS[type_name](blocks).view(target.shape))
    return found.flatten(1)


def _half(scale: torch.Tensor) -> torch.Tensor:
    """The two bytes of a scale [n, 1] in fp16."""
    import torch

    return scale.half().view(torch.uint8)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(scale == 0, 0.0, 1 / scale)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """The scale of each block, and a byte for each weight."""
    import torch

    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    # ggml rounds halves away from zero here, torch to the even neighbour.
    size = scaled.abs()
    whole = size.floor()
    whole += size.sub_(whole).mul_(2).floor_()
    return torch.cat((_half(scale), whole.copysign_(scaled).to(torch.int8).view(torch.uint8)), dim=1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """The scale, by which the weight farthest from 0 is -8, and a byte for the weights i and i + 16."""
    import torch

    scale = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True)) / -8
    codes = (blocks * _inverse(scale) + 8.5).clamp_(0, 15).to(torch.uint8)  # cuts, as ggml does
    low, high = codes.chunk(2, dim=1)
    return torch.cat((_half(scale), low | high << 4), dim=1)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Scale and minimum of the block and, in six bits, of each 32 weights; a byte for the weights i and i + 32."""
    import torch

    head, codes = _scaled_minima(blocks, largest=15, first=-1.0, steps=20)
    low, high = codes.view(len(blocks), 4, 2, 32).unbind(dim=2)
    return torch.cat((head, (low | high << 4).flatten(1)), dim=1)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """The same, with the fifth bits of the weights i, i + 32, i + 64, … in a byte before the others."""
    import torch

    head, codes = _scaled_minima(blocks, largest=31, first=-0.5, steps=15)
    codes = codes.view(len(blocks), 8, 32)
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    fifth = ((codes >> 4) << places).sum(dim=1, dtype=torch.uint8)
    low, high = (codes & 15).view(len(blocks), 4, 2, 32).unbind(dim=2)
    return torch.cat((head, fifth, (low | high << 4).flatten(1)), dim=1)


def _scaled_minima(blocks: torch.Tensor, largest: int, first: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 16 bytes with which blocks of Q4_K and Q5_K begin, and their codes, uint8 [n, 256].

    A weight is d · s · code - m · t, with s and t of its 32.

    Args:
        largest: code.
        first, steps: see `_search`.
    """
    import torch

    groups = blocks.view(-1, 8, 32)
    scales, minima = _search(groups, largest, first, steps)
    d, m = (one.amax(dim=1, keepdim=True) for one in (scales, minima))
    own = [
        (LARGEST_SCALE * _inverse(top) * one).round().clamp(max=LARGEST_SCALE)
        for one, top in ((scales, d), (minima, m))
    ]
    d, m = ((top / LARGEST_SCALE).half() for top in (d, m))
    scale, shift = (top.float() * one for top, one in zip((d, m), own, strict=True))
    codes = ((groups + shift.unsqueeze(2)) * _inverse(scale).unsqueeze(2)).round_().clamp_(0, largest)
    s, t = (one.to(torch.uint8) for one in own)
    six_bits = (s[:, :4] | (s[:, 4:] >> 4) << 6, t[:, :4] | (t[:, 4:] >> 4) << 6, s[:, 4:] & 15 | (t[:, 4:] & 15) << 4)
    return torch.cat((_half(d), _half(m), *six_bits), dim=1), codes.to(torch.uint8).flatten(1)


def _search(groups: torch.Tensor, largest: int, first: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of groups, each [n, groups], with which they lose least by weighted squares.

    ggml's make_qkx2_quants: codes are made with several scales, and of each the best scale and minimum for those codes
    are computed; larger weights count more.

    Args:
        groups: [n, groups, weights].
        largest: code.
        first: what is added to it in the first scale that is tried.
        steps: how many more are tried, each 0.1 further.
    """
    import torch

    weights = groups.square().mean(dim=2, keepdim=True).sqrt() + groups.abs()
    low, high = groups.amin(dim=2, keepdim=True).clamp(max=0), groups.amax(dim=2, keepdim=True)
    span = high - low
    sums, of_groups = (weights.sum(2, True), (weights * groups).sum(2, True))
    scale, shift = span / largest, low
    lost = _lost(
        groups, weights, ((groups - low) * _inverse(scale)).round_().clamp_(0, largest), scale=scale, shift=shift
    )
    for step in range(steps + 1):
        codes = ((groups - low) * ((first + 0.1 * step + largest) * _inverse(span))).round_().clamp_(0, largest)
        weighted = weights * codes
        ones, squares, products = (
            weighted.sum(2, True),
            (weighted * codes).sum(2, True),
            (weighted * groups).sum(2, True),
        )
        divisor = sums * squares - ones.square()
        own = (sums * products - of_groups * ones) * _inverse(divisor)
        least = (squares * of_groups - ones * products) * _inverse(divisor)
        own = torch.where(least > 0, products * _inverse(squares), own)
        least = least.clamp(max=0)
        now = _lost(groups, weights, codes, scale=own, shift=least)
        better = (divisor > 0) & (now < lost)
        lost, scale, shift = (torch.where(better, *pair) for pair in ((now, lost), (own, scale), (least, shift)))
    return torch.where(span == 0, 0.0, scale).squeeze(2), -shift.squeeze(2)


def _lost(
    groups: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, *, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    return (scale * codes + shift - groups).square_().mul_(weights).sum(2, True)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """Four bits of each weight, two of each, a scale of 8 bits for each 16, and the block's scale."""
    import torch

    groups = blocks.view(-1, 16, 16)
    scales = _symmetric_scale(groups, 32)
    top = scales.gather(1, scales.abs().argmax(dim=1, keepdim=True))
    is_zero = top.abs() < LEAST
    inverse = torch.where(is_zero, 0.0, -128 / top)
    d = _inverse(inverse).half()
    own = (inverse * scales).round().clamp(max=127)
    codes = (groups * _inverse(d.float() * own).unsqueeze(2)).round_().clamp_(-32, 31).add_(32)
    codes = codes.to(torch.uint8).view(-1, 2, 4, 32)  # the weights i, i + 32, i + 64 and i + 96 of each half
    first, second, third, fourth = (codes & 15).unbind(dim=2)
    low = torch.stack((first | third << 4, second | fourth << 4), dim=2)
    places = 2 * torch.arange(4, dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    high = ((codes >> 4) << places).sum(dim=2, dtype=torch.uint8)
    parts = (low.flatten(1), high.flatten(1), own.to(torch.int8).view(torch.uint8), _half(d))
    return torch.where(is_zero, 0, torch.cat(parts, dim=1)).to(torch.uint8)


def _symmetric_scale(groups: torch.Tensor, largest: int) -> torch.Tensor:
    """Return the scale of each group [n, groups] without a minimum, ggml's make_qx_quants with squares for weights."""
    import torch

    top = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    inverse = torch.where(top.abs() < LEAST, 0.0, 1 / top)
    weights = groups.square()
    best = scale = torch.zeros_like(top)
    for step in (0, *range(-9, 0), *range(1, 10)):
        codes = (groups * (-(largest + 0.1 * step) * inverse)).round_().clamp_(-largest, largest - 1)
        weighted = weights * codes
        products, squares = (weighted * groups).sum(2, True), (weighted * codes).sum(2, True)
        own = products * _inverse(squares)
        better = own * products > best
        best, scale = torch.where(better, own * products, best), torch.where(better, own, scale)
    return scale.squeeze(2)


PACKERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q4_K": _q4_k,
    "Q4_0": _q4_0,
}
