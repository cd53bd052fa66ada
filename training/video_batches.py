"""What the video transformer is trained on: latents, VACE's control latents and captions of drawn clips.

Everything is prepared as WanVACEPipeline does it, without running the encoder: its latents are block
means of frames 4t and 4t - 2 and constants (see `video_autoencoder`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from . import tasks
from .data import CAPTION_SPREAD, Paths, block_weights, colours, coverage, paint
from .groups import Groups, draw_groups
from .language import LANGUAGES, Scene, caption, scenes
from .video_autoencoder import PICTURE_STD

# (width, height) and how often each is drawn; lengths in the same way, by being named more than once.
SIZES = {(64, 64): 5, (96, 64): 3, (64, 96): 2}
FRAMES = (5, 9, 9, 9, 9, 9, 17, 17, 17, 17, 33)
TOKENS = 1800  # per batch, about: longer clips come in smaller batches
# What training drops captions to: nothing, or the negative prompts people leave in place.
NEGATIVE_WORDS = [
    "静态",
    "细节模糊不清",
    "字幕",
    "风格",
    "作品",
    "画作",
    "静止",
    "整体发灰",
    "最差质量",
    "低质量",
    "多余的手指",
    "杂乱的背景",
    "倒着走",
    "blurry",
    "low",
    "quality",
    "text",
]
DROPPED = 0.15


@dataclass(frozen=True)
class Batch:
    """Clean latents [B, 9, T, h, w], control [B, 82, T, h, w], loss weights [B, 1, T, h, w], captions, groups.

    `neutral` are latents that show no shape, see `groups`.
    """

    latents: torch.Tensor
    neutral: torch.Tensor
    control: torch.Tensor
    weights: torch.Tensor
    captions: list[str]
    groups: Groups


TRAINED_ON = [scene for scene in scenes() if not scene.held_out]


def draw_batch(
    draw: random.Random,
    task_share: float,
    lengths: Sequence[int] = FRAMES,
    sizes: Mapping[tuple[int, int], int] = SIZES,
) -> Batch:
    """Draw one batch; `task_share` of its clips come with a task, the rest with a caption alone."""
    width, height = draw.choices(list(sizes), list(sizes.values()))[0]
    frames = draw.choice(lengths)
    tokens = (width // 16) * (height // 16) * (1 + frames // 4)
    groups = draw_groups(max(4, min(32, TOKENS // tokens)), TRAINED_ON, draw)
    with_reference = draw.random() < task_share / 6
    named = ["reference" if with_reference else drawn_task(draw, task_share) for _ in range(groups.count)]
    return make_batch(groups, named, frames, width, height, draw)


def drawn_task(draw: random.Random, share: float) -> str:
    """Return the name of a task that adds no latent frame."""
    return draw.choice(tasks.WITHOUT_REFERENCE) if draw.random() < share else "text"


def make_batch(
    groups: Groups, named: Sequence[str], frames: int, width: int, height: int, draw: random.Random
) -> Batch:
    """Return the batch of some groups of scenes, each group with the task named for it."""
    chosen, rows = groups.scenes, groups.rows.tolist()
    paths = groups.paths(frames, width, height, spreads(named))
    even = Paths(paths.centres[:, ::2], paths.radii)
    covered = coverage([scene.shape for scene in chosen], even, width, height)
    objects, backgrounds = (colours([getattr(s, name) for s in chosen]) for name in ("colour", "background"))
    video = paint(covered, objects, backgrounds)
    keys = [draw.random() for _ in named]
    made = [
        tasks.make(named[row], video[i], covered[i], paths.centres[i], paths.radii[i], random.Random(keys[row]))
        for i, row in enumerate(rows)
    ]
    control = control_latents(torch.stack([m.video for m in made]), torch.stack([m.mask for m in made]))
    latents = picture_latents(video)
    neutral = picture_latents(paint(groups.neutral(even, width, height), objects, backgrounds))
    weights = latent_weights(covered)
    if named[0] == "reference":
        front = picture_latents(tasks.reference_pictures([s.shape for s in chosen], objects, width, height))
        latents, neutral = torch.cat([front, latents], dim=2), torch.cat([front, neutral], dim=2)
        control, weights = with_reference(front, control, weights)
    texts = [text_for(s, named[row], random.Random(keys[row])) for s, row in zip(chosen, rows, strict=True)]
    return Batch(latents, neutral, control, weights, texts, groups)


def spreads(named: Sequence[str]) -> torch.Tensor:
    """Return how much of the room the object of each group may start in [groups, 1]."""
    free = [CAPTION_SPREAD if name in ("text", "reference") else 1.0 for name in named]
    return torch.tensor(free)[:, None]


def text_for(scene: Scene, task: str, draw: random.Random) -> str:
    """Return a caption for a clip, now and then none."""
    if draw.random() < DROPPED:
        return "" if draw.random() < 0.4 else ",".join(draw.sample(NEGATIVE_WORDS, draw.randint(3, 12)))
    language = draw.choice(LANGUAGES)
    text = caption(scene, language, draw)
    return tasks.vaguer(text, scene, language) if task == "reference" and draw.random() < 0.4 else text


def block_means(video: torch.Tensor) -> torch.Tensor:
    """Return the mean colours [B, T, 3, h, w] of 8×8 blocks."""
    return functional.avg_pool2d(video.flatten(0, 1), 8).unflatten(0, video.shape[:2])


def picture_latents(even: torch.Tensor) -> torch.Tensor:
    """Return normalised latents [B, 9, T, h, w] of clips given by their even frames [B, 2T - 1, 3, H, W]."""
    means = block_means(even) / PICTURE_STD
    now, before = means[:, ::2], torch.cat([means[:, :1], means[:, 1::2]], dim=1)
    places = positions(*now.shape[1:2], *now.shape[3:]).expand(len(even), -1, -1, -1, -1)
    return torch.cat([now.transpose(1, 2), before.transpose(1, 2), places], dim=1)


def positions(frames: int, height: int, width: int) -> torch.Tensor:
    """Return the encoder's constant channels [1, 3, T, h, w]: columns, rows, first frame."""
    places = torch.zeros(1, 3, frames, height, width)
    places[:, 0, :, :, 0], places[:, 0, :, :, -1] = -1, 1
    places[:, 1, :, 0], places[:, 1, :, -1] = -1, 1
    places[:, 2, 0] = 1
    return places


def control_latents(even: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return VACE's control [B, 82, T, h, w] of a control video's even frames and its mask [B, frames, H, W]."""
    shown = mask[:, ::2, None]
    parts = [picture_latents(even * (1 - shown)), picture_latents(even * shown), folded_mask(mask)]
    return torch.cat(parts, dim=1)


def folded_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask [B, frames, H, W] as WanVACEPipeline.prepare_masks does: [B, 64, T, h, w]."""
    count, frames, height, width = mask.shape
    folded = mask.view(count, frames, height // 8, 8, width // 8, 8).permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    size = ((frames + 3) // 4, height // 8, width // 8)
    return functional.interpolate(folded, size=size, mode="nearest-exact")


def latent_weights(covered: torch.Tensor) -> torch.Tensor:
    """Return how much each latent pixel matters [B, 1, T, h, w]: the more of the two frames it stands for."""
    weights = block_weights(covered)
    pairs = torch.maximum(weights[:, 1::2], weights[:, 2::2])
    return torch.cat([weights[:, :1], pairs], dim=1)[:, None]


def with_reference(
    front: torch.Tensor, control: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a reference's latent frame in front of control and weights."""
    unmasked = torch.zeros_like(control[:, :64, :1])
    control = torch.cat([torch.cat([front, torch.zeros_like(front), unmasked], dim=1), control], dim=2)
    return control, torch.cat([torch.ones_like(weights[:, :, :1]), weights], dim=2)
