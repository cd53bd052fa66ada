"""Predictions of a step: for the prompt, the negative prompt and a weakened model, of the video or of its windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .context import mean_of_windows
from .guidance import PLAIN, Branch, Guidance, skipped_blocks
from .transformer import predict

if TYPE_CHECKING:
    import torch

    from .nag import NAGProcessor
    from .split_attention import SplitAttention
    from .step_cache import StepCache
    from .transformer import Transformer


@dataclass(frozen=True)
class Step:
    """What is asked of the model in a step.

    Attributes:
        index: its number, from 0.
        steps: of the video.
        level: its noise level, 1..0.
        scale: the conditioning scale.
        branches: what is predicted.
        windows: the latent frames of each part that is predicted at once.
    """

    index: int
    steps: int
    level: float
    scale: float
    branches: tuple[Branch, ...]
    windows: tuple[tuple[int, ...], ...]


class Predictor(Protocol):
    """Makes the predictions of steps."""

    def flows(self, step: Step, state: torch.Tensor, when: torch.Tensor) -> list[torch.Tensor]:
        """Return the flow for each branch of a step, of the whole video.

        Args:
            state: what the transformer reads of the latents [1, in_channels, R + T, h, w], in its type.
            when: the timestep [1], or [1, tokens] where each token has its own.
        """


@dataclass(eq=False)
class Prediction:
    """Predictions by one transformer in this process.

    Attributes:
        transformer: ready to compute on the device of what it is given.
        embeds: [1, 512, d] of the prompt, and of the negative prompt where any step reads it.
        control: VACE's condition [1, 2z + 64, T, h, w]; None for models without.
        picture: see `transformer.predict`.
        guidance: what is predicted beside the prompts.
        nag: guides the transformer's cross-attention, see `nag.nag_enabled`.
        cache: forecasts steps that hardly differ; None computes every one.
        in_front: latent frames of references in front of the video, which every window has.
        batched: predict for both prompts in one batch.
        check_cancelled: called before every block; stops the run by raising.
        split: attends to the tokens of all ranks where this one has a share of them; None where it has all.
    """

    transformer: Transformer
    embeds: Sequence[torch.Tensor]
    control: torch.Tensor | None = None
    picture: torch.Tensor | None = None
    guidance: Guidance = PLAIN
    nag: NAGProcessor | None = None
    cache: StepCache | None = None
    in_front: int = 0
    batched: bool = False
    check_cancelled: Callable[[], None] = lambda: None
    split: SplitAttention | None = None

    def flows(self, step: Step, state: torch.Tensor, when: torch.Tensor) -> list[torch.Tensor]:
        """Return the flow for each branch of a step; see `Predictor`."""
        return self.flows_of(step, state, when, step.branches)

    def flows_of(
        self, step: Step, state: torch.Tensor, when: torch.Tensor, branches: Sequence[Branch]
    ) -> list[torch.Tensor]:
        """Return the flow for each of some branches of a step: as the mean of its windows where it has several."""
        if self.cache is not None:
            self.cache.begin(step.index, step.steps, step.scale, step.level, branches=step.branches)
        if not branches:
            return []
        frames = state.shape[2] - self.in_front
        if len(step.windows) == 1 and list(step.windows[0]) == list(range(frames)):
            return self._predict(step, state, when, branches=branches, control=self.control)
        found = []
        for window in step.windows:
            places = [*range(self.in_front), *(self.in_front + place for place in window)]
            # Where each token has a timestep of its own, those of a frame stand together.
            times = when if when.ndim == 1 else when.unflatten(1, (state.shape[2], -1))[:, places].flatten(1)
            shown = None if self.control is None else self.control[:, :, places]
            found.append(self._predict(step, state[:, :, places], times, branches=branches, control=shown))
        return mean_of_windows(found, step.windows, frames, self.in_front)

    def _predict(
        self,
        step: Step,
        state: torch.Tensor,
        when: torch.Tensor,
        *,
        branches: Sequence[Branch],
        control: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        return predict(
            self.transformer,
            state,
            when,
            embeds=[self.embeds[branch == "negative"] for branch in branches],
            control=control,
            skipped=skipped_blocks(self.guidance, branches),
            nag=self.nag,
            negative=self.embeds[-1],
            picture=self.picture,
            scale=step.scale,
            check_cancelled=self.check_cancelled,
            cache=self.cache,
            batched=self.batched and len(branches) == len(step.branches),
            split=self.split,
        )
