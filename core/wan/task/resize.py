"""Pictures and masks at another size."""

from __future__ import annotations

import torch
from torch.nn import functional

from .choices import Fit


def fit_frames(frames: torch.Tensor, width: int, height: int, fit: Fit) -> torch.Tensor:
    """Return frames [n, h, w, c] in 0..1 as [n, height, width, c].

    crop scales until both sides reach the size and cuts the middle out, which is what VACE's
    `VaceVideoProcessor.resize_crop` does, with the same filter. letterbox scales until one side reaches it
    and puts black bars on the other two. stretch lets the proportions go.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    scaled = _resize(frames, *_scaled_size(frames.shape[2], frames.shape[1], width, height, fit))
    top, left = abs(scaled.shape[1] - height) // 2, abs(scaled.shape[2] - width) // 2
    if fit == "crop":
        return scaled[:, top : top + height, left : left + width]
    right, bottom = width - left - scaled.shape[2], height - top - scaled.shape[1]
    return functional.pad(scaled, (0, 0, left, right, top, bottom))


def fit_area(area: torch.Tensor, width: int, height: int, fit: Fit) -> torch.Tensor:
    """Return a bool area [n, h, w] as [n, height, width]; bars of a letterbox are outside of it."""
    if area.shape[1:] == (height, width):
        return area
    return fit_frames(area[..., None].float(), width, height, fit)[..., 0] > 0.5


def on_white(picture: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Return a reference [h, w, 3] in 0..1 in the middle of a white [3, height, width] in -1..1.

    The sizes, places and filter of `prepare_source` in VACE's wan_vace.py.
    """
    picture = picture.permute(2, 0, 1) * 2 - 1
    old_height, old_width = picture.shape[1:]
    if (old_height, old_width) == (height, width):
        return picture
    scale = min(height / old_height, width / old_width)
    size = max(1, int(old_height * scale)), max(1, int(old_width * scale))
    small = functional.interpolate(picture[None], size=size, mode="bilinear", align_corners=False)[0]
    canvas = torch.ones(3, height, width)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas[:, top : top + size[0], left : left + size[1]] = small
    return canvas


def _scaled_size(old_width: int, old_height: int, width: int, height: int, fit: Fit) -> tuple[int, int]:
    if fit == "stretch":
        return width, height
    scales = width / old_width, height / old_height
    scale = max(scales) if fit == "crop" else min(scales)
    return max(1, round(scale * old_width)), max(1, round(scale * old_height))


def _resize(frames: torch.Tensor, width: int, height: int) -> torch.Tensor:
    planes = frames.permute(0, 3, 1, 2)
    resized = functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).permute(0, 2, 3, 1)
