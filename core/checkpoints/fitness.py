"""Fitness of tensors: where those of a file go in a component's class, and whether they are those that it has.

From headers alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..errors import PiyingError, clipped
from ..families.registry import component_specs, description
from ..files.dtypes import WHOLE_NUMBERS
from ..files.pth_file import is_size
from ..files.safetensors_file import TensorEntry
from ..quantization.registry import FORMATS, stored_type
from ..quantization.stored_formats import weight_entries
from .layouts import Layout
from .layouts.base import Config, LeftOut, Metadata, Place, Shapes, Split, SwapHalves, Tensors, Whole

UNPACKED = "BF16"  # what a tensor of a weight format counts as where its values are moved about: no format holds it so


def places(layout: Layout, shapes: Shapes) -> Iterator[tuple[str, Place]]:
    """Yield the tensors of a component with their places in its class, without those that are left out.

    Args:
        layout: how the component lies in the file.
        shapes: of its weights, by their names within the component.

    Raises:
        PiyingError: a name is none of the layout's, two tensors go to one place, or one does not part into several.
    """
    taken = set()
    for name, shape in shapes.items():
        if any(re.fullmatch(pattern, name) for pattern in layout.spare):
            continue
        place = layout.place(name, shapes)
        if place is None:
            # Another layer of the same family: an image-to-video model's, a motion encoder's.
            raise PiyingError(f"{repr(clipped(name))[1:-1]} is no tensor of a {layout.title}. Choose another file.")
        if isinstance(place, Split) and (not shape or shape[0] % len(place.names)):
            raise PiyingError(
                f"{clipped(name)} of shape {list(shape)} does not part into {len(place.names)}. "
                "The file is damaged; fetch it again."
            )
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
    weights = weight_entries(entries)
    found = {}
    for name, place in places(layout, {name: entry.shape for name, entry in weights.items()}):
        entry = weights[name]
        shape, is_moved = entry.shape, isinstance(place, SwapHalves)
        if isinstance(place, Split):
            shape = (shape[0] // len(place.names), *shape[1:])
        elif isinstance(place, Whole) and place.squeeze and len(shape) == 4:
            shape, is_moved = shape[:2], True
        dtype = UNPACKED if is_moved and stored_type(entry.dtype) in FORMATS else entry.dtype
        if not isinstance(place, LeftOut):
            names = place.names if isinstance(place, Split) else (place.name,)
            found.update({new: TensorEntry(dtype, shape, 0, 0) for new in names})
    return found


def part_tensors(layout: Layout, shapes: Shapes) -> Tensors | None:
    """Return the tensors of a file that is whole only together with another one; None for others.

    Raises:
        PiyingError: it is incomplete, or its shapes do not tell.
    """
    with _telling(layout):
        return layout.part(shapes)


def class_config(layout: Layout, shapes: Shapes, metadata: Metadata) -> Config:
    """Return the configuration of a component's class.

    Args:
        layout: how it lies in its files.
        shapes: by the names of its class.
        metadata: of its file.

    Raises:
        PiyingError: it is incomplete, or its shapes do not tell.
    """
    with _telling(layout):
        return {**layout.config(shapes), **layout.settings(metadata)}


@contextmanager
def _telling(layout: Layout) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise PiyingError(f"tensors of a {layout.title} are missing ({error}). Fetch it again.") from error


def described_tensors(class_name: str, config: Config) -> Tensors | None:
    """Return which tensors a class has for a configuration; None where nothing says so.

    Raises:
        PiyingError: the configuration makes no such class.
    """
    describe = description(class_name)
    if describe is None:
        return None
    try:
        found = describe(config)
        odd = next((shape for shape in found.needed.values() if not all(map(is_size, shape))), None) if found else None
        if odd is not None:
            raise ValueError(f"it has a tensor of shape {list(odd)}")
    except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise no_class(class_name, error) from error
    return found


def no_class(class_name: str, error: Exception) -> PiyingError:
    """Return what to raise where the values of a configuration make no model."""
    reason = clipped(" ".join(str(error).split()), 200)
    return PiyingError(f"its configuration makes no {class_name} ({reason}). Fetch it again.")


def misfit(class_name: str, reason: str) -> PiyingError:
    """Return what to raise where tensors are not those of a class."""
    return PiyingError(f"cannot be read as a {class_name} ({reason}). Fetch it again, or choose another model.")


def fitting(names: Collection[str], wanted: Collection[str], prefix: str, ignored: Iterable[str]) -> dict[str, str]:
    """Return the tensors under the class's names, without those that it passes over: {name: name among `names`}.

    Larger models add their name for this part to all its tensors ("bert.", "model."), and have a head beside it.

    Args:
        wanted: the names of the class's tensors.
        prefix, ignored: see `Tensors`.
    """
    prefix = f"{prefix}."
    patterns = [re.compile(pattern) for pattern in ignored]
    is_larger = any(name.startswith(prefix) and name not in wanted for name in names)
    found = {}
    for name in names:
        if is_larger and not name.startswith(prefix) and name not in wanted:
            continue
        short = name.removeprefix(prefix)
        place = short if name not in wanted and short in wanted else name
        if place in wanted or not any(pattern.search(name) for pattern in patterns):
            found[place] = name
    return found


def check_tensors(
    class_name: str, described: Tensors, entries: Mapping[str, TensorEntry], passes_over: bool = False
) -> None:
    """Accept the tensors of a class.

    Args:
        class_name: for messages.
        described: what the class has.
        entries: what files have, by the names of its class.
        passes_over: whether there may be others too.

    Raises:
        PiyingError: one is missing, too many, of another shape, or holds whole numbers.
    """
    shapes = {**described.optional, **described.needed}
    found = fitting(entries.keys(), shapes.keys(), described.prefix, described.ignored)
    missing = [name for name in described.needed if name not in found]
    if missing:
        raise misfit(class_name, f"{len(missing)} tensors are not in it, {missing[0]} first")
    unexpected = [name for name in found if name not in shapes]
    if unexpected and not passes_over:
        raise misfit(class_name, f"{len(unexpected)} tensors have no place in it, {clipped(unexpected[0])} first")
    for name, full in found.items():
        entry = entries[full]
        if name not in shapes:
            continue
        if not is_same_shape(entry.shape, shapes[name]):
            raise misfit(class_name, f"{name} is of shape {list(entry.shape)}, not {list(shapes[name])}")
        if entry.dtype in WHOLE_NUMBERS and not any(entry.dtype in one.number_types for one in FORMATS.values()):
            raise misfit(class_name, f"{name} holds whole numbers, {entry.dtype}")


def is_same_shape(stored: Sequence[int], wanted: Sequence[int]) -> bool:
    """Return whether two shapes differ by leading sides of 1 at most: llama.cpp's tools write none."""
    long, short = sorted((tuple(stored), tuple(wanted)), key=len, reverse=True)
    extra = len(long) - len(short)
    return long[extra:] == short and set(long[:extra]) <= {1}


def check_blocks(kind: str, shapes: Shapes) -> None:
    """Accept the tensors of a class that nothing describes, as far as its blocks are alike.

    Args:
        kind: of component.
        shapes: by the names of the class.

    Raises:
        PiyingError: a block is missing, or lacks what the others have.
    """
    for prefix in {prefix for spec in component_specs(kind) for prefix in spec.rules.block_lists}:
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
