"""Animated WebP files: written as ComfyUI's SaveAnimatedWEBP does, and read with Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_write import write_bytes
from ..errors import PiyingError, explain_os_errors
from .images import opened, to_uint8
from .metadata import checked, json_ascii

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from .encoding import Frames

METHODS = {"default": 4, "fastest": 0, "slowest": 6}
MAX_SIDE = 16383  # of the format: 14 bits

_MODEL_TAG, _MAKE_TAG = 0x0110, 0x010F


def write_webp(
    path: Path,
    frames: Frames,
    fps: float,
    *,
    lossless: bool = True,
    quality: int = 80,
    method: str = "default",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames [H,W,3] or [H,W,4] to `path`, with ComfyUI's settings and metadata in EXIF tags.

    Args:
        frames: uint8 arrays or float tensors 0..1.
        fps: each frame is shown for 1000 / fps milliseconds, rounded down.
        method: one of METHODS, the encoder's effort.

    Raises:
        PiyingError: no frames, frames that are too large, or the disk fails; the file is then as it was.
    """
    import numpy as np
    from PIL import Image

    doing = f"Cannot save the animation in {path.parent}"
    arrays = [frame if isinstance(frame, np.ndarray) else to_uint8(frame) for frame in frames]
    if not arrays:
        raise PiyingError(f"{doing}: there are no frames. Give at least one image.")
    height, width = arrays[0].shape[:2]
    if max(height, width) > MAX_SIDE:
        raise PiyingError(f"{doing}: the frames are {width}×{height}, WebP holds {MAX_SIDE} at most. Scale them down.")
    first, *others = (Image.fromarray(array) for array in arrays)
    # Encoded in memory first: Pillow's file writer loses the errno when a disk is full.
    file = io.BytesIO()
    try:
        first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=others,
            duration=int(1000.0 / fps),
            lossless=lossless,
            quality=quality,
            method=METHODS[method],
            exif=_exif(checked(metadata or {})),
        )
    except (ValueError, OSError) as error:
        raise PiyingError(f"{doing}: {error}. Save fewer or smaller frames, or another format.") from error
    with explain_os_errors(doing):
        write_bytes(path, file.getbuffer())


def webp_size(path: Path) -> tuple[int, int, list[int]]:
    """Return width, height and the milliseconds of each frame; of a still picture one frame of 0.

    Nothing is decoded: the durations are in the headers of the frames.
    Raises PiyingError when the file is missing, damaged or no WebP.
    """
    with opened(path) as image:
        width, height = image.size
        count: int = getattr(image, "n_frames", 1)
    spans = []
    with explain_os_errors(f"Cannot read {path}"), path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            # A frame begins with its place and size, 3 bytes each, then its duration.
            start = file.read(min(length, 16)) if kind == b"ANMF" else b""
            if len(start) == 16:
                spans.append(int.from_bytes(start[12:15], "little"))
            file.seek(length + length % 2 - len(start), 1)
    # The decoder's count: a file that is cut short has more headers than frames, or fewer.
    return width, height, (spans + [0] * count)[:count]


def webp_frames(path: Path) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield the frames, [H,W,3], or [H,W,4] with alpha. Raises PiyingError when the file is damaged."""
    import numpy as np
    from PIL import ImageSequence

    with opened(path) as image:
        for frame in ImageSequence.Iterator(image):
            yield np.array(frame if frame.mode == "RGBA" else frame.convert("RGB"))


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
