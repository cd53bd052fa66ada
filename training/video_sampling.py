"""Videos from the genuine pipelines of Wan, as the pack samples them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

# What people leave in the negative prompt: the start of the list published with Wan2.1.
NEGATIVE = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量"


@dataclass(frozen=True)
class Sampling:
    """Size, length and settings of a run."""

    width: int = 64
    height: int = 64
    frames: int = 9
    steps: int = 20
    cfg: float = 4.0
    shift: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Given:
    """A control video [T, 3, H, W] in -1..1 with its mask [T, H, W], and a reference picture [3, H, W]."""

    video: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    reference: torch.Tensor | None = None


def draw_video(
    pipeline: Any, text: str, sampling: Sampling, seed: int, given: Given | None = None, **more: Any
) -> np.ndarray:
    """Return a video [T, H, W, 3] in 0..1 of a pipeline of Wan; `more` goes to it."""
    return pipeline(
        prompt=text,
        negative_prompt=NEGATIVE,
        width=sampling.width,
        height=sampling.height,
        num_frames=sampling.frames,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.cfg,
        generator=torch.Generator().manual_seed(seed),
        **control_arguments(given or Given()),
        **more,
    ).frames[0]


def control_arguments(given: Given) -> dict[str, Any]:
    """Return what the pipeline takes for a control video, a mask and a reference."""
    arguments: dict[str, Any] = {}
    if given.video is not None and given.mask is not None:
        arguments["video"] = [given.video.permute(0, 2, 3, 1).numpy() / 2 + 0.5]
        arguments["mask"] = [given.mask[..., None].expand(-1, -1, -1, 3).numpy()]
    if given.reference is not None:
        picture = ((given.reference.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255)
        arguments["reference_images"] = [Image.fromarray(picture.astype(np.uint8))]
    return arguments
