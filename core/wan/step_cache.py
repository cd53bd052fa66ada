"""Steps that can be foretold: what the model would predict is forecast from the steps before.

When a step may be foretold is told by its first block, as in first-block caching (chengzeyi, ParaAttention;
diffusers' `FirstBlockCacheConfig`): that block runs in every step, and the others only where what it changes
differs from the last step computed in full. What is foretold is the prediction itself, by a straight line through
the two computed last, of which half is followed (TaylorSeer, Liu et al. 2025, forecasts features by such lines; the
idea of a damped trend is Gardner's and McKenzie's, 1985). Nothing as large as an activation is remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


# The first steps lay out the picture and the last one cleans it; neither is guessed.
FIRST_SHARE, FIRST_LEAST, LAST = 0.15, 3, 1
MOST_IN_A_ROW = 3
EVERY = 8  # one token in so many is compared, which costs an eighth of an activation to remember
# How much of the line is followed, and never further than its two points are apart: repeating the last prediction (0)
# lags behind, all of the line (1) overshoots.
DAMPING = 0.5


@dataclass
class StepCache:
    """What one run remembers of the steps computed in full.

    Attributes:
        threshold: relative change of the first block's contribution below which a step is not
            computed; 0 computes all.
        skipped: how many steps were not computed.
    """

    threshold: float
    skipped: int = 0
    _inside: bool = False
    _row: int = 0
    _scale: float = 0.0
    _level: float = 0.0
    _seen: list[torch.Tensor] = field(default_factory=list)
    _made: deque[tuple[float, list[torch.Tensor]]] = field(default_factory=lambda: deque(maxlen=2))

    def clear(self) -> None:
        """Forget everything: the first step comes again."""
        self.skipped = self._row = 0
        self.let_go()

    def let_go(self) -> None:
        """Give back the tensors: they are on the card."""
        self._seen = []
        self._made.clear()

    def begin(self, step: int, steps: int, scale: float, level: float) -> None:
        """Tell what comes.

        Args:
            step: its number, from 0, of `steps`.
            scale: the strength of the control in it.
            level: its noise level, 1..0.
        """
        first = max(FIRST_LEAST, round(FIRST_SHARE * steps))
        self._inside = first <= step < steps - LAST
        if scale != self._scale:
            self._made.clear()  # predictions under another strength say nothing about this one
        self._scale, self._level = scale, level

    def skips(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
        """Return whether the blocks behind the first one need not run.

        Args:
            before, after: each prompt's tokens [batch, tokens, dim], around the first block.
        """
        now = [out[:, ::EVERY] - into[:, ::EVERY] for into, out in zip(before, after, strict=True)]
        if self._may(len(now)) and self._change(now) < self.threshold:
            self._row += 1
            self.skipped += 1
            return True
        self._row, self._seen = 0, now
        return False

    def forecast(self, prompts: int) -> list[torch.Tensor]:
        """Return what the model would predict, for so many prompts."""
        (early, older), (late, newer) = self._made
        ahead = DAMPING * min(1.0, (self._level - late) / (late - early))
        pairs = zip(older[:prompts], newer[:prompts], strict=True)
        return [last + ahead * (last - former) for former, last in pairs]

    def keep(self, predictions: list[torch.Tensor]) -> None:
        """Remember the prediction for each prompt in a step computed in full."""
        self._made.append((self._level, predictions))

    def _may(self, prompts: int) -> bool:
        """Whether a forecast is allowed now, and two predictions for as many prompts are there to make it from."""
        known = len(self._made) == 2 and all(len(predictions) >= prompts for _, predictions in self._made)
        return known and self._inside and self._row < MOST_IN_A_ROW

    def _change(self, now: Sequence[torch.Tensor]) -> float:
        """Return the largest relative change of any prompt, by the mean of absolute values."""
        pairs = zip(now, self._seen[: len(now)], strict=True)
        return max(float((new - old).abs().mean() / old.abs().mean().clamp(min=1e-12)) for new, old in pairs)
