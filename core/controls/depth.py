"""Depth maps: near is light, far is dark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import check_choice
from ..executor.placement import resident
from ..host.base import Host
from ..media.frames import checked_frames, stack_frames
from .choices import SCALES, WHOLE_CLIP
from .family import DEPTH
from .models import choose, image_processor, load

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from ..media.frames import Pixels

    Numbers = npt.NDArray[np.float32]


def depth(images: Any, model: str, range_of: str, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return depth maps, IMAGE [N, H, W, 3] from 0 (far) to 1 (near), and what ran.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `model_choices(DEPTH, host)`.
        range_of: what 0 and 1 are taken from: each frame by itself (`per frame`, as VACE's annotator), or all
            frames (`whole clip`: steadier where things come and go, flatter where one frame has extremes).

    Raises:
        PiyingError: no frames, no such model, or its files cannot be read.
    """
    import torch

    from ..media.images import to_uint8

    check_choice("range_of", range_of, SCALES)
    frames = checked_frames(images)
    found = choose(DEPTH, model, host)
    network, processor = load(DEPTH, found, host), image_processor(DEPTH, found)
    far_is_large = getattr(network.config, "depth_estimation_type", "relative") == "metric"
    progress = host.progress("Depth", len(frames))
    nearness: list[Numbers] = []
    with torch.no_grad(), resident([network], host.device(), host):
        for index, frame in enumerate(frames):
            pixels = processor(images=to_uint8(frame), return_tensors="pt").to(network.device)
            output = processor.post_process_depth_estimation(network(**pixels), target_sizes=[tuple(frame.shape[:2])])
            values = output[0]["predicted_depth"].float()
            # Metric models predict metres, relative ones disparity, which is large where it is near. Metres are
            # clamped: the inverse of 0 would stretch the range to infinity.
            nearness.append((1 / values.clamp(min=1e-3) if far_is_large else values).cpu().numpy())
            progress.step(index + 1)
    # All frames are measured before the first is painted: the range of the clip is known after the last.
    ranges = [(float(values.min()), float(values.max())) for values in nearness]
    if range_of == WHOLE_CLIP:
        lows, highs = zip(*ranges, strict=True)
        ranges = [(min(lows), max(highs))] * len(ranges)
    painted = (_levels(values, low, high) for values, (low, high) in zip(nearness, ranges, strict=True))
    record = {"model": found.name, "device": host.device(), "range_of": range_of}
    return stack_frames(painted, len(frames), "Painting depth", host), record


def _levels(values: Numbers, low: float, high: float) -> Pixels:
    """Return values as 0..255, truncated as VACE does; a frame of one value is black."""
    import numpy as np

    part = (values - low) / (high - low) if high > low else np.zeros_like(values)
    levels: Pixels = (part * 255).clip(0, 255).astype(np.uint8)
    return levels
