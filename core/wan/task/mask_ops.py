"""Masks of the area that is generated: shape, growth, and how far a pixel lies from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from .options import Shape


def shaped(area: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return a bool area [n, h, w] as it is, or frame by frame as the box or the convex hull around it."""
    change = {"as drawn": None, "box": _box, "hull": _hull}[shape]
    return area if change is None else _each(area, change)


def grown(area: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return a bool area [n, h, w] grown by a round brush of that radius; shrunk where `pixels` is negative."""
    if pixels == 0:
        return area
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1, 2 * abs(pixels) + 1))
    return _each(area, lambda frame: (cv2.dilate if pixels > 0 else cv2.erode)(frame, brush))


def kept_weight(kept: torch.Tensor, feather: int) -> torch.Tensor:
    """Return how much of the original comes back at each pixel, float32 [n, h, w].

    0 where it is not kept; where it is, it rises evenly over `feather` pixels from the border of the kept
    part, and is 1 behind them. With `feather` 0 every kept pixel has weight 1.
    """
    if feather == 0:
        return kept.float()
    # OpenCV measures one frame at a time; + 1, so that no kept pixel at the border weighs nothing or all.
    weights = [_distance(frame) / (feather + 1) for frame in kept]
    return torch.stack(weights).clamp(max=1.0)


def _distance(kept: torch.Tensor) -> torch.Tensor:
    """Distances to the nearest pixel that is not kept; all ones where every pixel is."""
    if kept.all():
        return torch.full(kept.shape, float("inf"))
    return torch.from_numpy(cv2.distanceTransform(kept.numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _each(area: torch.Tensor, change: Callable[[Any], Any]) -> torch.Tensor:
    frames = [torch.from_numpy(change(frame.numpy().astype(np.uint8))) for frame in area]
    return torch.stack(frames) > 0


def _box(frame: Any) -> Any:
    left, top, width, height = cv2.boundingRect(frame)
    filled = np.zeros_like(frame)
    filled[top : top + height, left : left + width] = 1
    return filled


def _hull(frame: Any) -> Any:
    # OpenCV has no hull of no points.
    if not frame.any():
        return frame
    contours, _ = cv2.findContours(frame, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.fillConvexPoly(np.zeros_like(frame), cv2.convexHull(np.concatenate(contours)), 1)
