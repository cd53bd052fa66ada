"""Fitness of components: where a file's tensors go in the component's class, and whether they make a whole one.

From headers alone. Inspection, lists, checks and loading ask here, so that they agree.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ..errors import PiyingError
from ..families.registry import component_specs
from ..files.gguf_blocks import UNPACKERS
from ..files.safetensors_file import TensorEntry
from ..quantization.stored_formats import describes
from .layouts import Layout
from .layouts.base import Config, LeftOut, Metadata, Place, Shapes, Split, Whole

UNPACKED = "BF16"  # what a packed GGUF tensor counts as: it is unpacked as it is read


def places(layout: Layout, shapes: Shapes) -> Iterator[tuple[str, Place]]:
    """Yield the tensors of a component with their places in its class, without those that are left out.

    Args:
        layout: how the component lies in the file.
        shapes: of its weights, by their names within the component.

    Raises:
        PiyingError: a name is none of the layout's, or two tensors go to one place.
    """
    taken = set()
    for name in shapes:
        if any(re.fullmatch(pattern, name) for pattern in layout.spare):
            continue
        place = layout.place(name, shapes)
        if place is None:
            # Another layer of the same family: an image-to-video model's, a motion encoder's.
            raise PiyingError(f"{repr(name[:80])[1:-1]} is no tensor of a {layout.title}. Choose another file.")
        for new in place.names if isinstance(place, Split) else () if isinstance(place, LeftOut) else (place.name,):
            if new in taken:
                raise PiyingError(f"two of its tensors are {new}. The file is damaged; fetch it again.")
            taken.add(new)
        yield name, place


def class_entries(layout: Layout, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the tensors of one component by the names of its class; their places in the file mean nothing.

    Args:
        layout: how it lies in the file.
        entries: by their names within the component.

    Raises:
        PiyingError: see `places`.
    """
    weights = {name: entry for name, entry in entries.items() if not describes(name)}
    found = {}
    for name, place in places(layout, {name: entry.shape for name, entry in weights.items()}):
        entry = weights[name]
        shape = entry.shape
        if isinstance(place, Split):
            shape = (shape[0] // len(place.names), *shape[1:])
        elif isinstance(place, Whole) and place.squeeze and len(shape) == 4:
            shape = shape[:2]
        dtype = UNPACKED if entry.dtype in UNPACKERS else entry.dtype
        if not isinstance(place, LeftOut):
            names = place.names if isinstance(place, Split) else (place.name,)
            found.update({new: TensorEntry(dtype, shape, 0, 0) for new in names})
    return found


def class_config(layout: Layout, shapes: Shapes, metadata: Metadata) -> Config:
    """Return the configuration of a component's class.

    Args:
        layout: how it lies in its files.
        shapes: by the names of its class.
        metadata: of its file.

    Raises:
        PiyingError: it is incomplete, or its shapes do not tell.
    """
    try:
        return {**layout.config(shapes), **layout.settings(metadata)}
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise PiyingError(f"tensors of a {layout.title} are missing ({error}). Fetch it again.") from error


def check_fit(layout: Layout, entries: Mapping[str, TensorEntry], metadata: Metadata, has_config: bool) -> None:
    """Accept a component that can be made of a file.

    Args:
        layout: how it lies in the file.
        entries: its tensors by their names within the component.
        metadata: of the file.
        has_config: whether a config.json says what the shapes do not.

    Raises:
        PiyingError: it has tensors of something else, too few, or its shapes do not tell which model it is.
    """
    found = class_entries(layout, entries)
    shapes = {name: entry.shape for name, entry in found.items()}
    if not has_config and not layout.is_part(shapes):
        class_config(layout, shapes, metadata)
    rules = [spec.rules for spec in component_specs(layout.kind)]
    for prefix in {prefix for rule in rules for prefix in rule.block_lists}:
        blocks: dict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for name, shape in shapes.items():
            number, _, own = name.removeprefix(f"{prefix}.").partition(".")
            if name.startswith(f"{prefix}.") and number.isdigit():
                blocks[int(number)][own] = shape
        _check_blocks(prefix, blocks)


def _check_blocks(prefix: str, blocks: Mapping[int, Mapping[str, tuple[int, ...]]]) -> None:
    """Accept blocks that are alike; the first one, or those of the second half, may have a layer of their own.

    Raises:
        PiyingError: one is missing, or lacks what the others have.
    """
    count = len(blocks)
    for number in range(count):
        if number not in blocks:
            raise PiyingError(f"{prefix}.{number} is missing: the file is a part of a model, or damaged.")
    for own in dict.fromkeys(own for block in blocks.values() for own in block):
        having = [number for number in range(count) if own in blocks[number]]
        if having not in ([0], list(range(count))) and having != list(range(max(having[0], count // 2), count)):
            lacking = next(number for number in range(count) if number not in having)
            raise PiyingError(f"{prefix}.{lacking}.{own} is missing. The file is damaged; fetch it again.")
        if len({blocks[number][own] for number in having}) > 1:
            raise PiyingError(f"{prefix}.*.{own} has several shapes. The file is damaged; fetch it again.")
