"""VACE's tasks over a drawn clip: what the control video shows and which part of it is to be made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from .data import RADIUS, Paths, coverage, paint
from .language import COLOURS, Scene

EXTENSIONS = ["first_frame", "last_frame", "first_and_last", "first_clip"]
CONTROLS = ["edges", "boxes", "depth", "gray"]
WITHOUT_REFERENCE = [*EXTENSIONS, "inpaint", "inpaint", "outpaint", "outpaint", *CONTROLS, *CONTROLS]
LUMA = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Control:
    """The even frames of a control video [2T - 1, 3, H, W] in -1..1 and its mask [frames, H, W], 1 = to make.

    `dark` says that edges and boxes are dark lines on white.
    """

    video: torch.Tensor
    mask: torch.Tensor
    dark: bool = False


def make(
    name: str,
    video: torch.Tensor,
    covered: torch.Tensor,
    centres: torch.Tensor,
    radius: torch.Tensor,
    draw: random.Random,
) -> Control:
    """Return a task's control; `video` and `covered` hold the clip's even frames, `centres` all of them."""
    mask = torch.ones(len(centres), *video.shape[-2:])
    if name in CONTROLS:
        dark = draw.random() < 0.5
        return Control(control_video(name, video, covered, dark), mask, dark)
    if name in EXTENSIONS:
        _uncover_frames(name, mask)
    elif name == "inpaint":
        mask = inpaint_mask(mask, centres, float(radius), draw)
    elif name == "outpaint":
        mask = outpaint_mask(mask, draw)
    else:
        return Control(torch.zeros_like(video), mask)
    return Control(video * (1 - mask[::2, None]), mask)


def _uncover_frames(name: str, mask: torch.Tensor) -> None:
    """Set the mask to 0 on the frames an extension starts from."""
    if name in ("first_frame", "first_and_last"):
        mask[0] = 0
    if name in ("last_frame", "first_and_last"):
        mask[-1] = 0
    if name == "first_clip":
        mask[: 1 + len(mask) // 2] = 0


def inpaint_mask(mask: torch.Tensor, centres: torch.Tensor, radius: float, draw: random.Random) -> torch.Tensor:
    """Return a box that follows the object or one that holds its whole way, with room around it."""
    margins = [radius * draw.uniform(1.15, 1.5) for _ in range(4)]
    tracked = draw.random() < 0.5
    low, high = (centres, centres) if tracked else (centres.amin(0)[None], centres.amax(0)[None])
    height, width = mask.shape[-2:]
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    columns = (x > low[:, :1] - margins[0]) & (x < high[:, :1] + margins[1])
    rows = (y > low[:, 1:] - margins[2]) & (y < high[:, 1:] + margins[3])
    return (rows[:, :, None] & columns[:, None, :]).float().expand_as(mask).contiguous()


def outpaint_mask(mask: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Return a mask of the sides to be added: one or two opposite ones, a quarter to a third in all."""
    height, width = mask.shape[-2:]
    across = draw.random() < 0.5
    side = width if across else height
    added = round(side * draw.uniform(0.2, 0.35))
    before = draw.choice([0, added // 2, added])
    kept = torch.zeros(side)
    kept[before : side - (added - before)] = 1
    shape = (1, 1, side) if across else (1, side, 1)
    return (1 - kept.view(shape)).expand_as(mask).contiguous()


def control_video(name: str, video: torch.Tensor, covered: torch.Tensor, dark: bool = False) -> torch.Tensor:
    """Return a control video [T, 3, H, W] in -1..1: edges and boxes white on black or `dark` on white.

    Depth is light when near. VACE knows lines in both polarities.
    """
    if name == "gray":
        luma = torch.einsum("tchw,c->thw", video, LUMA)
    elif name == "depth":
        luma = covered * 1.2 - 0.6
    else:
        lines = box_outline(covered) if name == "boxes" else edges(covered)
        luma = (1 - 2 * lines) if dark else (2 * lines - 1)
    return luma[:, None].expand(-1, 3, -1, -1)


def edges(covered: torch.Tensor) -> torch.Tensor:
    """Return thin outlines [T, H, W] of coverage maps."""
    solid = (covered > 0.5).float()
    grown, shrunk = functional.max_pool2d(solid, 3, 1, 1), -functional.max_pool2d(-solid, 3, 1, 1)
    return grown - shrunk


def box_outline(covered: torch.Tensor) -> torch.Tensor:
    """Return the outlines [T, H, W], two pixels thick, of the boxes around coverage maps."""
    solid = covered > 0.5
    box = (solid.any(1)[:, None, :] & solid.any(2)[:, :, None]).float()
    return box + functional.max_pool2d(-box, 5, 1, 2)


def reference_pictures(shapes: Sequence[str], objects: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Return pictures [B, 1, 3, H, W] of objects alone in the middle of a white canvas."""
    count = len(shapes)
    middle = torch.tensor([width / 2, height / 2]) + (torch.rand(count, 1, 2) - 0.5) * 8
    low, high = RADIUS
    radii = (low + (1.3 * high - low) * torch.rand(count)) * min(width, height)
    return paint(coverage(shapes, Paths(middle, radii), width, height), objects, torch.ones(count, 3))


def vaguer(text: str, scene: Scene, language: str) -> str:
    """Return a caption without its object's colour: the reference says it."""
    word = scene.colour if language == "en" else COLOURS[scene.colour]
    return " ".join(text.replace(word, "", 1).split()) if scene.background != scene.colour else text
