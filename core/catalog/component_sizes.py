"""Component sizes: what a model's parts weigh, from file headers or the manifest; no weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.components import find_source
from ..download.manifest import MANIFEST
from ..errors import PiyingError
from ..families.base import LORA_COMPONENT, SECOND_EXPERT
from ..files.folder import component_files, component_folder
from ..files.gguf_blocks import stored_bytes
from ..files.json_file import read_json
from ..files.open import read_header
from ..files.safetensors_file import TensorEntry
from ..host.base import Host
from ..lora.catalog import LoraFile, lora_files, loras_on, other_width
from ..planner.phases import Block, Component, InFile, InFp32, StoredWeights
from ..quantization.policy import NOTHING_CAST, CastRules
from ..quantization.registry import stored_type, weight_format
from ..quantization.stored_formats import weight_entries
from .installed_model import InstalledModel
from .selection import ModelHandle, choose_model, is_imagined

# The last convolution of diffusers' VAEs has as many inputs as they have channels at full size.
VAE_OUTPUT = "decoder.conv_out.weight"


class TensorInfo(NamedTuple):
    """A tensor of a file: its shape, and its type by the names of the safetensors format."""

    shape: tuple[int, ...]
    dtype: str


def folder_components(folder: Path, rules: Mapping[str, CastRules]) -> dict[str, Component]:
    """Return the components of a diffusers folder by the names of its parts.

    Args:
        folder: holds one folder for each part.
        rules: for each part its lists of blocks, none for a VAE, and which of their layers may be cast.

    Raises:
        PiyingError: a part's files are absent or damaged.
    """
    return {
        part: component(part, file_tensors(component_files(component_folder(folder, part))), of_part)
        for part, of_part in rules.items()
    }


def found_components(found: InstalledModel, rules: Mapping[str, CastRules]) -> dict[str, Component]:
    """Return the components of an installed model, in a folder or in single files; see `folder_components`.

    Raises:
        PiyingError: a part's files are absent, damaged, or of another model.
    """
    in_folder = {part: of_part for part, of_part in rules.items() if part not in found.parts}
    in_files = {part: of_part for part, of_part in rules.items() if part in found.parts}
    return folder_components(found.path, in_folder) | {
        part: component(part, _in_class(found.parts[part], part), of_part) for part, of_part in in_files.items()
    }


def _in_class(places: Iterable[Path], part: str) -> dict[str, TensorInfo]:
    sources = [find_source(place, part) for place in places]
    return {name: TensorInfo(entry.shape, entry.dtype) for one in sources for name, entry in one.entries.items()}


def file_tensors(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Return the tensors of files by name.

    Raises:
        PiyingError: a header is damaged.
    """
    found: dict[str, TensorEntry] = {}
    for file in files:
        found |= read_header(file).entries
    return {name: TensorInfo(entry.shape, entry.dtype) for name, entry in weight_entries(found).items()}


def component(name: str, tensors: Mapping[str, TensorInfo], rules: CastRules = NOTHING_CAST) -> Component:
    """Return what a table of tensors weighs, whatever format it was read from.

    Args:
        name: the component's name.
        tensors: by the names that the module's own state has.
        rules: its lists of blocks, and which of their layers may be cast.
    """
    groups: dict[str, dict[str, TensorInfo]] = {"": {}}
    for key, tensor in tensors.items():
        groups.setdefault(rules.block_of(key), {})[key] = tensor
    root = groups.pop("")
    hidden, inner = _widths(tensors, groups, rules)
    stored = _main_type(tensors)
    return Component(
        name=name,
        root=_block(root, rules, stored),
        blocks=tuple(_block(group, rules, stored) for group in groups.values()),
        stored=stored,
        hidden=hidden,
        inner=inner,
        files=_stored_weights(tensors, rules),
    )


def _stored_weights(tensors: Mapping[str, TensorInfo], rules: CastRules) -> tuple[StoredWeights, ...]:
    """Return the weights by what they are stored in and what may be done with them."""
    groups: dict[tuple[str, bool, bool, tuple[str, ...]], list[TensorInfo]] = {}
    for name, tensor in tensors.items():
        linear = rules.is_linear(name, tensor.shape)
        castable = linear and not rules.why_dense(name, tensor.shape)
        key = (stored_type(tensor.dtype), linear, castable, rules.in_fp32(name))
        groups.setdefault(key, []).append(tensor)
    return tuple(
        StoredWeights(
            type=kind,
            weights=sum(map(_count, group)),
            file_bytes=sum(map(_file_bytes, group)),
            rows=sum(tensor.shape[0] for tensor in group) if linear else 0,
            linear=linear,
            castable=castable,
            in_fp32=in_fp32,
        )
        for (kind, linear, castable, in_fp32), group in sorted(groups.items())
    )


def _file_bytes(tensor: TensorInfo) -> int:
    packed = weight_format(stored_type(tensor.dtype))
    if packed is not None and packed.declared_only:  # a type that only its format knows the size of
        return packed.stored_bytes(tensor.dtype, _count(tensor), tensor.shape[0])
    return stored_bytes(tensor.dtype, _count(tensor))


def _count(tensor: TensorInfo) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _castable(group: Mapping[str, TensorInfo], rules: CastRules) -> dict[str, TensorInfo]:
    return {key: tensor for key, tensor in group.items() if not rules.why_dense(key, tensor.shape)}


def _block(group: Mapping[str, TensorInfo], rules: CastRules, stored: str) -> Block:
    linear, packed = _castable(group, rules), _in_format(group, rules, stored)
    counts = [_count(tensor) for tensor in linear.values()]
    return Block(
        linear=sum(counts),
        kept=sum(map(_count, group.values())) - sum(counts),
        rows=sum(tensor.shape[0] for tensor in linear.values()),
        largest=max(counts, default=0),
        in_fp32=_in_fp32(group, rules, linear, packed),
        in_file=_in_file(packed, linear, stored),
    )


def _in_format(group: Mapping[str, TensorInfo], rules: CastRules, stored: str) -> dict[str, TensorInfo]:
    """Return the weights of a block that the file has in the format that most of the component's are in."""
    if weight_format(stored) is None:
        return {}
    return {
        name: tensor
        for name, tensor in group.items()
        if stored_type(tensor.dtype) == stored and rules.is_linear(name, tensor.shape)
    }


def _in_file(packed: Mapping[str, TensorInfo], linear: Container[str], stored: str) -> InFile:
    kind, castable = weight_format(stored), [tensor for name, tensor in packed.items() if name in linear]
    if kind is None:
        return InFile()
    return InFile(
        format=stored,
        weights=sum(map(_count, packed.values())),
        bytes=sum(kind.stored_bytes(one.dtype, _count(one), one.shape[0]) for one in packed.values()),
        castable=sum(map(_count, castable)),
        castable_rows=sum(one.shape[0] for one in castable),
        largest=max(map(_count, packed.values()), default=0),
    )


def _in_fp32(
    group: Mapping[str, TensorInfo], rules: CastRules, linear: Container[str], packed: Container[str]
) -> tuple[InFp32, ...]:
    counts: dict[str, list[int]] = {}
    for name, tensor in group.items():
        for compute in rules.in_fp32(name):
            both = counts.setdefault(compute, [0, 0, 0, 0])
            both[name not in linear] += _count(tensor)
            both[2 + (name not in linear)] += _count(tensor) if name in packed else 0
    return tuple(InFp32(compute, *both) for compute, both in sorted(counts.items()))


def _widths(
    tensors: Mapping[str, TensorInfo], groups: Mapping[str, Mapping[str, TensorInfo]], rules: CastRules
) -> tuple[int, int]:
    """Return the width between blocks and the widest inside one; of a VAE its channels at full size."""
    linear = [tensor for group in groups.values() for tensor in _castable(group, rules).values()]
    if linear:
        widest = max(linear, key=lambda tensor: (max(tensor.shape), _count(tensor)))
        return min(widest.shape), max(widest.shape)
    last = tensors.get(VAE_OUTPUT)
    return (last.shape[1] if last is not None and len(last.shape) > 1 else 0), 0


def _main_type(tensors: Mapping[str, TensorInfo]) -> str:
    """Return the type most parameters have; a file may mix several."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[stored_type(tensor.dtype)] += _count(tensor)
    return counts.most_common(1)[0][0] if counts else "fp32"


@cache
def _listed() -> dict[str, Any]:
    table = read_json(MANIFEST, "Reinstall Piying.")
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
    blocks: list[Block] = []
    for number, *counts in entry.get("blocks", ()):
        # Behind the numbers of weights, where there are such: {16-bit type: those that are held in fp32}.
        in_fp32 = counts.pop() if isinstance(counts[-1], dict) else {}
        blocks += [replace(Block(*counts), in_fp32=_listed_in_fp32(in_fp32))] * number
    root = Block(0, entry["root"], in_fp32=_listed_in_fp32(entry.get("root_in_fp32", {})))
    return Component(part, root, tuple(blocks), stored, entry.get("hidden", 0), entry.get("inner", 0))


def _listed_in_fp32(entry: Mapping[str, list[int]]) -> tuple[InFp32, ...]:
    return tuple(InFp32(compute, *counts) for compute, counts in sorted(entry.items()))


def with_loras(components: Mapping[str, Component], loras: Sequence[LoraFile], model: str) -> Mapping[str, Component]:
    """Return the components with what the LoRAs keep beside the transformer's weights, or those of either expert.

    Raises:
        PiyingError: a LoRA was made for a transformer of another width.
    """
    changed = dict(components)
    has_two = SECOND_EXPERT in components
    for part in (LORA_COMPONENT, SECOND_EXPERT)[: 1 + has_two] if loras else ():
        changed[part] = _with_loras(components[part], loras_on(part, loras, has_two=has_two), model)
    return changed


def _with_loras(transformer: Component, loras: Sequence[LoraFile], model: str) -> Component:
    for lora in loras:
        widths, hidden = lora.shape.widths, transformer.hidden
        if lora.shape.blocks and hidden and hidden not in widths:
            raise other_width(lora.name, lora.shape, model, f"its layers are {hidden} wide, the LoRA's {widths[0]}")
    blocks: Counter[str] = Counter()
    for lora in loras:
        blocks.update(lora.shape.blocks)
    return replace(
        transformer,
        root=_heavier(transformer.root, sum(lora.shape.outside for lora in loras)),
        blocks=_spread(transformer.blocks, list(blocks.values())),
    )


def _spread(blocks: tuple[Block, ...], numbers: list[int]) -> tuple[Block, ...]:
    """Return heavier blocks, the most on the largest: a component's blocks have no names.

    Their sum is right, and the largest is no smaller than it will be.
    """
    largest = sorted(blocks, key=lambda block: block.parameters, reverse=True)
    most = sorted([*numbers, *[0] * len(largest)], reverse=True)
    return tuple(_heavier(block, number) for block, number in zip(largest, most, strict=False))


def _heavier(block: Block, numbers: int) -> Block:
    return replace(block, kept=block.kept + numbers)


def wanted_model(handle: ModelHandle, host: Host) -> InstalledModel | None:
    """Return the model to plan for; None for one that is not installed, where only plans are made.

    Raises:
        PiyingError: the model is not installed, or cannot be used.
    """
    return None if is_imagined(handle, host) else choose_model(handle, host)


def wanted_components(
    handle: ModelHandle, host: Host, found: InstalledModel | None
) -> tuple[str, Mapping[str, Component]]:
    """Return the model's name and its components.

    Args:
        found: from `wanted_model`; a model that is not installed is taken from the manifest.

    Raises:
        PiyingError: the manifest does not list its sizes, its files are damaged, or a LoRA is not installed or was
            made for another model.
    """
    if found is None:
        listed = listed_components(handle.model)
        if not listed:
            raise PiyingError(
                f"model {handle.model!r} is not installed, and the manifest does not say what its parts weigh. "
                f"Install it first: `python install.py --models {handle.model}`."
            )
        return handle.model, with_loras(listed, lora_files(handle, host), handle.model)
    components = found_components(found, handle.family.rules_of(found))
    return found.name, with_loras(components, lora_files(handle, host), found.name)
