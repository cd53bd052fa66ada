"""Still images: PNG with ComfyUI's metadata, and any common image file to tensors as its loaders do it."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_write import write_bytes
from ..errors import PiyingError, explain_os_errors, file_error
from ..files.file_state import cached_by_state
from ..main_memory import is_memory_short
from .metadata import checked, json_ascii

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from PIL import Image

# Common formats only. EPS is left out for security: Pillow passes it to Ghostscript, which executes it.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "TGA", "PPM", "ICO")
CHANNELS = ("alpha", "red", "green", "blue")
# All frames of one file together; as float32 this is 4 GiB.
MAX_PIXELS = 4 * 89_478_485
LEAST_FRAME = 64 * 64  # pixels that a frame counts for: a smaller one takes as long to decode

# What Pillow's decoders raise on damaged files; RuntimeError is AVIF's.
_DAMAGE = (
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def to_uint8(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return a float tensor 0..1 as a uint8 array of the same shape: times 255, truncated, as ComfyUI saves.

    Values outside 0..1 are clamped, NaN is black.
    """
    import torch

    scaled = torch.nan_to_num(image.detach().float() * 255).clamp(0, 255)
    array: npt.NDArray[np.uint8] = scaled.to(torch.uint8).cpu().numpy()
    return array


def write_png(
    path: Path,
    image: npt.NDArray[np.uint8] | torch.Tensor,
    *,
    metadata: Mapping[str, str] | None = None,
    compress_level: int = 4,
) -> None:
    """Write an image to `path`: a uint8 array or a float tensor 0..1, [H,W,3], or [H,W,4] with alpha.

    metadata: JSON texts by key (`prompt`, `workflow`), as text chunks; beyond ASCII they are stored as JSON
    escapes, since ComfyUI's page takes any other text chunk for something else.
    Raises PiyingError for another shape, and when the disk fails; the file is then as it was.
    """
    import numpy as np
    from PIL import Image, PngImagePlugin

    pixels = image if isinstance(image, np.ndarray) else to_uint8(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not pixels.size:
        raise PiyingError(
            f"The image is {pixels.dtype} {list(pixels.shape)}. Give a uint8 array or a float tensor "
            "[H,W,3], or [H,W,4] with alpha."
        )
    chunks = PngImagePlugin.PngInfo()
    for key, text in checked(metadata or {}).items():
        chunks.add_text(key, json_ascii(text))
    # Encoded in memory first: Pillow's file writer loses the errno when a disk is full.
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=chunks, compress_level=compress_level)
    with explain_os_errors(f"Cannot save the image in {path.parent}"):
        write_bytes(path, file.getbuffer())


def read_image(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (image, mask) of an image file as ComfyUI's LoadImage does.

    image: float32 [N,H,W,3], 0..1, one per animation frame, turned the way the camera noted.
    mask: float32, 1 minus alpha, [N,H,W]; zeros [N,64,64] for an image without alpha.
    Raises PiyingError when the file is missing, damaged, cut short, too large or no image.
    """
    import numpy as np
    import torch

    with opened(path) as file:
        colours, alphas = zip(*_frames(file, path), strict=True)
    image = torch.from_numpy(np.stack(colours)).to(torch.float32) / 255.0
    if all(alpha is None for alpha in alphas):
        return image, torch.zeros(len(colours), 64, 64)
    opaque = np.full(colours[0].shape[:2], 255, np.uint8)
    alpha = np.stack([opaque if alpha is None else alpha for alpha in alphas])
    return image, 1.0 - torch.from_numpy(alpha).to(torch.float32) / 255.0


def check_image(path: Path) -> None:
    """Accept an image file whose first frame can be decoded.

    Raises PiyingError when it is missing, damaged, cut short, too large or no image.
    """
    with explain_os_errors(f"Cannot read {path}"):
        _check_once(path)


@cached_by_state
def _check_once(path: Path) -> None:
    with opened(path) as file:
        next(_frames(file, path))


def read_channel(path: Path, channel: str) -> torch.Tensor:
    """Return one of CHANNELS of the first frame as float32 [1,H,W], 0..1; of alpha, 1 where it is transparent.

    As ComfyUI's LoadImageMask does. Raises PiyingError when the file is missing, damaged, cut short, too large or no
    image.
    """
    import numpy as np
    import torch
    from PIL import ImageOps

    with opened(path) as file:
        frame = ImageOps.exif_transpose(file)
        # A colour declared transparent becomes alpha by this conversion alone.
        frame = frame if frame.mode == "RGBA" else _eight_bit(frame).convert("RGBA")
        plane = np.array(frame.getchannel(channel[0].upper()))
    values = torch.from_numpy(plane).to(torch.float32)[None] / 255.0
    return 1.0 - values if channel == "alpha" else values


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Yield an image file for decoding; what goes wrong in the body with the file becomes a PiyingError."""
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        raise PiyingError(f"{path} is not an image this pack can read. Readable: {', '.join(formats)}.") from error
    except (OSError, *_DAMAGE) as error:
        if is_memory_short(error):
            raise file_error(f"Cannot read {path}", errno.ENOMEM, "") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise file_error(f"Cannot read {path}", error.errno, error.strerror or "") from error
        raise PiyingError(f"{path} is damaged or cut short ({error}). Copy or download it again.") from error


def _eight_bit(frame: Image.Image) -> Image.Image:
    """Return a frame with 16-bit greys scaled to 8 bits: Pillow would clip them at 255, which leaves white."""
    return frame.convert("I").point(lambda grey: grey * (1 / 255)) if frame.mode.startswith("I") else frame


def _frames(file: Image.Image, path: Path) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]:
    import numpy as np
    from PIL import ImageOps, ImageSequence

    # Before the first is decoded: a GIF of a few MB can hold 100,000 frames, or frames of 4 billion pixels.
    if file.format in ("GIF", "WEBP", "PNG", "AVIF"):
        count = getattr(file, "n_frames", 1)
        if count > 1 and count * max(file.width * file.height, LEAST_FRAME) > MAX_PIXELS:
            raise _too_large(path, count)
    size, room = None, MAX_PIXELS
    for page in ImageSequence.Iterator(file):
        frame = _eight_bit(ImageOps.exif_transpose(page))
        size = size or frame.size
        # A batch has one size, but pages of a TIFF may differ: ComfyUI skips them as well.
        if frame.size != size:
            continue
        room -= frame.width * frame.height
        if room < 0:
            raise _too_large(path)
        colours = np.array(frame.convert("RGB"))
        # LoadImage takes transparency of a palette for alpha, but not a transparent colour of other modes.
        if frame.mode == "P" and "transparency" in frame.info:
            frame = frame.convert("RGBA")
        yield colours, np.array(frame.getchannel("A")) if "A" in frame.getbands() else None
        # Further pages of an MPO are previews and depth maps.
        if file.format == "MPO":
            return


def _too_large(path: Path, frames: int = 1) -> PiyingError:
    what = "is too large" if frames == 1 else f"has {frames} frames, which are too many"
    return PiyingError(
        f"{path} {what}: allowed are {MAX_PIXELS // 2_000_000} million pixels in one frame, twice that in all "
        f"frames, and {MAX_PIXELS // LEAST_FRAME} frames. Scale it down or cut it first."
    )
