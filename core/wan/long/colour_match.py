"""Colours that stay: what one window is brought to, so that they do not drift over many.

The model and the VAE shift brightness and contrast a little each time frames go through them. Both
are seen where two windows have the same frames, and taken back in the later one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# A contrast that differs by more is another picture, not a drift.
LEAST_GAIN, MOST_GAIN = 0.5, 2.0


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of each channel, float32 [3], of values in 0..1."""

    mean: torch.Tensor
    spread: torch.Tensor


def colours_of(frames: torch.Tensor) -> Colours:
    """Return the colours of frames [n, h, w, 3]."""
    flat = frames.reshape(-1, 3)
    return Colours(flat.mean(0), flat.std(0, correction=0))


def colours_of_all(frames: Iterable[npt.NDArray[np.uint8]]) -> Colours:
    """Return the colours of uint8 frames [h, w, 3] of which one is in memory at a time."""
    each = [colours_of(torch.from_numpy(frame).float() / 255) for frame in frames]
    means = torch.stack([colours.mean for colours in each])
    squares = torch.stack([colours.mean**2 + colours.spread**2 for colours in each])
    mean = means.mean(0)
    return Colours(mean, (squares.mean(0) - mean**2).clamp(min=0).sqrt())


def moved(frames: torch.Tensor, now: Colours, wanted: Colours, strength: float | torch.Tensor) -> torch.Tensor:
    """Return frames [n, h, w, 3] with their colours moved from `now` to `wanted`.

    Each channel is scaled and shifted (Reinhard et al., Color Transfer between Images, 2001, in RGB,
    where a shift of white stays one).

    Args:
        strength: how far, 0..1; one number, or one per frame [n].
    """
    gain = (wanted.spread / now.spread.clamp(min=1e-6)).clamp(LEAST_GAIN, MOST_GAIN)
    there = (frames - now.mean) * gain + wanted.mean
    far = torch.as_tensor(strength, dtype=frames.dtype).reshape(-1, 1, 1, 1)
    return torch.lerp(frames, there, far.expand_as(frames)).clamp(0, 1)


def matched(frames: torch.Tensor, before: torch.Tensor, strength: float, over: int) -> torch.Tensor:
    """Return a window's frames that begin with the colours of those shared with the window before.

    What is moved at the seam fades out evenly, so that the window ends as the model made it. Kept up to the end,
    each window would begin with what the ones before it have drifted, and the model could never go back to the
    colours of the prompt by itself (docs/long_video.md has the figures).

    Args:
        frames: [n, h, w, 3] as the model made them, its version of the shared ones first.
        before: [m, h, w, 3], the shared ones as they were.
        strength: how far at the seam, 0..1.
        over: how many frames after the shared ones it takes to fade out.
    """
    ramp = torch.ones(len(frames))
    ramp[len(before) :] -= torch.arange(1, len(frames) - len(before) + 1) / over
    return moved(frames, colours_of(frames[: len(before)]), colours_of(before), strength * ramp.clamp(min=0))


def pulled_back(frames: torch.Tensor, shared: int, end: int, wanted: Colours) -> torch.Tensor:
    """Return a window's frames led to the colours `wanted` towards its end; those shared with the one before stay.

    Args:
        frames: [n, h, w, 3].
        shared: how many of them the window before has too.
        end: how many of the last ones tell where the colours have come to.
        wanted: the first window's.
    """
    ramp = torch.zeros(len(frames))
    ramp[shared:] = torch.linspace(0, 1, len(frames) - shared + 1)[1:]
    return moved(frames, colours_of(frames[-end:]), wanted, ramp)
