"""Animated WebP files, in and out with Pillow: few ffmpegs can read them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PiyingError
from . import disk
from .images import opened, to_uint8
from .metadata import checked, json_ascii
from .video import VideoInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from PIL import Image

METHODS = {"default": 4, "fastest": 0, "slowest": 6}
MAX_SIDE = 16383

_MODEL_TAG, _MAKE_TAG = 0x0110, 0x010F


def is_webp(path: Path) -> bool:
    """Return whether a file is WebP, by its first bytes. Raises PiyingError when it cannot be read."""
    with disk.explained(f"Cannot read {path}"), path.open("rb") as file:
        head = file.read(12)
    return head.startswith(b"RIFF") and head.endswith(b"WEBP")


def probe_webp(path: Path) -> VideoInfo:
    """Return size, rate and length of a WebP file. Raises PiyingError when it is damaged."""
    with opened(path) as image:
        width, height = image.size
        # WebP tells how long a frame is shown when it is decoded.
        spans = [_span(image, index) for index in range(getattr(image, "n_frames", 1))]
    duration = Fraction(sum(spans), 1000)
    fps = (len(spans) / duration).limit_denominator(1001) if duration else Fraction(1)
    return VideoInfo(width, height, fps, len(spans), float(duration or len(spans)), has_audio=False)


def read_webp(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield every frame of a WebP file as a uint8 array [H,W,3]. Raises PiyingError when it is damaged."""
    import numpy as np
    from PIL import ImageSequence

    with opened(path) as image:
        for frame in ImageSequence.Iterator(image):
            yield np.array(frame.convert("RGB"))


def write_webp(
    path: Path,
    frames: Iterable[npt.NDArray[np.uint8] | torch.Tensor],
    fps: float,
    *,
    lossless: bool = True,
    quality: int = 80,
    method: str = "default",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames [H,W,3] or [H,W,4] to `path`, with ComfyUI's settings and metadata in EXIF tags.

    fps: each frame is shown for 1000 / fps milliseconds, rounded down.
    method: one of METHODS, the encoder's effort.
    Raises PiyingError for no frames, frames that are too large, and when the disk fails; no file is left then.
    """
    doing = f"Cannot save the animation in {path.parent}"
    pictures = _pictures(frames, doing)
    file = io.BytesIO()
    try:
        pictures[0].save(
            file,
            format="WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=int(1000.0 / fps),
            lossless=lossless,
            quality=quality,
            method=METHODS[method],
            exif=_exif(checked(metadata or {})),
        )
    except (ValueError, OSError) as error:
        raise PiyingError(f"{doing}: {error}. Save fewer or smaller frames, or another format.") from error
    with disk.explained(doing), disk.removed_on_failure(path):
        path.write_bytes(file.getbuffer())


def _span(image: Image.Image, index: int) -> int:
    image.seek(index)
    image.load()
    return int(image.info.get("duration", 0))


def _pictures(frames: Iterable[npt.NDArray[np.uint8] | torch.Tensor], doing: str) -> list[Image.Image]:
    import numpy as np
    from PIL import Image

    arrays = [frame if isinstance(frame, np.ndarray) else to_uint8(frame) for frame in frames]
    if not arrays:
        raise PiyingError(f"{doing}: there are no frames. Give at least one image.")
    height, width = arrays[0].shape[:2]
    if max(height, width) > MAX_SIDE:
        raise PiyingError(f"{doing}: the frames are {width}×{height}, WebP holds {MAX_SIDE} at most. Scale them down.")
    return [Image.fromarray(array) for array in arrays]


def _exif(metadata: Mapping[str, str]) -> Image.Exif:
    from PIL import Image

    # ComfyUI's page reads "prompt:{…}" from the camera's model, the others from the tags below it.
    exif = Image.Exif()
    if "prompt" in metadata:
        exif[_MODEL_TAG] = f"prompt:{json_ascii(metadata['prompt'])}"
    others = [(key, text) for key, text in metadata.items() if key != "prompt"]
    for place, (key, text) in enumerate(others):
        exif[_MAKE_TAG - place] = f"{key}:{json_ascii(text)}"
    return exif
