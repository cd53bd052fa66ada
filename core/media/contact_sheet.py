"""Contact sheets: the frames of a video in one picture, small enough for a page to look through them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_write import write_bytes
from .images import to_uint8
from .video import probe, read_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from PIL import Image

MAX_FRAMES = 121  # of a longer video as many are taken, evenly spread
MAX_SIDE = 480  # longest side of a frame, in pixels
MAX_PIXELS = 12_000_000  # of a sheet, which a browser holds as four bytes each
MARKED_FROM = 0.5  # as VACE's masks are read
MARK = (255, 56, 96, 130)  # colour of a mask over the frames


@dataclass(frozen=True)
class SheetLayout:
    """Where frames are on a sheet: row by row, each of one size.

    Attributes:
        frames: which frames of the video it has.
        columns: how many are in a row.
        width, height: of one frame, in pixels.
    """

    frames: tuple[int, ...]
    columns: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        rows = math.ceil(len(self.frames) / self.columns)
        return self.columns * self.width, rows * self.height


def layout_of(count: int, width: int, height: int) -> SheetLayout:
    """Return the layout of a video of `count` frames of that size, as near to a square as it goes."""
    shown = min(count, MAX_FRAMES)
    frames = tuple(round(index * (count - 1) / max(1, shown - 1)) for index in range(shown))
    scale = min(1.0, MAX_SIDE / max(width, height), math.sqrt(MAX_PIXELS / (shown * width * height)))
    small = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(shown, math.ceil(math.sqrt(shown * small[1] / small[0])))
    return SheetLayout(frames, columns, *small)


def write_sheets(
    folder: Path, frames: torch.Tensor, *, before: torch.Tensor | None = None, mask: torch.Tensor | None = None
) -> dict[str, Any]:
    """Write sheets of a video, and of what belongs to it frame by frame, to new files.

    Args:
        folder: made where it is not there.
        frames: [N, H, W, C] in 0..1.
        before: frames to compare them with, of the same shape.
        mask: [1 or N, H, W], drawn where it is above one half.

    Returns:
        The files' names, and where each frame is on them; fit for JSON.
    """
    count, height, width = frames.shape[:3]
    layout = layout_of(count, width, height)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"sheet": _write(folder, "jpg", _pictures(frames, layout), layout)}
    if before is not None:
        names["before"] = _write(folder, "jpg", _pictures(before, layout), layout)
    if mask is not None:
        names["mask"] = _write(folder, "png", _marks(mask, layout), layout)
    return {**names, **_places(layout, count)}


def write_sheet_of_file(folder: Path, video: Path) -> dict[str, Any]:
    """Do as `write_sheets` for a video file, of which one frame at a time is in memory.

    Raises:
        PiyingError: the file is missing, damaged or no video.
    """
    info = probe(video)
    layout = layout_of(info.frames, info.width, info.height)
    folder.mkdir(parents=True, exist_ok=True)
    shown = frozenset(layout.frames)
    with closing(read_frames(video, info)) as frames:
        pictures = (_small(frame, layout) for index, frame in enumerate(frames) if index in shown)
        name = _write(folder, "jpg", pictures, layout)
    return {"sheet": name, **_places(layout, info.frames)}


def _places(layout: SheetLayout, count: int) -> dict[str, Any]:
    place = {"columns": layout.columns, "width": layout.width, "height": layout.height}
    return {**place, "frames": list(layout.frames), "total": count}


def _pictures(frames: torch.Tensor, layout: SheetLayout) -> Iterator[Image.Image]:
    for index in layout.frames:
        yield _small(to_uint8(frames[index, ..., :3] if frames.shape[-1] > 1 else frames[index, ..., 0]), layout)


def _small(pixels: npt.NDArray[np.uint8], layout: SheetLayout) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels).resize((layout.width, layout.height), Image.Resampling.BOX)


def _marks(mask: torch.Tensor, layout: SheetLayout) -> Iterator[Image.Image]:
    from PIL import Image

    for index in layout.frames:
        marked = to_uint8((mask[min(index, len(mask) - 1)] > MARKED_FROM).float())
        small = Image.fromarray(marked).resize((layout.width, layout.height), Image.Resampling.BOX)
        yield small.point(lambda value: int(value > 127))


def _write(folder: Path, ending: str, pictures: Iterator[Image.Image], layout: SheetLayout) -> str:
    from PIL import Image

    # One byte a pixel for a mask: a colour that lets all through, and that of the mark.
    sheet = Image.new("P" if ending == "png" else "RGB", layout.size)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, layout.columns)
        sheet.paste(picture, (column * layout.width, row * layout.height))
    data = io.BytesIO()
    if ending == "png":
        sheet.putpalette([0, 0, 0, *MARK[:3]])
        sheet.save(data, "PNG", transparency=bytes([0, MARK[3]]))
    else:
        sheet.save(data, "JPEG", quality=88)
    # A name of its own: results that ComfyUI keeps go on showing the files of their run.
    name = f"piying_sheet_{os.urandom(8).hex()}.{ending}"
    write_bytes(folder / name, data.getbuffer())
    return name
