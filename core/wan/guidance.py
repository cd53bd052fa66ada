"""Guidance: what a step follows, made of predictions for the prompt, the negative prompt and a weakened model.

The methods are diffusers' guiders: CFG-Zero* (Fan et al. 2025, arXiv 2503.18886), adaptive projected guidance (APG,
Sadat et al. 2024, arXiv 2410.02416), tangential damping (TCFG, Kwon et al. 2025, arXiv 2503.18137), and skip-layer
guidance (SLG, as in Stability-AI/sd3.5).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import PiyingError

if TYPE_CHECKING:
    import torch

GuidanceMethod = Literal["cfg", "cfg_zero_star", "apg", "tcfg"]
# A prediction: for the prompt, for the negative prompt, and for the prompt with blocks left out.
Branch = Literal["prompt", "negative", "skipped"]
METHODS: tuple[GuidanceMethod, ...] = get_args(GuidanceMethod)
MAX_CFG = 30.0  # as of the cfg widget
MAX_NAG = 100.0
MAX_BLOCK = 999
# Published with NAG for Wan (ChenDarYen/Normalized-Attention-Guidance).
NAG_TAU, NAG_ALPHA = 2.5, 0.25


@dataclass(frozen=True)
class Guidance:
    """How a video is guided beside the scale `cfg`.

    Attributes:
        method: one of `METHODS`.
        cfg_steps: the scale of each step, the last for all that follow; empty for one scale.
        nag_scale: of normalized attention guidance, by which the negative prompt counts at cfg 1 too; 1 is off.
        nag_tau, nag_alpha: how far its norm may grow, and its share of the result.
        slg_scale: how strongly a step turns from what the model predicts without some of its blocks; 0 is off.
        slg_blocks: the numbers of those main blocks, from 0.
        slg_start, slg_end: shares of the steps between which that is done, 0..1.
    """

    method: GuidanceMethod = "cfg"
    cfg_steps: tuple[float, ...] = ()
    nag_scale: float = 1.0
    nag_tau: float = NAG_TAU
    nag_alpha: float = NAG_ALPHA
    slg_scale: float = 0.0
    slg_blocks: tuple[int, ...] = ()
    slg_start: float = 0.1
    slg_end: float = 1.0

    @property
    def has_nag(self) -> bool:
        """Whether cross-attention is guided."""
        return self.nag_scale > 1

    @property
    def skips_blocks(self) -> bool:
        """Whether some steps predict once more, without some blocks."""
        return self.slg_scale > 0 and bool(self.slg_blocks)

    def cfg_at(self, step: int, cfg: float) -> float:
        """Return the scale of a step, from 0, whose widget says `cfg`."""
        return self.cfg_steps[min(step, len(self.cfg_steps) - 1)] if self.cfg_steps else cfg

    def branches(self, step: int, steps: int, cfg: float) -> tuple[Branch, ...]:
        """Return what a step of that scale predicts."""
        skips = self.skips_blocks and self.slg_start <= step / steps < self.slg_end
        negative: tuple[Branch, ...] = ("negative",) if cfg > 1 else ()
        return ("prompt", *negative, *(("skipped",) if skips else ()))

    def notes(self, steps: int, cfg: float) -> list[str]:
        """Return what it adds to the steps of a video whose widget says `cfg`, or fails to change, a sentence each."""
        skipping = sum("skipped" in self.branches(step, steps, cfg) for step in range(steps))
        found = []
        if self.slg_blocks and not self.slg_scale:
            found.append("slg_blocks is without effect: slg_scale is 0.")
        elif self.skips_blocks and not skipping:
            found.append(f"slg_blocks is without effect: of {steps} steps none is between slg_start and slg_end.")
        elif skipping:
            found.append(f"slg_blocks: {skipping} of {steps} steps predict once more, without those blocks.")
        if self.has_nag:
            found.append("nag_scale: attention reads the negative prompt too, in every block.")
        if self.method != "cfg" and max(self.cfg_steps or (cfg,)) <= 1:
            found.append(f"method {self.method} is without effect: cfg is 1.")
        return found


PLAIN = Guidance()


def listed_words(text: str) -> list[str]:
    """Return the words of a list, between spaces and commas, those of a Chinese keyboard too."""
    return re.sub("[,，、]", " ", text).split()


def parse_scales(text: str) -> tuple[float, ...]:
    """Return the scales in a text such as "6, 5, 4, 1"; none where it is empty.

    Raises:
        PiyingError: it holds something that is no scale.
    """
    found = []
    for word in listed_words(text):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 1 <= value <= MAX_CFG:
            raise PiyingError(
                f"cfg_steps holds {word!r}. Write the cfg of each step, from 1 to {MAX_CFG:g}, such as 6, 5, 4, 1; "
                "the last one holds for the rest."
            )
        found.append(value)
    return tuple(found)


def parse_blocks(text: str) -> tuple[int, ...]:
    """Return the numbers in a text such as "9, 10"; none where it is empty.

    Raises:
        PiyingError: it holds something that is no number of a block.
    """
    found = []
    for word in listed_words(text):
        if not (word.isascii() and word.isdecimal() and int(word) <= MAX_BLOCK):
            raise PiyingError(
                f"slg_blocks holds {word!r}. Write numbers of main blocks, from 0, such as 9 or 9, 10; or leave it "
                "empty."
            )
        found.append(int(word))
    return tuple(dict.fromkeys(found))


def check_range(start: float, end: float) -> None:
    """Accept the shares of the steps between which blocks are left out.

    Raises:
        PiyingError: they are no range within 0..1.
    """
    if not 0 <= start < end <= 1:
        raise PiyingError(
            f"slg_start is {start:g} and slg_end {end:g}. Choose a start below the end, both from 0 to 1; for no "
            "skip-layer guidance leave slg_blocks empty."
        )


def check_blocks(guidance: Guidance, count: int) -> None:
    """Accept blocks to leave out of a model with `count` main blocks.

    Raises:
        PiyingError: the model has no such block, or no others.
    """
    if not guidance.skips_blocks:
        return
    beyond = [block for block in guidance.slg_blocks if block >= count]
    if beyond:
        raise PiyingError(f"slg_blocks holds {beyond[0]}, and the main blocks of this model are 0 to {count - 1}.")
    if len(guidance.slg_blocks) == count:
        raise PiyingError(f"slg_blocks holds all {count} blocks of this model. Leave one or two of them out.")


class Guider:
    """The guidance of one run, which may remember steps before."""

    def __init__(self, guidance: Guidance, steps: int) -> None:
        self.guidance, self.steps = guidance, steps
        self._method = _of_diffusers(guidance.method)

    def flow(self, step: int, cfg: float, predictions: Mapping[Branch, torch.Tensor]) -> torch.Tensor:
        """Return the flow that a step follows.

        Args:
            step: from 0.
            cfg: its scale; at 1 the negative prompt is not asked for.
            predictions: of `Guidance.branches`.
        """
        prompt, negative = predictions["prompt"], predictions.get("negative")
        flow = prompt
        if negative is not None and self._method is None:
            flow = negative + cfg * (prompt - negative)
        elif negative is not None:
            self._method.guidance_scale = cfg
            self._method.set_state(step, self.steps, None)
            flow = self._method.forward(prompt.float(), negative.float()).pred.to(prompt.dtype)
        if "skipped" in predictions:
            flow = flow + self.guidance.slg_scale * (prompt - predictions["skipped"])
        return flow


def _of_diffusers(method: GuidanceMethod) -> Any:
    """Return the guider that combines the predictions for both prompts; None for plain classifier-free guidance."""
    from diffusers import (
        AdaptiveProjectedGuidance,
        ClassifierFreeZeroStarGuidance,
        TangentialClassifierFreeGuidance,
    )

    # Each new one warns that their interface may change, which is nothing to a creator.
    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)
    if method == "cfg_zero_star":
        return ClassifierFreeZeroStarGuidance(zero_init_steps=1)
    if method == "apg":
        # Without the part along the prediction, which saturates colours. A limit of the norm is published for the
        # latents of pictures, whose norm is another.
        return AdaptiveProjectedGuidance(eta=0.0, adaptive_projected_guidance_rescale=0.0)
    if method == "tcfg":
        return TangentialClassifierFreeGuidance()
    return None


def skipped_blocks(guidance: Guidance, branches: Sequence[Branch]) -> list[frozenset[int]]:
    """Return the main blocks that each branch leaves out."""
    return [frozenset(guidance.slg_blocks if branch == "skipped" else ()) for branch in branches]
