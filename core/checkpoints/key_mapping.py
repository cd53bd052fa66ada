"""Key mapping: from the tensors of a file to those of the module's class, names, shapes and scales."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PiyingError
from ..files.folder import component_files
from ..files.open import read_header
from ..files.safetensors_file import TensorEntry
from ..files.stored_tensor import StoredTensor, TransformedTensor
from ..quantization.fp8 import ScaledTensor
from ..quantization.stored_formats import SCALES, describes
from .inspect import FileComponent, file_components
from .layouts import Layout
from .layouts.base import LeftOut, Place, Split, SwapHalves, Whole

if TYPE_CHECKING:
    import torch


def translated(part: FileComponent, tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
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
    found: dict[str, StoredTensor] = {}
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
    layout: Layout, name: str, stored: StoredTensor, shapes: Mapping[str, tuple[int, ...]], source: str
) -> list[tuple[str, StoredTensor]]:
    place = layout.place(name, shapes)
    if place is None:
        # Another layer of the same family: an image-to-video model's, a motion encoder's.
        raise PiyingError(f"{source}: {name[:80]} is no tensor of a {layout.title}. Choose another file.")
    return _apply(place, stored)


def _apply(place: Place, stored: StoredTensor) -> list[tuple[str, StoredTensor]]:
    if isinstance(place, LeftOut):
        return []
    if isinstance(place, Split):
        return list(zip(place.names, stored.split(len(place.names)), strict=True))
    if isinstance(place, SwapHalves):
        return [(place.name, TransformedTensor(stored, stored.shape, _swap_halves))]
    if place.squeeze and len(stored.shape) == 4:
        return [(place.name, TransformedTensor(stored, stored.shape[:2], _drop_spatial))]
    return [(place.name, stored)]


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    upper, lower = tensor.chunk(2)
    return torch.cat([lower, upper])


def _drop_spatial(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, 0, 0]


def join_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the weights alone, those with a scale beside them as `Scaled`.

    A layer's scale is called `scale_weight` (ComfyUI until 2025), `weight_scale` (since), or
    `weight_scale_inv` (DeepSeek's and Qwen's FP8 releases), and is multiplied with in all three.
    """
    found = {name: stored for name, stored in tensors.items() if not describes(name)}
    for name, scale in tensors.items():
        layer, _, own = name.rpartition(".")
        weight = f"{layer}.weight"
        if own in SCALES and weight in found:
            found[weight] = ScaledTensor(found[weight], scale)
    return found


UNPACKED = "BF16"  # what a packed GGUF tensor counts as: it is unpacked as it is read


def class_shapes(paths: Iterable[Path], kind: str) -> dict[str, TensorEntry]:
    """Return the tensors of one component by the names of its class; their places in the file mean nothing.

    Args:
        paths: files, or folders of one component each.
        kind: "transformer", "vae", "text_encoder", "text_encoder_2" or "prompt_model".

    Raises:
        PiyingError: a file is damaged, or holds no such component.
    """
    found: dict[str, TensorEntry] = {}
    for path in paths:
        entries: dict[str, TensorEntry] = {}
        for file in component_files(path) if path.is_dir() else [path]:
            entries |= read_header(file).entries
        parts = [part for part in file_components(entries) if part.kind == kind.removesuffix("_2")]
        part = parts[-1 if kind.endswith("_2") else 0] if parts else None
        if part is None or part.layout is None:
            raise PiyingError(f"{path}: holds no {kind.replace('_', ' ')}. Choose another file.")
        found |= _placed(part.layout, {name: entries[full] for name, full in part.names.items()})
    return found


def _placed(layout: Layout, entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    weights = {name: entry for name, entry in entries.items() if not describes(name)}
    shapes = {name: entry.shape for name, entry in weights.items()}
    found = {}
    for name, entry in weights.items():
        place = None if any(re.fullmatch(spare, name) for spare in layout.spare) else layout.place(name, shapes)
        shape = entry.shape
        if isinstance(place, Split):
            shape = (shape[0] // len(place.names), *shape[1:])
        elif isinstance(place, Whole) and place.squeeze and len(shape) == 4:
            shape = shape[:2]
        dtype = UNPACKED if entry.dtype.startswith("Q") else entry.dtype
        names = () if place is None or isinstance(place, LeftOut) else _names(place)
        found.update({new: TensorEntry(dtype, shape, 0, 0) for new in names})
    return found


def _names(place: object) -> tuple[str, ...]:
    return place.names if isinstance(place, Split) else (str(getattr(place, "name", "")),)
