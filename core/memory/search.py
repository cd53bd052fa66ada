"""The largest of a row of sizes that fits, by halving."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], low: int, high: int, step: int) -> int | None:
    """Return the largest of low, low + step, … high for which `fits`; None where not even `low` does.

    What fits must also fit made smaller.
    """
    if not fits(low):
        return None
    below, above = 0, (high - low) // step + 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(low + middle * step) else (below, middle)
    return low + below * step
