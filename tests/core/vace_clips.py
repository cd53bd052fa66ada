"""Clips, masks and pictures for the tests of VACE's tasks, in whole 255ths so that every library reads them alike."""

from __future__ import annotations

import torch


def clip(count=9, height=48, width=64, seed=0):
    """Return an IMAGE [count, height, width, 3]: smooth colours that differ from frame to frame."""
    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    frames = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return as_read(frames.permute(0, 2, 3, 1))


def as_read(frames):
    return (frames * 255).round() / 255


def box(height=48, width=64, rows=slice(16, 40), columns=slice(8, 30), count=1):
    """Return a MASK [count, height, width], white in a box."""
    mask = torch.zeros(count, height, width)
    mask[:, rows, columns] = 1
    return mask


def moving_box(count=9, height=48, width=64):
    """Return a MASK whose box is somewhere else in every frame."""
    frames = [box(height, width, columns=slice(4 + 4 * index, 20 + 4 * index)) for index in range(count)]
    return torch.cat(frames)
