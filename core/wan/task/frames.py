"""Frames and masks: what arrives on IMAGE and MASK sockets, checked and in one form, and brought to a size."""

from __future__ import annotations

import logging

import torch
from torch.nn import functional

from ...errors import PiyingError
from ...image_sizes import Fit, fit_frames
from .vace_task import size_text

log = logging.getLogger("piying")


WHITE_FROM = 0.5  # the authors' threshold (`vace_encode_frames`): above it a pixel is generated


def frames_of(image: torch.Tensor, noun: str) -> torch.Tensor:
    """Return an IMAGE as float32 [n, h, w, 3] in 0..1 on the CPU; alpha is left out, gray becomes RGB.

    Raises:
        PiyingError: it holds no frames, or is no picture at all.
    """
    frames = _four_dimensional(image, noun)[..., :3]
    return frames.expand(-1, -1, -1, 3) if frames.shape[-1] == 1 else frames


def pictures_on_white(image: torch.Tensor, noun: str) -> torch.Tensor:
    """Return an IMAGE as `frames_of` does, with what alpha hides made white.

    Raises:
        PiyingError: it holds no frames, or is no picture at all.
    """
    frames = frames_of(image, noun)
    if image.shape[-1] != 4:
        return frames
    alpha = _four_dimensional(image, noun)[..., 3:]
    return frames * alpha + (1 - alpha)


def _four_dimensional(image: torch.Tensor, noun: str) -> torch.Tensor:
    frames = image[None] if image.ndim == 3 else image
    if frames.ndim != 4 or frames.shape[-1] not in (1, 3, 4) or 0 in frames.shape:
        raise PiyingError(
            f"The {noun} has the shape {list(image.shape)}. An IMAGE is frames × height × width × 3 colours, with at "
            "least one frame."
        )
    frames = frames.detach().float().cpu()
    low, high = frames.aminmax()
    if low.isnan():
        log.warning("The %s holds values that are no numbers (NaN); they count as black.", noun)
    # Frames are hundreds of megabytes: they are copied only where something is wrong with them.
    return frames if low >= 0 and high <= 1 else frames.nan_to_num(0.0).clamp(0, 1)


def mask_of(mask: torch.Tensor, frames: torch.Tensor, noun: str = "video") -> torch.Tensor:
    """Return a MASK as float32 [1 or n, h, w] on the CPU, made for `frames` [n, h, w, 3].

    Raises:
        PiyingError: it has another size or another number of frames than they have.
    """
    values = mask.detach().float().cpu().nan_to_num(0.0)
    if values.ndim == 4:
        values = values.squeeze(1 if values.shape[1] == 1 else -1)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise PiyingError(f"The mask has the shape {list(mask.shape)}. A MASK is frames × height × width.")
    size, wanted = (values.shape[2], values.shape[1]), (frames.shape[2], frames.shape[1])
    # ComfyUI's own stand-in for a mask; its size alone would not tell where it comes from.
    if size != wanted and size == (64, 64) and not values.any():
        raise PiyingError(
            f"The mask is black and 64×64, the {noun} {size_text(wanted)}: that is what Load Image gives for a "
            "picture without transparency. Paint one in its mask editor, or wire a mask node here."
        )
    if size != wanted:
        raise PiyingError(
            f"The mask is {size_text(size)}, the {noun} {size_text(wanted)}. Give a mask of the {noun}'s size: "
            "draw it on one of its frames, or scale it before."
        )
    if len(values) not in (1, len(frames)):
        raise PiyingError(
            f"The mask has {len(values)} frames, the {noun} {len(frames)}. Give one mask frame, or as many as the "
            f"{noun} has."
        )
    return values


def white_of(mask: torch.Tensor) -> torch.Tensor:
    """Return where a mask is white, as bool; a soft mask is cut in the middle."""
    return mask > WHITE_FROM


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
