"""What a model's parts weigh, from the headers of its files or from the manifest; no weights are read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..memory.components import Block, Component
from .class_shapes import class_shapes
from .files import component_files, component_folder
from .found import FoundModel
from .header import read_safetensors_header
from .manifest import MANIFEST

TYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp32", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
# The last convolution of diffusers' VAEs has as many inputs as they have channels at full size.
VAE_OUTPUT = "decoder.conv_out.weight"


class Stored(NamedTuple):
    """A tensor of a file: its shape, and its type by the names of the safetensors format."""

    shape: tuple[int, ...]
    dtype: str


def folder_components(
    folder: Path, block_lists: Mapping[str, Collection[str]], keep: Mapping[str, Collection[str]]
) -> dict[str, Component]:
    """Return the components of a diffusers folder by the names of its parts.

    Args:
        folder: holds one folder for each part.
        block_lists: for each part the dotted names of its lists of blocks; none for a VAE.
        keep: for each part the patterns (fnmatch) of the layers that FP8 leaves alone.

    Raises:
        PiyingError: a part's files are absent or damaged.
    """
    return {
        part: component(part, file_tensors(component_files(component_folder(folder, part))), lists, keep.get(part, ()))
        for part, lists in block_lists.items()
    }


def found_components(
    found: FoundModel, block_lists: Mapping[str, Collection[str]], keep: Mapping[str, Collection[str]]
) -> dict[str, Component]:
    """Return the components of an installed model, in a folder or in single files; see `folder_components`.

    Raises:
        PiyingError: a part's files are absent, damaged, or of another model.
    """
    in_folder = {part: lists for part, lists in block_lists.items() if part not in found.parts}
    in_files = {part: lists for part, lists in block_lists.items() if part in found.parts}
    return folder_components(found.path, in_folder, keep) | {
        part: component(part, _in_class(found.parts[part], part), lists, keep.get(part, ()))
        for part, lists in in_files.items()
    }


def _in_class(places: Iterable[Path], part: str) -> dict[str, Stored]:
    entries = class_shapes(places, part)
    return {name: Stored(entry.shape, entry.dtype) for name, entry in entries.items()}


def file_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Return the tensors of safetensors files by name.

    Raises:
        PiyingError: a header is damaged.
    """
    found = {}
    for file in files:
        for name, entry in read_safetensors_header(file).entries.items():
            found[name] = Stored(entry.shape, entry.dtype)
    return found


def component(
    name: str, tensors: Mapping[str, Stored], block_lists: Collection[str] = (), keep: Collection[str] = ()
) -> Component:
    """Return what a table of tensors weighs, whatever format it was read from.

    Args:
        name: the component's name.
        tensors: by the names that the module's own state has.
        block_lists: dotted names of the lists of blocks, such as ("blocks", "vace_blocks").
        keep: patterns of the Linear layers that FP8 leaves alone.
    """
    groups: dict[str, dict[str, Stored]] = {"": {}}
    for key, tensor in tensors.items():
        groups.setdefault(_block_of(key, block_lists), {})[key] = tensor
    root = groups.pop("")
    hidden, inner = _widths(tensors, groups, keep)
    return Component(
        name=name,
        root=Block(0, sum(map(_count, root.values()))),
        blocks=tuple(_block(group, keep) for group in groups.values()),
        stored=_main_type(tensors),
        hidden=hidden,
        inner=inner,
    )


def _block_of(key: str, block_lists: Collection[str]) -> str:
    """Return "blocks.7" for a tensor of that block, "" for one outside all lists.

    Some files put the name of the model class before every name: "bert.encoder.layer.0.…".
    """
    for blocks in block_lists:
        index = f".{key}".partition(f".{blocks}.")[2].partition(".")[0]
        if index.isdigit():
            return f"{blocks}.{index}"
    return ""


def _count(tensor: Stored) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _linear(group: Mapping[str, Stored], keep: Collection[str]) -> dict[str, Stored]:
    """Return the weights of a block that FP8 may hold: those of two dimensions that are not kept."""
    return {
        key: tensor
        for key, tensor in group.items()
        if len(tensor.shape) == 2
        and key.endswith(".weight")
        and not any(fnmatchcase(key.removesuffix(".weight"), pattern) for pattern in keep)
    }


def _block(group: Mapping[str, Stored], keep: Collection[str]) -> Block:
    linear = _linear(group, keep).values()
    counts = [_count(tensor) for tensor in linear]
    return Block(
        linear=sum(counts),
        kept=sum(map(_count, group.values())) - sum(counts),
        rows=sum(tensor.shape[0] for tensor in linear),
        largest=max(counts, default=0),
    )


def _widths(
    tensors: Mapping[str, Stored], groups: Mapping[str, Mapping[str, Stored]], keep: Collection[str]
) -> tuple[int, int]:
    """Return the width between blocks and the widest inside one; of a VAE its channels at full size."""
    linear = [tensor for group in groups.values() for tensor in _linear(group, keep).values()]
    if linear:
        widest = max(linear, key=lambda tensor: (max(tensor.shape), _count(tensor)))
        return min(widest.shape), max(widest.shape)
    last = tensors.get(VAE_OUTPUT)
    return (last.shape[1] if last is not None and len(last.shape) > 1 else 0), 0


def _main_type(tensors: Mapping[str, Stored]) -> str:
    """Return the type most parameters have; a file may mix several."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[TYPES.get(tensor.dtype, "fp32")] += _count(tensor)
    return counts.most_common(1)[0][0] if counts else "fp32"


@cache
def _listed() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {entry["id"]: entry["components"] for entry in table["models"] if "components" in entry} | {
        "": table.get("components", {})
    }


def listed_components(model: str) -> dict[str, Component]:
    """Return the components of a model of the manifest, which need not be installed; empty for others.

    The manifest holds parameter counts, and for each model which of them it is made of.
    """
    table = _listed()
    return {
        part: _from_manifest(part, table[""][name], stored) for part, (name, stored) in table.get(model, {}).items()
    }


def _from_manifest(part: str, entry: Mapping[str, Any], stored: str) -> Component:
    blocks = [Block(*counts) for number, *counts in entry.get("blocks", ()) for _ in range(number)]
    return Component(
        part, Block(0, entry["root"]), tuple(blocks), stored, entry.get("hidden", 0), entry.get("inner", 0)
    )
