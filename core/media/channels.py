"""One channel of an image file, as ComfyUI's LoadImageMask reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .images import eight_bit, opened

if TYPE_CHECKING:
    import torch

CHANNELS = ("alpha", "red", "green", "blue")


def read_channel(path: Path, channel: str) -> torch.Tensor:
    """Return one of CHANNELS of the first frame as float32 [1,H,W], 0..1; of alpha, 1 where it is transparent.

    Raises PiyingError when the file is missing, damaged, cut short, too large or no image.
    """
    import numpy as np
    import torch
    from PIL import ImageOps

    with opened(path) as file:
        frame = ImageOps.exif_transpose(file)
        # A colour declared transparent becomes alpha by this conversion alone.
        frame = frame if frame.mode == "RGBA" else eight_bit(frame).convert("RGBA")
        plane = np.array(frame.getchannel(channel[0].upper()))
    values = torch.from_numpy(plane).to(torch.float32)[None] / 255.0
    return 1.0 - values if channel == "alpha" else values
