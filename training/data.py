"""Procedural clips: one coloured shape on a flat background, drawn exactly, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from .language import SHAPES, Scene

RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 85, 220),
    "yellow": (245, 215, 35),
    "purple": (160, 55, 190),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
}
SHAPE_NAMES = list(SHAPES)
# Large enough to be told apart when a picture is cut into blocks of 8×8: see training/video_autoencoder.py.
RADIUS = (0.21, 0.25)  # of the shorter side
TRAVEL = (0.38, 0.46)  # of the side travelled along
# Sizes that give the three shapes about the same width. With one area a circle and a square differ in a few corner
# pixels alone, and the words for them are learned last.
HALF_SQUARE, TRIANGLE = 1.0, 1.3
REACH = 1.13  # the furthest a shape reaches from its centre, in radii: a triangle to the side
# Where a caption is all there is, the object keeps near the middle (`draw_paths`): a caption does not say where,
# and over all places a circle and a square look the same on average, so that the word would explain nothing.
CAPTION_SPREAD = 0.15
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


@dataclass(frozen=True)
class Paths:
    """Where the objects of a batch are: centres [B, T, 2] as x, y in pixels, and radii [B]."""

    centres: torch.Tensor
    radii: torch.Tensor


def colours(names: Sequence[str]) -> torch.Tensor:
    """Return colours [B, 3] in -1..1."""
    return torch.tensor([RGB[name] for name in names]) / 127.5 - 1


def between(low: float, high: float, *shape: int) -> torch.Tensor:
    """Return numbers drawn evenly between two limits."""
    return low + (high - low) * torch.rand(*shape)


def draw_paths(
    scenes: Sequence[Scene], frames: int, width: int, height: int, spread: torch.Tensor | float = 1.0
) -> Paths:
    """Draw where each scene's object starts, how large it is and how far it goes, all inside the picture.

    `spread` is how much of the room it may start in, around the middle of that room: 0..1, one number or [B, 1].
    """
    count = len(scenes)
    sides = torch.tensor([float(width), float(height)])
    radii = between(*RADIUS, count) * min(width, height)
    ways = torch.tensor([DIRECTIONS.get(scene.motion or "", (0, 0)) for scene in scenes], dtype=torch.float32)
    journeys = ways * between(*TRAVEL, count, 1) * sides
    low = REACH * radii[:, None] + (-journeys).clamp(min=0)
    high = sides - REACH * radii[:, None] - journeys.clamp(min=0)
    place = 0.5 + (torch.rand(count, 2) - 0.5) * spread
    starts = low + place * (high - low).clamp(min=0)
    times = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    return Paths(starts[:, None] + journeys[:, None] * times[None, :, None], radii)


def coverage(shapes: Sequence[str], paths: Paths, width: int, height: int) -> torch.Tensor:
    """Return how much of each pixel the object covers [B, T, H, W], 0..1."""
    x = torch.arange(width) + 0.5 - paths.centres[..., :1]
    y = torch.arange(height) + 0.5 - paths.centres[..., 1:]
    dx, dy = x[..., None, :], y[..., :, None]
    result = torch.empty(*paths.centres.shape[:2], height, width)
    for name in set(shapes):
        rows = torch.tensor([index for index, shape in enumerate(shapes) if shape == name])
        radii = paths.radii[rows].view(-1, 1, 1, 1)
        result[rows] = inside(name, dx[rows], dy[rows], radii)
    return result


def inside(shape: str, dx: torch.Tensor, dy: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Return how much of each pixel a shape covers; `dx`, `dy` are distances from its centre."""
    if shape == "circle":
        return (radii - (dx * dx + dy * dy).sqrt() + 0.5).clamp(0, 1)
    if shape == "square":
        half = radii * HALF_SQUARE
        return (half - dx.abs() + 0.5).clamp(0, 1) * (half - dy.abs() + 0.5).clamp(0, 1)
    # An equilateral triangle, point up: three edges at half its outer radius from its own middle,
    # which lies below the middle of the box around it.
    reach = radii * TRIANGLE / 2
    dy = dy - reach / 2
    side = (reach - (0.866 * dx.abs() - 0.5 * dy) + 0.5).clamp(0, 1)
    return side * (reach - dy + 0.5).clamp(0, 1)


def paint(covered: torch.Tensor, objects: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """Return pictures [B, T, 3, H, W] in -1..1 from coverage [B, T, H, W] and colours [B, 3]."""
    alpha = covered[:, :, None]
    return backgrounds[:, None, :, None, None] * (1 - alpha) + objects[:, None, :, None, None] * alpha


def clips(scenes: Sequence[Scene], frames: int, width: int, height: int, spread: float = 1.0) -> torch.Tensor:
    """Return one clip per scene [B, T, 3, H, W] in -1..1; for `spread` see `draw_paths`."""
    paths = draw_paths(scenes, frames, width, height, spread)
    covered = coverage([scene.shape for scene in scenes], paths, width, height)
    return paint(covered, colours([s.colour for s in scenes]), colours([s.background for s in scenes]))


def block_weights(covered: torch.Tensor) -> torch.Tensor:
    """Return how much each 8×8 block matters [B, T, h, w]: most at the object's edge, where its shape shows."""
    near = functional.max_pool2d(functional.max_pool2d(covered, 8), 3, stride=1, padding=1)
    part = functional.avg_pool2d(covered, 8)
    return 1 + 2 * near + 24 * part * (1 - part)
