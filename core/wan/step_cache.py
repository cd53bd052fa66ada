"""Step cache: steps whose prediction is forecast from those of earlier steps, in place of running the model.

Whether a step can be forecast is decided by its first block, as in first-block caching (chengzeyi, ParaAttention;
diffusers' `FirstBlockCacheConfig`): that block runs in every step, and the others only where what it changes
differs from the last step computed in full. What is forecast is the prediction itself, by a straight line through
the two computed last, of which half is followed (TaylorSeer, Liu et al. 2025, forecasts features by such lines; the
idea of a damped trend is Gardner's and McKenzie's, 1985). Nothing as large as an activation is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


# The first steps lay out the picture and the last one cleans it; neither is forecast.
FIRST_SHARE, MIN_FIRST, LAST = 0.15, 3, 1
MAX_IN_A_ROW = 3
TOKEN_STRIDE = 8  # one token in so many is compared, which costs an eighth of an activation to store
# How much of the line is followed, and never further than its two points are apart: repeating the last prediction (0)
# lags behind, all of the line (1) overshoots.
DAMPING = 0.5


def largest_change(new: Sequence[torch.Tensor], old: Sequence[torch.Tensor]) -> float:
    """Return how much the first block's changes differ from those of an earlier step, of the prompt that does most."""
    pairs = zip(new, old, strict=True)
    # The prompt that changes most decides, since a step is left out for all of them or for none.
    return max(float((now - then).abs().mean() / then.abs().mean().clamp(min=1e-12)) for now, then in pairs)


@dataclass
class StepCache:
    """Predictions and first-block changes of the steps that one run computed in full.

    Attributes:
        threshold: relative change of the first block's contribution below which a step is not
            computed; 0 computes all.
        skipped: how many steps were not computed.
        compare: see `largest_change`; where ranks share the prompts or their tokens, it is of all of them.
    """

    threshold: float
    skipped: int = 0
    compare: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], float] = largest_change
    _forecastable: bool = False
    _skipped_in_a_row: int = 0
    _scale: float = 0.0
    _level: float = 0.0
    _branches: tuple[str, ...] = ()
    _changes: list[torch.Tensor] = field(default_factory=list)
    _predictions: deque[tuple[float, list[torch.Tensor]]] = field(default_factory=lambda: deque(maxlen=2))

    def reset(self, skipped: int = 0) -> None:
        """Return to the state before a model's first step; so many were skipped with another one."""
        self.skipped, self._skipped_in_a_row = skipped, 0
        self.release()

    def release(self) -> None:
        """Drop the tensors: they are on the card."""
        self._changes = []
        self._predictions.clear()

    def begin(
        self, step: int, steps: int, scale: float, level: float, *, branches: tuple[str, ...] = ("prompt", "negative")
    ) -> None:
        """Begin a step.

        Args:
            step: its number, from 0, of `steps`.
            scale: the strength of the control in it.
            level: its noise level, 1..0.
            branches: what it predicts.
        """
        first = max(MIN_FIRST, round(FIRST_SHARE * steps))
        self._forecastable = first <= step < steps - LAST
        # Predictions under another strength say nothing about this one, nor those of other branches in its place.
        if scale != self._scale or branches != self._branches[: len(branches)]:
            self._predictions.clear()
        self._scale, self._level, self._branches = scale, level, branches

    def skips(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
        """Return whether the blocks behind the first one need not run.

        Args:
            before, after: each prompt's tokens [batch, tokens, dim], around the first block.
        """
        pairs = zip(before, after, strict=True)
        changes = [out[:, ::TOKEN_STRIDE] - into[:, ::TOKEN_STRIDE] for into, out in pairs]
        # A line needs two predictions, each for as many prompts as this step asks for.
        known = len(self._predictions) == 2 and all(len(found) >= len(changes) for _, found in self._predictions)
        may_skip = known and self._forecastable and self._skipped_in_a_row < MAX_IN_A_ROW
        if may_skip and self.compare(changes, self._changes[: len(changes)]) < self.threshold:
            self._skipped_in_a_row += 1
            self.skipped += 1
            return True
        self._skipped_in_a_row, self._changes = 0, changes
        return False

    def forecast(self, prompts: int) -> list[torch.Tensor]:
        """Return what the model would predict, for so many prompts."""
        (early, older), (late, newer) = self._predictions
        ahead = DAMPING * min(1.0, (self._level - late) / (late - early))
        pairs = zip(older[:prompts], newer[:prompts], strict=True)
        return [last + ahead * (last - former) for former, last in pairs]

    def add(self, predictions: list[torch.Tensor]) -> None:
        """Store the prediction for each prompt in a step computed in full."""
        self._predictions.append((self._level, predictions))
