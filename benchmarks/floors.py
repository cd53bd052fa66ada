"""Roofline of a machine: measured rates, and the least time of arithmetic and weight reads at these rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from measuring import is_card, seconds

SIDE = 2048  # of the matrices multiplied
# On a card: a product of the smaller ones takes 20 µs there, no longer than the host takes to call and wait for it.
CARD_SIDE = 8192
COPIED = 256 * 2**20  # bytes
TIMES = 8  # the best of so many counts


@dataclass(frozen=True)
class Rates:
    """Operations and bytes a second."""

    flops: float
    bandwidth: float

    def floor(self, flops: float, read: float) -> float:
        """Return the seconds that so many operations, or reading so many bytes, take at least."""
        return max(flops / self.flops, read / self.bandwidth)

    def or_better(self, other: Rates) -> Rates:
        """Return the better of two measurements: other programs make a machine slower, never faster."""
        return Rates(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


def rates(device: str) -> Rates:
    """Measure a device: a matrix product in the number type it samples in, and a copy."""
    side, dtype = (CARD_SIDE, torch.bfloat16) if is_card(device) else (SIDE, torch.float32)
    one = torch.randn(side, side, device=device, dtype=dtype)
    given = torch.ones(COPIED // 4, device=device)
    taken = torch.empty_like(given)
    one @ one
    taken.copy_(given)  # pages that were never touched are slow
    product = min(seconds(lambda: one @ one, device) for _ in range(TIMES))
    copy = min(seconds(lambda: taken.copy_(given), device) for _ in range(TIMES))
    return Rates(2 * side**3 / product, 2 * COPIED / copy)  # a copy reads and writes
