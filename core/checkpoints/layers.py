"""Layers of a file: what each is held in where a plan stores weights in a format, and why; from the header alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..families.registry import component_specs, family_named
from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..files.open import read_header
from ..files.safetensors_file import TensorEntry
from ..quantization.policy import NOTHING_CAST, STORED, WEIGHT, CastRules, held_types
from ..quantization.registry import FORMATS, stored_type, weight_format
from ..quantization.stored_formats import check_readable
from .components import file_components
from .fitness import class_entries
from .layouts import Layout

GB, MB = 1e9, 1e6  # as makers of disks and hubs count
SHOWN = 3  # names of a group in its line


@dataclass(frozen=True)
class LayerGroup:
    """Tensors of one component that are held in one type for one reason.

    Attributes:
        type: a number type, or the name of a format.
        tensors: how many there are.
        bytes: of all of them, scales included.
        why: in a few words.
        names: by the names of the component's class, without ".weight"; a star stands for a block's number.
    """

    type: str
    tensors: int
    bytes: int
    why: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ComponentLayers:
    """One component of a file where the plan stores its weights in a format.

    Attributes:
        kind: such as "transformer".
        storage: the name of the format.
        groups: the largest first.
    """

    kind: str
    title: str
    storage: str
    groups: tuple[LayerGroup, ...]


def layers(path: Path) -> list[ComponentLayers]:
    """Return what the layers of each component of a file are held in, for each format it can be held in.

    Raises:
        PiyingError: the file is damaged, or its weights cannot be read.
    """
    header = read_header(path)
    check_readable(header)
    found = []
    for part in file_components(header.entries):
        if part.layout is None:
            continue
        tensors = class_entries(part.layout, {name: header.entries[full] for name, full in part.names.items()})
        rules = rules_of(part.layout, tensors)
        in_file = {stored_type(tensor.dtype) for tensor in tensors.values()}
        for storage in (name for name, one in FORMATS.items() if one.can_cast or name in in_file):
            found.append(
                ComponentLayers(
                    part.kind, part.title(header.entries), storage, tuple(_groups(tensors, rules, storage))
                )
            )
    return found


def rules_of(layout: Layout, names: Iterable[str]) -> CastRules:
    """Return which layers of a component may be stored in fewer bits.

    Args:
        layout: how it lies in its file.
        names: of its tensors, by those of its class.
    """
    # A file does not say which family a shared kind is of; the lists of blocks it has do.
    specs = family_named(layout.family).components if layout.family else component_specs(layout.kind)
    offered, names = [spec.rules for spec in specs if spec.kind == layout.kind], list(names)
    return next((rules for rules in offered if any(map(rules.block_of, names))), NOTHING_CAST)


def _groups(tensors: Mapping[str, TensorEntry], rules: CastRules, storage: str) -> Iterator[LayerGroup]:
    counts = dict.fromkeys(("bf16", "fp16", "fp32"), 0)
    for tensor in tensors.values():
        plain = stored_type(tensor.dtype)
        counts["bf16" if weight_format(plain) else plain] += tensor.count
    # Blocks are computed in 16 bits on a card; what has none, such as a VAE, as its file has it.
    compute = max(counts, key=lambda name: counts[name])
    compute = "bf16" if compute == "fp32" and rules.block_lists else compute
    members: dict[tuple[str, str], list[str]] = {}
    for name, held in held_types(tensors, rules, compute=compute, storage=storage).items():
        members.setdefault((held.type, held.why), []).append(name)
    groups = []
    for (kind, why), names in members.items():
        weights = sum(tensors[name].count for name in names)
        packed = weight_format(kind)
        size = weights * BYTES_BY_SHORT_NAME[kind] if packed is None else 0
        for name in names if packed is not None else ():
            assert packed is not None
            number_type = tensors[name].dtype if why == STORED else packed.number_types[0]
            size += packed.stored_bytes(number_type, tensors[name].count, tensors[name].shape[0])
        # Blocks are alike: one line with a star stands for the same layer of all of them.
        patterns: dict[str, None] = {}
        for name in names:
            block = rules.block_of(name)
            starred = f"{block.rpartition('.')[0]}.*{name.partition(block)[2]}" if block else name
            patterns[starred.removesuffix(WEIGHT)] = None
        groups.append(LayerGroup(kind, len(names), size, why, tuple(patterns)))
    yield from sorted(groups, key=lambda group: -group.bytes)


def as_json(found: list[ComponentLayers]) -> list[dict[str, Any]]:
    """Return it as tables fit for JSON."""
    return [asdict(component) for component in found]


def as_text(found: list[ComponentLayers]) -> str:
    """Return it as lines for people."""
    lines = []
    for component in found:
        size = _amount(sum(group.bytes for group in component.groups)).strip()
        lines.append(f"  {component.title} with weights in {FORMATS[component.storage].title}: {size}")
        for group in component.groups:
            shown = ", ".join(group.names[:SHOWN]) + (f", … ({len(group.names)})" if len(group.names) > SHOWN else "")
            held = f"{group.type:5} {_amount(group.bytes)}  {group.tensors:5} tensors"
            lines.append(f"    {held}  {group.why}: {shown}")
    return "\n".join(lines)


def _amount(size: int) -> str:
    return f"{size / GB:6.2f} GB" if size >= GB / 10 else f"{size / MB:6.0f} MB"
