"""From a file's tensors to those of the module's class: scales joined to weights, names and shapes brought over."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ..errors import PiyingError
from .layouts import Layout
from .layouts.base import LeftOut, Place, Split, SwapHalves
from .parts import Part
from .precision import SCALES, describes
from .quantized import Scaled
from .tensors import Changed, Stored


def translated(part: Part, tensors: Mapping[str, Stored], source: str) -> dict[str, Stored]:
    """Return one component's tensors under the names of its class.

    Args:
        part: which names of the file it has, and how it is laid out.
        tensors: those of the file.
        source: the file, for messages.

    Raises:
        PiyingError: a name is none of the layout's, or two tensors go to one place.
    """
    joined = join_scales({name: tensors[full] for name, full in part.names.items()})
    if part.layout is None:
        return joined
    found: dict[str, Stored] = {}
    shapes = {name: stored.shape for name, stored in joined.items()}
    for name, stored in joined.items():
        if any(re.fullmatch(pattern, name) for pattern in part.layout.spare):
            continue
        for place, moved in _moved(part.layout, name, stored, shapes, source):
            if place in found:
                raise PiyingError(f"{source}: two of its tensors are {place}. The file is damaged; fetch it again.")
            found[place] = moved
    return found


def _moved(
    layout: Layout, name: str, stored: Stored, shapes: Mapping[str, tuple[int, ...]], source: str
) -> list[tuple[str, Stored]]:
    place = layout.place(name, shapes)
    if place is None:
        # Another layer of the same family: an image-to-video model's, a motion encoder's.
        raise PiyingError(f"{source}: {name[:80]} is no tensor of a {layout.title}. Choose another file.")
    return _apply(place, stored)


def _apply(place: Place, stored: Stored) -> list[tuple[str, Stored]]:
    if isinstance(place, LeftOut):
        return []
    if isinstance(place, Split):
        return list(zip(place.names, stored.split(len(place.names)), strict=True))
    if isinstance(place, SwapHalves):
        return [(place.name, Changed(stored, stored.shape, _swap_halves))]
    if place.squeeze and len(stored.shape) == 4:
        return [(place.name, Changed(stored, stored.shape[:2], _drop_spatial))]
    return [(place.name, stored)]


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    upper, lower = tensor.chunk(2)
    return torch.cat([lower, upper])


def _drop_spatial(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, 0, 0]


def join_scales(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the weights alone, those with a scale beside them as `Scaled`.

    A layer's scale is called `scale_weight` (ComfyUI until 2025), `weight_scale` (since), or
    `weight_scale_inv` (DeepSeek's and Qwen's FP8 releases), and is multiplied with in all three.
    """
    found = {name: stored for name, stored in tensors.items() if not describes(name)}
    for name, scale in tensors.items():
        layer, _, own = name.rpartition(".")
        weight = f"{layer}.weight"
        if own in SCALES and weight in found:
            found[weight] = Scaled(found[weight], scale)
    return found
