"""Batches of groups that differ in nothing but the shape.

The scenes of a group share colours, path, task, wording and noise. What is left to tell them apart is
what the word for the shape has to explain: in the sum over a group everything else cancels out. Drawn
one by one, that little is drowned by where the object happens to be, and shape is learned last.

In a part of the groups the noisy picture holds the mean of all shapes in place of its own. Early in
sampling there is no more than that to see. A model that has only met noisy pictures of perfect shapes
takes the blob it has drawn so far for what it should be, and keeps it; here it learns to make of it what
was asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .data import Paths, coverage, draw_paths
from .language import SHAPES, Scene

LEAST_NOISE = 0.25  # under less, what is hidden would have to be put right in too few steps


@dataclass(frozen=True)
class Groups:
    """Scenes in groups: `scenes` group by group, and for each the number of its group, `rows` [B]."""

    scenes: list[Scene]
    rows: torch.Tensor

    @property
    def count(self) -> int:
        """Return how many groups there are."""
        return int(self.rows[-1]) + 1

    def paths(self, frames: int, width: int, height: int, spread: torch.Tensor | float = 1.0) -> Paths:
        """Draw one path for each group; `spread` is one number or [groups, 1], see `draw_paths`."""
        firsts = [self.scenes[int((self.rows == row).nonzero()[0])] for row in range(self.count)]
        paths = draw_paths(firsts, frames, width, height, spread)
        return Paths(paths.centres[self.rows], paths.radii[self.rows])

    def neutral(self, paths: Paths, width: int, height: int) -> torch.Tensor:
        """Return the mean coverage [B, T, H, W] of all shapes on each scene's path: it tells all but the shape."""
        firsts = [int((self.rows == row).nonzero()[0]) for row in range(self.count)]
        own = Paths(paths.centres[firsts], paths.radii[firsts])
        every = [coverage([shape] * self.count, own, width, height) for shape in SHAPES]
        return torch.stack(every).mean(0)[self.rows]

    def noise_like(self, latents: torch.Tensor) -> torch.Tensor:
        """Draw the same noise for all scenes of a group."""
        return torch.randn_like(latents[: self.count])[self.rows]

    def hidden(self, share: float, level: torch.Tensor) -> torch.Tensor:
        """Draw which scenes hide their shape [B]: a share of the groups, where `level` of noise is not too low."""
        return (torch.rand(self.count) < share)[self.rows] & (level > LEAST_NOISE)


def draw_groups(count: int, pool: Sequence[Scene], draw: random.Random) -> Groups:
    """Draw `count` scenes of a pool that training may use."""
    chosen: list[Scene] = []
    rows: list[int] = []
    while len(chosen) < count:
        one, row = draw.choice(pool), rows[-1] + 1 if rows else 0
        alike = [scene for scene in (replace(one, shape=shape) for shape in SHAPES) if not scene.held_out]
        alike = alike[: count - len(chosen)]
        chosen += alike
        rows += [row] * len(alike)
    return Groups(chosen, torch.tensor(rows))
