"""The shapes of a component under the names of its class, from the headers of whatever files hold it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import PiyingError
from .any_header import read_header
from .files import component_files
from .header import Entry
from .layouts import Layout
from .layouts.base import LeftOut, Split, Whole
from .parts import find_parts
from .precision import describes

UNPACKED = "BF16"  # what a packed GGUF tensor counts as: it is unpacked as it is read


def class_shapes(paths: Iterable[Path], kind: str) -> dict[str, Entry]:
    """Return the tensors of one component by the names of its class; their places in the file mean nothing.

    Args:
        paths: files, or folders of one component each.
        kind: "transformer", "vae", "text_encoder", "text_encoder_2" or "prompt_model".

    Raises:
        PiyingError: a file is damaged, or holds no such component.
    """
    found: dict[str, Entry] = {}
    for path in paths:
        entries: dict[str, Entry] = {}
        for file in component_files(path) if path.is_dir() else [path]:
            entries |= read_header(file).entries
        parts = [part for part in find_parts(entries) if part.kind == kind.removesuffix("_2")]
        part = parts[-1 if kind.endswith("_2") else 0] if parts else None
        if part is None or part.layout is None:
            raise PiyingError(f"{path}: holds no {kind.replace('_', ' ')}. Choose another file.")
        found |= _placed(part.layout, {name: entries[full] for name, full in part.names.items()})
    return found


def _placed(layout: Layout, entries: dict[str, Entry]) -> dict[str, Entry]:
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
        found.update({new: Entry(dtype, shape, 0, 0) for new in names})
    return found


def _names(place: object) -> tuple[str, ...]:
    return place.names if isinstance(place, Split) else (str(getattr(place, "name", "")),)
