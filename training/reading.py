"""What a picture or a video shows, read from its pixels: background, colour, shape, count, motion."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from .data import HALF_SQUARE, RGB, TRIANGLE, inside

NAMES = list(RGB)
PALETTE = np.array([RGB[name] for name in NAMES]) / 255
# Area of a shape of radius 1, and how far its middle of mass lies below the middle of its box.
AREAS = {"circle": math.pi, "square": 4 * HALF_SQUARE**2, "triangle": 0.75 * math.sqrt(3) * TRIANGLE**2}
DROPS = {"circle": 0.0, "square": 0.0, "triangle": TRIANGLE / 4}
NUDGES = (-1.0, 0.0, 1.0)  # pixels a template is tried at
STRETCHES = (0.94, 1.0, 1.06)
FAINT = 0.12  # a picture whose pixels differ by less shows nothing
MOVED = 0.15  # of the side: less than that is standing still
FRAMES_READ = 5


@dataclass(frozen=True)
class Reading:
    """What one picture shows; `alpha` is how much of each pixel is object."""

    background: str
    colour: str | None
    shapes: dict[str, float]
    count: int
    centre: tuple[float, float]
    alpha: np.ndarray

    @property
    def shape(self) -> str | None:
        """Return the shape that fits best."""
        return max(self.shapes, key=lambda name: self.shapes[name]) if self.shapes else None


@dataclass(frozen=True)
class VideoReading:
    """What a video shows, over some of its frames."""

    background: str
    colour: str | None
    shape: str | None
    motion: str | None
    count: int


def nearest_colour(rgb: np.ndarray) -> str:
    """Return the name of the palette's colour nearest to one in 0..1."""
    return NAMES[int(((PALETTE - rgb) ** 2).sum(1).argmin())]


def read_picture(picture: np.ndarray) -> Reading:
    """Read a picture [H, W, 3] in 0..1."""
    behind = np.median(picture.reshape(-1, 3), axis=0)
    away = np.linalg.norm(picture - behind, axis=2)
    strongest = np.percentile(away, 98)
    if strongest < FAINT:
        return Reading(nearest_colour(behind), None, {}, 0, (0.0, 0.0), np.zeros_like(away))
    colour = np.median(picture[away > 0.75 * strongest], axis=0)
    line = colour - behind
    alpha = np.clip(((picture - behind) @ line) / (line @ line), 0, 1)
    centre = middle_of_mass(alpha)
    parts = count_parts(alpha)
    return Reading(nearest_colour(behind), nearest_colour(colour), fits(alpha, centre), parts, centre, alpha)


def middle_of_mass(alpha: np.ndarray) -> tuple[float, float]:
    """Return the middle of what is at least half object, as x, y."""
    rows, columns = np.nonzero(alpha > 0.5)
    return (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5) if len(rows) else (0.0, 0.0)


def count_parts(alpha: np.ndarray) -> int:
    """Return how many separate objects there are; specks do not count."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((alpha > 0.5).astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int((areas > 0.15 * areas.sum()).sum()) if len(areas) else 0


def fits(alpha: np.ndarray, centre: tuple[float, float]) -> dict[str, float]:
    """Return how well each shape of the same place and area overlaps the object, 0..1."""
    height, width = alpha.shape
    target = torch.from_numpy(alpha).float()
    tried = torch.tensor(list(itertools.product(NUDGES, NUDGES, STRETCHES)))
    found = {}
    for shape, area in AREAS.items():
        radii = math.sqrt(float((alpha > 0.5).sum()) / area) * tried[:, 2].view(-1, 1, 1)
        dx = torch.arange(width) + 0.5 - centre[0] - tried[:, 0].view(-1, 1, 1)
        dy = torch.arange(height)[:, None] + 0.5 - centre[1] - tried[:, 1].view(-1, 1, 1) + DROPS[shape] * radii
        drawn = inside(shape, dx, dy, radii)
        overlap = torch.minimum(drawn, target).sum((1, 2)) / torch.maximum(drawn, target).sum((1, 2))
        found[shape] = float(overlap.max())
    return found


def read_video(frames: np.ndarray) -> VideoReading:
    """Read a video [T, H, W, 3] in 0..1."""
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES_READ, len(frames))).round().astype(int)
    readings = [read_picture(frames[index]) for index in chosen]
    seen = [reading for reading in readings if reading.colour]
    background = most_common([reading.background for reading in readings])
    if not seen:
        return VideoReading(background, None, None, None, 0)
    overlaps = {shape: sum(reading.shapes[shape] for reading in seen) for shape in AREAS}
    return VideoReading(
        background,
        most_common([reading.colour for reading in seen]),
        max(overlaps, key=lambda name: overlaps[name]),
        motion(readings[0], readings[-1]),
        most_common([reading.count for reading in readings]),
    )


def most_common(values: list[Any]) -> Any:
    """Return the value found most often."""
    return Counter(values).most_common(1)[0][0]


def motion(first: Reading, last: Reading) -> str | None:
    """Return the words for the way from one picture to another; none where either is empty."""
    if not first.colour or not last.colour:
        return None
    height, width = first.alpha.shape
    x, y = (last.centre[0] - first.centre[0]) / width, (last.centre[1] - first.centre[1]) / height
    if max(abs(x), abs(y)) < MOVED:
        return "stays still"
    if abs(x) > abs(y):
        return "moves right" if x > 0 else "moves left"
    return "moves down" if y > 0 else "moves up"


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return the likeness in dB of two pictures or videos in 0..1, where `where` [..., H, W] is true."""
    squared = (one - other) ** 2
    error = squared.mean() if where is None else squared[where].mean()
    return float(-10 * np.log10(max(error, 1e-10)))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two coverage maps."""
    first, second = one > 0.5, other > 0.5
    return float((first & second).sum() / max((first | second).sum(), 1))
