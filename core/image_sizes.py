"""Picture sizes: what a model accepts, the nearest it does when a size is refused, and frames brought to a size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import PiyingError

if TYPE_CHECKING:
    import torch

Fit = Literal["refuse", "crop", "letterbox", "stretch"]


class VideoSize(NamedTuple):
    """The frames of a video, or pictures: width and height in pixels, and how many there are."""

    width: int
    height: int
    num_frames: int

    @property
    def bytes(self) -> int:
        """What they take as IMAGE: three numbers of fp32 for each pixel."""
        return 12 * self.width * self.height * self.num_frames


MULTIPLE = 16  # VAE stride 8 × patch 2, of all models here


def nearest_multiples(value: int, step: int, low: int, high: int, *, offset: int = 0) -> list[int]:
    """Return the one or two numbers `offset + k·step` within [low, high] that lie nearest to `value`."""
    below = offset + (value - offset) // step * step
    candidates = {min(max(candidate, low), high) for candidate in (below, below + step)}
    return sorted(candidates)


def either(numbers: list[int]) -> str:
    """Return "80 or 96" for [80, 96], for use in a sentence."""
    return " or ".join(str(number) for number in numbers)


def check_multiple(name: str, value: int, model: str, *, low: int, high: int, step: int = MULTIPLE) -> None:
    """Accept a side that is a multiple of `step` within [low, high].

    Args:
        name: of the input.
        model: the title of the model that takes it.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    if value % step or not low <= value <= high:
        nearest = nearest_multiples(value, step, low, high)
        raise PiyingError(
            f"{name} is {value}. {model} takes multiples of {step} from {low} to {high}: use {either(nearest)}."
        )


def nearest_shape(width: int, height: int, shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the (width, height) of `shapes` closest in aspect, then in area, to the one asked for."""

    def distance(shape: tuple[int, int]) -> tuple[float, int]:
        aspect = abs(shape[0] / shape[1] - width / height)
        return round(aspect, 2), abs(shape[0] * shape[1] - width * height)

    return min(shapes, key=distance)


def fit_frames(frames: torch.Tensor, width: int, height: int, fit: Fit) -> torch.Tensor:
    """Return frames [n, h, w, c] in 0..1 as [n, height, width, c].

    crop scales until both sides reach the size and cuts the middle out, which is what VACE's
    `VaceVideoProcessor.resize_crop` does, with the same filter. letterbox scales until one side reaches it
    and puts black bars on the other two. stretch lets the proportions go.
    """
    from torch.nn import functional

    if frames.shape[1:3] == (height, width):
        return frames
    size = height, width
    if fit != "stretch":
        scales = width / frames.shape[2], height / frames.shape[1]
        scale = max(scales) if fit == "crop" else min(scales)
        size = max(1, round(scale * frames.shape[1])), max(1, round(scale * frames.shape[2]))
    planes = functional.interpolate(frames.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)
    scaled = planes.clamp(0, 1).permute(0, 2, 3, 1)  # bicubic overshoots
    top, left = abs(scaled.shape[1] - height) // 2, abs(scaled.shape[2] - width) // 2
    if fit == "crop":
        return scaled[:, top : top + height, left : left + width]
    right, bottom = width - left - scaled.shape[2], height - top - scaled.shape[1]
    return functional.pad(scaled, (0, 0, left, right, top, bottom))
