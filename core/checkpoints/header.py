"""What a safetensors file says it holds: names, types, shapes and places, without its weights.

Written for files from strangers: nothing in a header makes us read or allocate more than
`MAX_HEADER_BYTES` and what Python makes of that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PiyingError

MAX_HEADER_BYTES = 16 << 20  # the largest known, of models with thousands of tensors, are under 1 MB
MAX_DIMENSIONS = 8

# Bytes of one element, by the names of the safetensors format.
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type (a safetensors or GGUF name), shape, and bytes start … end of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors of one file by name, and the texts it carries beside them.

    Attributes:
        format: "safetensors", "gguf" or "pth".
    """

    path: Path
    format: str
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)


def damaged(path: Path, reason: str) -> PiyingError:
    """Return the error for a file whose header cannot be true."""
    return PiyingError(f"{path}: {reason}. The file is cut short or damaged; fetch it again.")


def read_safetensors_header(path: Path) -> Header:
    """Return the header of a safetensors file, checked against the file's size.

    Raises:
        PiyingError: the header is absent, too large, no JSON, or its tensors do not fill the file
            exactly once.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > size - 8:
            raise damaged(path, f"the header claims {length} bytes, the file has {size}")
        if length > MAX_HEADER_BYTES:
            raise damaged(path, f"the header claims {length} bytes; no model needs more than {MAX_HEADER_BYTES}")
        raw = file.read(length)
    table = _parse(path, raw)
    metadata = table.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in table.items()}
    _check_places(path, entries.values(), 8 + length, size)
    return Header(path, "safetensors", entries, _texts(metadata))


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the header is no JSON of a safetensors file ({str(error)[:80]})") from error
    if not isinstance(table, dict):
        raise damaged(path, "the header is no table of tensors")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _texts(metadata: Any) -> dict[str, str]:
    table = metadata if isinstance(metadata, dict) else {}
    return {name: value for name, value in table.items() if isinstance(value, str)}


def _entry(path: Path, name: str, value: Any, data_start: int) -> Entry:
    table = value if isinstance(value, dict) else {}
    dtype, shape, offsets = table.get("dtype"), _sizes(table.get("shape")), _sizes(table.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise damaged(path, f"tensor {name[:80]!r} has no proper dtype, shape and data_offsets")
    if dtype not in ITEM_BYTES:
        raise PiyingError(f"{path}: tensor {name[:80]!r} is stored as {dtype[:20]}, which is not read here.")
    entry = Entry(dtype, shape, data_start + offsets[0], data_start + offsets[1])
    if entry.end - entry.start != entry.count * ITEM_BYTES[dtype]:
        raise damaged(path, f"tensor {name[:80]!r} has a shape of another length than its bytes")
    return entry


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a short list of whole numbers ≥ 0 as a tuple, anything else as None; True is no number."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item < 1 << 62 for item in value) else None


def _check_places(path: Path, entries: Iterable[Entry], start: int, size: int) -> None:
    """Accept tensors that lie one behind the other from `start` to the end of the file."""
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != start:
            raise damaged(path, "tensors overlap or leave gaps")
        start = entry.end
    if start != size:
        raise damaged(path, f"its tensors end at byte {start}, the file has {size}")
