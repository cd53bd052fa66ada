"""Depth maps: near is light, far is dark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..executor.placement import resident
from ..host.base import Host
from .choices import PER_FRAME, SCALES, check_choice
from .family import DEPTH
from .frames import checked_frames, stack_frames
from .models import choose, image_processor, load

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from .frames import Pixels

    Numbers = npt.NDArray[np.float32]


def depth(images: Any, model: str, range_of: str, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return how near every pixel is, IMAGE [N, H, W, 3] from 0 (far) to 1 (near), and what ran.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `models.choices(DEPTH, host)`.
        range_of: what 0 and 1 are taken from: each frame by itself (`per frame`, as VACE's annotator), or all
            frames (`whole clip`: steadier where things come and go, flatter where one frame has extremes).

    Raises:
        PiyingError: no frames, no such model, or its files cannot be read.
    """
    import torch

    check_choice("range_of", range_of, SCALES)
    frames = checked_frames(images)
    found = choose(DEPTH, model, host)
    network, processor = load(DEPTH, found, host), image_processor(DEPTH, found)
    with torch.no_grad(), resident([network], host.device(), host):
        near = list(_nearness(network, processor, frames, host))
    # All frames are measured before the first is painted: what is nearest in the clip is known in the end.
    limits = None if range_of == PER_FRAME else (min(map(_low, near)), max(map(_high, near)))
    painted = (_levels(frame, *(limits or (_low(frame), _high(frame)))) for frame in near)
    record = {"model": found.name, "device": host.device(), "range_of": range_of}
    return stack_frames(painted, len(frames), "Painting depth", host), record


def _nearness(network: PreTrainedModel, processor: Any, frames: torch.Tensor, host: Host) -> Iterator[Numbers]:
    """Yield the nearness [H, W] of every frame, in the model's own unit."""
    from ..media.images import to_uint8

    progress = host.progress("Depth", len(frames))
    far_is_large = getattr(network.config, "depth_estimation_type", "relative") == "metric"
    for index, frame in enumerate(frames):
        pixels = processor(images=to_uint8(frame), return_tensors="pt").to(network.device)
        answer = processor.post_process_depth_estimation(network(**pixels), target_sizes=[tuple(frame.shape[:2])])
        values = answer[0]["predicted_depth"].float()
        # Metric models give metres, relative ones give disparity, which is near where it is large.
        yield (1 / values.clamp(min=1e-3) if far_is_large else values).cpu().numpy()
        progress.step(index + 1)


def _low(values: Numbers) -> float:
    return float(values.min())


def _high(values: Numbers) -> float:
    return float(values.max())


def _levels(values: Numbers, low: float, high: float) -> Pixels:
    """Return values as 0..255, cut off as VACE does; a frame of one value is black."""
    import numpy as np

    part = (values - low) / (high - low) if high > low else np.zeros_like(values)
    levels: Pixels = (part * 255).clip(0, 255).astype(np.uint8)
    return levels
