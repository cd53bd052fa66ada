"""Context windows: a video longer than a model was trained on, sampled at once in overlapping parts of each step.

Each step predicts the flow window by window and takes their mean, weighted to the middle of each, as AnimateDiff's
sliding context does. FreeNoise (Qiu et al. 2023, arXiv 2310.15169) has the noise behind the first window be that of
the window in another order, so that windows agree. RIFLEx (Zhao et al. 2025, arXiv 2502.15894) slows the one temporal
frequency of the rotary embedding that would repeat. A loop has the windows go on from the last frame to the first,
and begin elsewhere in each step (the latent shift of Mobius, Bi et al. 2025, arXiv 2502.20307).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from .latents import FRAME_STEP, latent_frames

if TYPE_CHECKING:
    import torch

    from .transformer import Transformer

MAX_FREQUENCY = 64
DEFAULT_RIFLEX = 6  # of Wan2.1 (thu-ml/RIFLEx)
# The slowed frequency turns less than once in the video.
LESS_THAN_A_TURN = 0.9
LOOP_LEAD = 3  # latent frames of its end that a loop is decoded behind: as far back as the decoder reads
SHIFT_EACH_STEP = 4  # latent frames by which a loop begins further on


@dataclass(frozen=True)
class Context:
    """How a video is parted while it is sampled.

    Attributes:
        window: frames of a window, 4n+1; 0: the whole video at once.
        overlap: frames that neighbouring windows share, a multiple of 4.
        free_noise: whether the noise behind the first window is made of its own.
        riflex: the number of the temporal frequency that is slowed, from 1; 0: none.
        loop: whether the video leads from its end to its beginning.
    """

    window: int = 0
    overlap: int = 0
    free_noise: bool = False
    riflex: int = 0
    loop: bool = False

    @property
    def parts(self) -> bool:
        """Whether a step may predict other frames, or more often, than once from the first to the last."""
        return bool(self.window or self.loop)

    def length(self, frames: int) -> int:
        """Return how many of so many latent frames are predicted at once."""
        return min(frames, latent_frames(self.window)) if self.window else frames

    def frames_at_once(self, num_frames: int) -> int:
        """Return how many of so many frames are predicted at once."""
        return min(num_frames, self.window) if self.window else num_frames

    def frames_given(self, num_frames: int) -> int:
        """Return the frames of the video where so many are asked for; a loop has four for each latent frame."""
        return FRAME_STEP * latent_frames(num_frames) if self.loop else num_frames

    def windows(self, frames: int, step: int) -> list[list[int]]:
        """Return the latent frames of each window of a step, from 0, of so many in all."""
        length, shared = self.length(frames), self.overlap // FRAME_STEP
        starts = list(range(0, frames if self.loop else max(1, frames - length + 1), max(1, length - shared)))
        if self.loop:
            shift = step * SHIFT_EACH_STEP
            starts = starts if length < frames else [0]
            return [[(start + shift + place) % frames for place in range(length)] for start in starts]
        if starts[-1] + length < frames:
            starts.append(frames - length)
        return [list(range(start, start + length)) for start in starts]

    def notes(self, frames: int) -> list[str]:
        """Return what it does to a video of so many latent frames, a sentence each."""
        count = len(self.windows(frames, 0))
        notes = [f"context: each step predicts {count} windows of {self.window} frames."] if count > 1 else []
        if self.window and count == 1:
            notes.append(f"context: window {self.window} holds the whole video: there is one.")
        if self.loop:
            notes.append(f"context: the loop has {FRAME_STEP * frames} frames, {FRAME_STEP} for each latent frame.")
        return notes


PLAIN = Context()


def check_window(window: int, overlap: int) -> None:
    """Accept the frames of a window and those that neighbours share.

    Raises:
        PiyingError: they are no window, or share too much.
    """
    if window and (window < 1 + FRAME_STEP or window % FRAME_STEP != 1):
        raise PiyingError(
            f"window is {window}. Choose 4n+1 frames, such as 49 or 81, or 0 for the whole video at once."
        )
    if overlap % FRAME_STEP or overlap < 0:
        raise PiyingError(f"overlap is {overlap}. Choose a multiple of {FRAME_STEP}, such as 16 or 32.")
    largest = window - 1
    if window and overlap >= largest:
        raise PiyingError(f"overlap is {overlap}, and window {window}. Choose an overlap below {largest}.")


def weights(length: int) -> list[float]:
    """Return how much each frame of a window counts in the mean: most in the middle, as ComfyUI's pyramid."""
    half = [1.0 + place for place in range((length + 1) // 2)]
    return half + half[: length // 2][::-1]


def free_noise(noise: torch.Tensor, context: Context, generator: torch.Generator, in_front: int = 0) -> torch.Tensor:
    """Return noise [1, z, T, h, w] whose frames behind the first window are its own in another order.

    Args:
        generator: continues the one that the noise came from.
        in_front: latent frames of references, which stay.
    """
    import torch

    frames = noise.shape[2] - in_front
    length = context.length(frames)
    step = max(1, length - context.overlap // FRAME_STEP)
    made = noise.clone()
    for start in range(length, frames, step):
        count = min(step, frames - start)
        order = torch.randperm(step, generator=generator)[:count] + in_front + start - length
        made[:, :, in_front + start : in_front + start + count] = made[:, :, order]
    return made


@contextmanager
def riflex_enabled(transformer: Transformer, context: Context, frames: int) -> Iterator[None]:
    """Have a rotary embedding turn less than once in so many latent frames inside the `with` block, where asked for.

    Raises:
        PiyingError: the model has no such frequency.
    """
    if not context.riflex:
        yield
        return
    import torch

    rope: Any = transformer.rope
    check_frequency(context.riflex, temporal_frequencies(transformer.config["attention_head_dim"]))
    before = rope.freqs_cos, rope.freqs_sin
    place, column = torch.arange(len(before[0]), dtype=torch.float64), 2 * (context.riflex - 1)
    angle = place * (LESS_THAN_A_TURN * 2 * math.pi / context.length(frames))
    changed = []
    for table, values in zip(before, (angle.cos(), angle.sin()), strict=True):
        slower = table.clone()
        slower[:, column : column + 2] = values[:, None].to(slower)
        changed.append(slower)
    rope.freqs_cos, rope.freqs_sin = changed
    try:
        yield
    finally:
        rope.freqs_cos, rope.freqs_sin = before


def temporal_frequencies(head: int) -> int:
    """Return how many of an attention head's frequencies are of time: what WanRotaryPosEmbed leaves for it."""
    return (head - 4 * (head // 6)) // 2


def check_frequency(riflex: int, count: int) -> None:
    """Accept the number of a temporal frequency of a model that has so many.

    Raises:
        PiyingError: it has no such frequency.
    """
    if riflex > count:
        raise PiyingError(f"riflex is {riflex}, and this model has {count} temporal frequencies. Choose 1 to {count}.")


def mean_of_windows(
    flows: Sequence[Sequence[torch.Tensor]], windows: Sequence[Sequence[int]], frames: int, in_front: int
) -> list[torch.Tensor]:
    """Return each prompt's flow of the whole video from those of its windows.

    Args:
        flows: of each window, one [1, z, R + n, h, w] for each prompt, references first.
        windows: the latent frames of each.
        frames: how many the video has.
        in_front: R; of references the plain mean is taken.
    """
    import torch

    results = []
    for prompt in zip(*flows, strict=True):
        like = prompt[0]
        total = like.new_zeros(*like.shape[:2], frames, *like.shape[3:], dtype=torch.float32)
        weight = torch.zeros(frames)
        for flow, window in zip(prompt, windows, strict=True):
            own = torch.tensor(weights(len(window)))
            places = torch.tensor(window, device=like.device)
            total.index_add_(2, places, flow[:, :, in_front:].float() * own.view(1, 1, -1, 1, 1).to(like.device))
            weight.index_add_(0, places.cpu(), own)
        video = (total / weight.view(1, 1, -1, 1, 1).to(like.device)).to(like.dtype)
        front = torch.stack([flow[:, :, :in_front] for flow in prompt]).mean(0)
        results.append(torch.cat([front, video], dim=2))
    return results
