"""Upscaling: frames made larger by a network in tiles, or by resampling alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import PiyingError, check_choice
from ..executor.model_cache import cached_model
from ..executor.placement import module_bytes
from ..files.file_state import cached_by_state, file_state
from ..host.base import Host
from ..image_sizes import VideoSize
from ..main_memory import has_room
from ..media.frames import check_finite, checked_frames
from ..planner.plan_types import amount
from .choices import BICUBIC, METHODS, UPSCALING, spandrel_missing
from .model_files import read_shapes, read_weights
from .places import Cost, Place, Work, carry_out, traced_cost

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

log = logging.getLogger("piying")

OVERLAP = 32  # pixels of the frame that neighbouring tiles share
EDGE = 8  # pixels of them at the edge of a tile that are not used: a network sees nothing beyond it
MAX_SIDE = 16384


@dataclass(frozen=True)
class WantedSize:
    """How large frames are to become.

    Attributes:
        scale: times their size, where neither side is given.
        width, height: in pixels; 0 to follow from the other one.
    """

    scale: float = 2.0
    width: int = 0
    height: int = 0

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of frames of a size.

        Raises:
            PiyingError: there are no such pictures.
        """
        if self.width or self.height:
            sides = (self.width or self.height * width / height, self.height or self.width * height / width)
        else:
            sides = width * self.scale, height * self.scale
        # Even, since videos store colours for two by two pixels; a side that is given stays as it is.
        wide, high = (
            side if given else max(2, 2 * math.floor(side / 2 + 0.5))
            for side, given in zip(sides, (self.width, self.height), strict=True)
        )
        if not (0 < wide <= MAX_SIDE and 0 < high <= MAX_SIDE):
            raise PiyingError(
                f"The frames would become {wide}×{high}. Sides go up to {MAX_SIDE} pixels: set scale, width or height "
                "lower."
            )
        return int(wide), int(high)


class Upscaler(torch.nn.Module):
    """A network that spandrel knows: pictures [1, 3, H, W] in 0..1 become `scale` times as large."""

    def __init__(self, descriptor: ImageModelDescriptor[Any]) -> None:
        super().__init__()
        self.network = descriptor.model
        self.scale = int(descriptor.scale)
        self.channels = int(descriptor.input_channels)
        self.architecture = str(descriptor.architecture.name)
        self.can_tile = descriptor.tiling.name != "INTERNAL"  # which cuts pictures up by itself
        self.prefers_whole = descriptor.tiling.name == "DISCOURAGED"
        self._call = descriptor

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Return the larger picture; each channel by itself where the network takes one."""
        if self.channels == 1:
            return self._call(picture.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]
        return self._call(picture)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class UpscalerTraits:
    """What is known of an upscaling network without its weights.

    Attributes:
        architecture: its name.
        scale: how many times larger pictures become.
        can_tile, prefers_whole: see `Work`.
        weights: their bytes in fp32.
        cost: what it needs beside them.
    """

    architecture: str
    scale: int
    can_tile: bool
    prefers_whole: bool
    weights: int
    cost: Cost

    @classmethod
    def of(cls, network: Upscaler) -> UpscalerTraits:
        """Return those of a network in main memory, or on the meta device."""
        with torch.inference_mode():
            cost = traced_cost(network, lambda copied, size: copied(torch.empty(1, 3, *size, device="meta")))
        return cls(
            network.architecture,
            network.scale,
            network.can_tile,
            network.prefers_whole,
            weights=module_bytes(network),
            cost=cost,
        )

    def work(self, height: int, width: int, tile: int) -> Work:
        """Return what it takes to make a picture of a size larger; `tile` as the user chose it."""
        how = {"can_tile": self.can_tile, "prefers_whole": self.prefers_whole}
        return Work(self.weights, self.cost, height, width, tile=tile, **how)


@cached_by_state
def upscaler_traits(path: Path) -> UpscalerTraits:
    """Return the traits of a file's network, from its header where its architecture allows it.

    Raises:
        PiyingError: spandrel is not there, the file is damaged, or its architecture is not known.
    """
    try:
        with torch.device("meta"):
            network = _network(path, read_shapes(path), "meta")
    except (RuntimeError, TypeError) as error:
        # Some networks look at numbers while they are made, which the meta device has none of.
        log.debug("%s is read for its plan: %s", path, error)
        network = _read(path)
    return UpscalerTraits.of(network)


def load_upscaler(path: Path, host: Host) -> Upscaler:
    """Return the network of a file, in fp32 and main memory.

    Raises:
        PiyingError: spandrel is not there, the file is damaged, or its architecture is not known.
    """
    host.check_cancelled()
    size = path.stat().st_size
    return cached_model("upscaler", (path, file_state(path)), partial(_read, path), host, size=2 * size)


def _read(path: Path) -> Upscaler:
    try:
        return _network(path, read_weights(path), "cpu")
    except RuntimeError as error:
        raise _damaged(path, error) from error


def _network(path: Path, weights: dict[str, torch.Tensor], device: str) -> Upscaler:
    """Return the network that weights are of; for errors see `load_upscaler`."""
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:  # torchvision for another build of torch raises RuntimeError
        raise spandrel_missing(path.name, str(error)) from error
    try:
        found = spandrel.ModelLoader(device).load_from_state_dict(weights)
    except spandrel.UnsupportedModelError as error:
        raise PiyingError(
            f"{path}: spandrel {metadata.version('spandrel')} knows no upscaling network with these weights. Choose "
            "another file."
        ) from error
    except (KeyError, ValueError, AssertionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.input_channels not in (1, 3):
        raise PiyingError(
            f"{path}: is a {found.architecture.name} network, which makes no picture of a picture alone. "
            "Choose another file."
        )
    return Upscaler(found).eval().requires_grad_(False).float()


def _damaged(path: Path, error: Exception) -> PiyingError:
    return PiyingError(f"{path}: is damaged, or is not what its weights' names say ({error}).")


def upscale(
    images: Any, *, model: str, wanted: WantedSize, method: str, tile: int, host: Host
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return frames at another size, IMAGE [N, height, width, 3], and what ran.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `UPSCALING.choices`.
        wanted: the size. Where both sides are given and the aspect ratio is another one, the frames are cut in the
            middle.
        method: one of `METHODS`: how a network's result is brought to the size, or the frames where there is none.
        tile: the side of the pieces that a network is given, 0 to choose one by what is free.

    Raises:
        PiyingError: no frames, no such model, one that cannot be read, or memory ran out.
    """
    check_choice("method", method, METHODS)
    path = UPSCALING.chosen(model, host)
    frames = checked_frames(images)
    check_finite(frames, "frames")
    count, height, width = frames.shape[:3]
    wide, high = wanted.of(width, height)
    size = VideoSize(wide, high, count).bytes
    if not has_room(size, size):
        raise PiyingError(
            f"{count} frames of {wide}×{high} take {amount(size)} of main memory, which are not free. Set scale "
            "lower, or give fewer frames at once."
        )
    frames = _cut(frames, wide, high)
    result = torch.empty(count, high, wide, 3)
    if path is None:
        log.info("Upscaling %d frames %d×%d → %d×%d by %s.", count, width, height, wide, high, method)
        progress = host.progress("Upscaling", count)
        for index, frame in enumerate(frames):
            result[index] = resampled(frame, wide, high, method)
            progress.step(index + 1)
        return result, {"model": "none", "method": method, "size": f"{wide}×{high}"}
    network = load_upscaler(path, host)
    place = _Frames(frames, result, network, method, host).run(path.stem, tile)
    record = {"model": path.name, "architecture": network.architecture, "scale": network.scale, "method": method}
    return result, {**record, "size": f"{wide}×{high}", "place": str(place)}


@dataclass
class _Frames:
    """Frames that a network makes larger, one after the other, in whatever places it takes.

    Attributes:
        frames: [N, H, W, 3].
        result: [N, height, width, 3]; filled.
        done: frames that are finished.
    """

    frames: torch.Tensor
    result: torch.Tensor
    network: Upscaler
    method: str
    host: Host
    done: int = 0

    def run(self, name: str, tile: int) -> Place:
        """Make all frames larger and return the place where the last one was."""
        count, height, width, _ = self.frames.shape
        high, wide = self.result.shape[1:3]
        what = (
            f"Upscaling {count} frames {width}×{height} → {wide}×{high} with {name} "
            f"({self.network.architecture}, {self.network.scale}×)"
        )
        work = UpscalerTraits.of(self.network).work(height, width, tile)
        with torch.inference_mode():
            return carry_out(
                work,
                self.network,
                self.host,
                what,
                passes=lambda place: tiled_pixels(height, width, place.side) * (count - self.done),
                do=self._upscale,
            )

    def _upscale(self, place: Place, seconds: float) -> None:
        height, width = self.frames.shape[1:3]
        pieces = tiles(height, width, place.side)
        total = (len(self.frames) - self.done) * len(pieces)
        progress = self.host.progress("Upscaling", total, seconds=seconds)
        steps = 0

        def piece_done() -> None:
            nonlocal steps
            steps += 1
            progress.step(steps)

        while self.done < len(self.frames):
            picture = self.frames[self.done].movedim(-1, 0)[None].float()
            larger = in_tiles(self.network, picture, pieces, device=place.device, piece_done=piece_done)
            high, wide = self.result.shape[1:3]
            self.result[self.done] = resampled(larger[0].movedim(0, -1), wide, high, self.method)
            self.done += 1


Tile = tuple[int, int, int, int]  # top, bottom, left, right


def tiles(height: int, width: int, side: int) -> list[Tile]:
    """Return pieces that cover a picture: squares of `side` that overlap, all of one size; 0 for the whole picture."""

    def starts(length: int) -> list[tuple[int, int]]:
        if not side or side >= length:
            return [(0, length)]
        # Evenly spread, so that the last one is as large as the others and overlaps no more than it has to.
        number = math.ceil((length - side) / max(1, side - OVERLAP)) + 1
        places = [round(index * (length - side) / (number - 1)) for index in range(number)]
        return [(start, start + side) for start in places]

    return [(*rows, *columns) for rows in starts(height) for columns in starts(width)]


def tiled_pixels(height: int, width: int, side: int) -> float:
    """Return the pixels of all `tiles` of a picture together."""
    return sum((bottom - top) * (right - left) for top, bottom, left, right in tiles(height, width, side))


def in_tiles(
    network: Upscaler, picture: torch.Tensor, pieces: list[Tile], *, device: str, piece_done: Callable[[], None]
) -> torch.Tensor:
    """Return what a network makes of a picture [1, 3, H, W], piece by piece, on the CPU; overlaps fade over.

    Args:
        network: on `device`.
        pieces: from `tiles`.
        piece_done: called after each.
    """
    scale, (height, width) = network.scale, picture.shape[-2:]
    whole = torch.zeros(1, 3, height * scale, width * scale)
    shares = torch.zeros(1, 1, height * scale, width * scale)
    for top, bottom, left, right in pieces:
        larger = network(picture[:, :, top:bottom, left:right].to(device)).float().cpu()
        rows = _fade(bottom - top, top > 0, bottom < height, scale)
        columns = _fade(right - left, left > 0, right < width, scale)
        share = rows[:, None] * columns
        where = (..., slice(top * scale, bottom * scale), slice(left * scale, right * scale))
        whole[where] += larger * share
        shares[where] += share
        piece_done()
    return whole / shares


def _fade(length: int, at_start: bool, at_end: bool, scale: int) -> torch.Tensor:
    """Return weights along one side of a piece, which fall to 0 towards the edges that it shares with others."""
    weights = torch.ones(length * scale)
    ramp = torch.linspace(0, 1, (OVERLAP - 2 * EDGE) * scale + 1)[1:]
    ramp = torch.cat([torch.zeros(EDGE * scale), ramp])
    if at_start:
        weights[: len(ramp)] *= ramp
    if at_end:
        weights[-len(ramp) :] *= ramp.flip(0)
    return weights


def cut_size(width: int, height: int, wide: int, high: int) -> tuple[int, int]:
    """Return the width and height of the middle of a picture that has the aspect ratio of another size."""
    inner_width = min(width, max(1, round(height * wide / high)))
    inner_height = min(height, max(1, round(width * high / wide)))
    # Rounded sides differ from the ratio by a pixel as often as not: that is no reason to cut.
    if width - inner_width <= 1 and height - inner_height <= 1:
        return width, height
    return inner_width, inner_height


def _cut(frames: torch.Tensor, wide: int, high: int) -> torch.Tensor:
    """Return the middle of frames [N, H, W, C] that has the aspect ratio of a size."""
    height, width = frames.shape[1:3]
    inner_width, inner_height = cut_size(width, height, wide, high)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return frames[:, top : top + inner_height, left : left + inner_width]


def resampled(frame: torch.Tensor, width: int, height: int, method: str) -> torch.Tensor:
    """Return a frame [H, W, 3] at another size, in 0..1 and on the CPU; smaller ones are averaged without aliasing."""
    from PIL import Image

    pixels = frame.detach().float().cpu().clamp(0, 1)
    if pixels.shape[:2] == (height, width):
        return pixels
    kernel = Image.Resampling.BICUBIC if method == BICUBIC else Image.Resampling.LANCZOS
    # Channel by channel: Pillow resamples colours in 8 bits, single channels in floating point.
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), kernel))
        for plane in np.ascontiguousarray(pixels.movedim(-1, 0).numpy())
    ]
    return torch.from_numpy(np.stack(planes, axis=-1)).clamp(0, 1)
