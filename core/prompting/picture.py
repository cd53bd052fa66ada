"""The picture a model looks at: the first of a batch, small enough to be read in a moment."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 768  # pixels; Qwen-VL makes one token of 28×28 or 32×32 of them


@dataclass(frozen=True)
class Picture:
    """An RGB picture and the hash of its pixels."""

    image: Image
    digest: str

    def png(self) -> bytes:
        """Return the picture as a file."""
        file = BytesIO()
        self.image.save(file, format="PNG")
        return file.getvalue()


def first_picture(images: Any) -> Picture:
    """Return the first of a batch of frames.

    Args:
        images: float tensor [N, H, W, 3 or more] in 0..1.

    Raises:
        PiyingError: it is no such tensor, or empty.
    """
    from PIL import Image

    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[-1] < 3 or 0 in shape:
        raise PiyingError(f"image has the shape {list(shape)}. Connect an IMAGE of at least one frame.")
    pixels = (images[0, :, :, :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return Picture(image, hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32])
