"""Generation as it is seen: a step for each token, the text while it grows, a stop where it goes in circles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .checks import loops

if TYPE_CHECKING:
    import torch
    from transformers import StoppingCriteria

    from ..host.base import Progress

SECONDS_BETWEEN_TEXTS = 0.1
TOKENS_BETWEEN_LOOKS = 16
SHORTEST_LOOP = 32  # tokens


def watch(progress: Progress, start: int, decode: Callable[[torch.Tensor], str]) -> StoppingCriteria:
    """Return a criterion that reports each token, and stops `generate` only when the answer repeats itself.

    Args:
        progress: told of every token; stops the run by raising from `step`.
        start: length of the chat in tokens; the answer begins behind it.
        decode: tokens of the answer so far → its text.
    """
    import torch
    from transformers import StoppingCriteria

    class Watch(StoppingCriteria):  # type: ignore[misc]
        shown = 0.0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            done = input_ids.shape[1] - start
            progress.step(done)
            now = time.monotonic()
            if now - self.shown >= SECONDS_BETWEEN_TEXTS:
                self.shown = now
                progress.text(decode(input_ids[0, start:]))
            stop = done % TOKENS_BETWEEN_LOOKS == 0 and done >= SHORTEST_LOOP and loops(input_ids[0, start:].tolist())
            return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)

    return Watch()
