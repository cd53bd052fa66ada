"""Steps that are nearly like the one before: what the blocks did then is taken again.

The idea of first-block caching (chengzeyi, ParaAttention; diffusers' `FirstBlockCacheConfig`), for the
interleaved forward with its VACE blocks: the first block runs in every step, and where its change to the
tokens is nearly what it was in the last step computed in full, what all further blocks and hints
added then is added again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The first steps lay out the picture and the last one cleans it; neither is guessed.
FIRST_SHARE, FIRST_LEAST, LAST = 0.15, 2, 1
MOST_IN_A_ROW = 3
EVERY = 8  # one token in so many is compared, which costs an eighth of an activation to remember


@dataclass
class StepCache:
    """What one run remembers of the last step computed in full.

    Attributes:
        threshold: relative change of the first block's contribution below which a step is not
            computed; 0 computes all.
        skipped: how many steps were not computed.
    """

    threshold: float
    skipped: int = 0
    _may: bool = False
    _row: int = 0
    _scale: float = 0.0
    _seen: list[torch.Tensor] = field(default_factory=list)
    _rest: list[torch.Tensor] = field(default_factory=list)

    def clear(self) -> None:
        """Forget everything: the first step comes again."""
        self.skipped = self._row = 0
        self.let_go()

    def let_go(self) -> None:
        """Give back the activations: they are on the card."""
        self._seen, self._rest = [], []

    def begin(self, step: int, steps: int, scale: float) -> None:
        """Tell which step comes, from 0, of how many, and the strength of the control in it."""
        first = max(FIRST_LEAST, round(FIRST_SHARE * steps))
        inside = first <= step < steps - LAST
        # What the blocks added was added with another strength: it says nothing about this step.
        self._may = inside and self._row < MOST_IN_A_ROW and scale == self._scale
        self._scale = scale

    def skips(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
        """Return whether the blocks behind the first one need not run.

        Args:
            before, after: each prompt's tokens [batch, tokens, dim], around the first block.
        """
        now = [(out - into)[:, ::EVERY] for into, out in zip(before, after, strict=True)]
        if self._may and len(self._rest) >= len(now) and self._change(now) < self.threshold:
            self._row += 1
            self.skipped += 1
            return True
        self._row, self._seen, self._rest = 0, now, []
        return False

    def again(self, after: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return each prompt's tokens behind the last block, from those behind the first one."""
        return [tokens + rest for tokens, rest in zip(after, self._rest[: len(after)], strict=True)]

    def keep(self, after: Sequence[torch.Tensor], final: Sequence[torch.Tensor]) -> None:
        """Remember what the blocks behind the first one added."""
        self._rest = [last - first for first, last in zip(after, final, strict=True)]

    def _change(self, now: Sequence[torch.Tensor]) -> float:
        """Return the largest relative change of any prompt, by the mean of absolute values."""
        pairs = zip(now, self._seen[: len(now)], strict=True)
        return max(float((new - old).abs().mean() / old.abs().mean().clamp(min=1e-12)) for new, old in pairs)
