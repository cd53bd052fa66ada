"""Frame rates: exact fractions, resampling to another rate at the same duration, lengths of 4n+1 frames."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import PiyingError, check_choice

if TYPE_CHECKING:
    from fractions import Fraction

    import torch

NEAREST, BLEND = "nearest", "blend"
METHODS = (NEAREST, BLEND)
AS_IT_IS, TRIM, HOLD = "as it is", "trim to 4n+1", "hold to 4n+1"
LENGTHS = (AS_IT_IS, TRIM, HOLD)
FASTEST = 1000


def exact_rate(name: str, fps: float | Fraction) -> Fraction:
    """Return a rate as files hold it (29.97 is 30000/1001).

    Raises:
        PiyingError: it is not above 0 and at most 1000.
    """
    from fractions import Fraction

    # 1001 is the denominator of the NTSC rates, the largest in use. Checked first: infinity is no fraction.
    rate = Fraction(fps).limit_denominator(1001) if 0 < fps <= FASTEST else Fraction(0)
    # Rates below about 1/2000 round to 0, by which callers would divide.
    if not rate:
        raise PiyingError(f"{name} is {float(fps):g}. Allowed: above 0, up to {FASTEST}. Most videos have 16 to 60.")
    return rate


def new_count(count: int, fps: Fraction, to_fps: Fraction) -> int:
    """Return how many frames at `to_fps` it takes to show `count` frames at `fps` to their end."""
    return math.ceil(count * to_fps / fps)


def fitted_count(count: int, length: str) -> int:
    """Return `count`, or the nearest 4n+1 below (trim) or above (hold) it; at least 1."""
    if length == TRIM:
        return max(1, (count - 1) // 4 * 4 + 1)
    return -(-(count - 1) // 4) * 4 + 1 if length == HOLD else count


def change_rate(frames: torch.Tensor, *, fps: float, to_fps: float, method: str, length: str) -> torch.Tensor:
    """Return frames resampled to another rate at the same duration.

    Frame k shows what is on screen from k/to_fps to (k+1)/to_fps seconds: at the beginning of that time
    (`nearest`: no frame is mixed, motion may stutter), or on average over it (`blend`: smooth, softer).

    Args:
        frames: IMAGE [N, H, W, C].
        fps, to_fps: above 0, up to 1000.
        method: one of `METHODS`.
        length: one of `LENGTHS`: leave the count, cut its end to 4n+1 frames, or hold the last frame to 4n+1.

    Raises:
        PiyingError: a rate, method or length that is none.
    """
    import torch

    check_choice("method", method, METHODS)
    check_choice("length", length, LENGTHS)
    source, target = exact_rate("fps", fps), exact_rate("to_fps", to_fps)
    count = new_count(len(frames), source, target)
    wanted = fitted_count(count, length)
    shown = min(wanted, count)
    if method == NEAREST or source == target:
        result = frames[[math.floor(k * source / target) for k in range(shown)]]
    else:
        result = _averages(frames, source / target, shown)
    if wanted > shown:
        result = torch.cat([result, result[-1:].expand(wanted - shown, *frames.shape[1:])])
    return result


def _averages(frames: torch.Tensor, step: Fraction, count: int) -> torch.Tensor:
    """Return the mean of the source over [k·step, (k+1)·step) frames, for every k below `count`."""
    from fractions import Fraction

    result = frames.new_zeros(count, *frames.shape[1:])
    for k in range(count):
        start, end = k * step, (k + 1) * step
        # Overlaps of [start, end) and [i, i+1). The last interval may extend beyond the last frame, hence the sum.
        indices = range(math.floor(start), min(math.ceil(end), len(frames)))
        shares = [min(end, Fraction(index + 1)) - max(start, Fraction(index)) for index in indices]
        for index, share in zip(indices, shares, strict=True):
            result[k] += float(share / sum(shares)) * frames[index]
    return result
