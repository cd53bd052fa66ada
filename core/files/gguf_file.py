"""GGUF files: their headers, and their tensors, packed as they are or dequantized as they are read.

The format: docs/gguf.md of ggml-org/ggml.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, clipped
from .dtypes import torch_dtype
from .gguf_blocks import BY_NAME, PLAIN, TYPES, UNPACKERS, stored_bytes, unpack_into
from .safetensors_file import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    FileHeader,
    MappedFile,
    TensorEntry,
    damaged,
    open_regular,
)
from .stored_tensor import PIECE, StoredTensor

if TYPE_CHECKING:
    import torch


MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_VERSION = 1 << 16  # a larger number is one whose bytes are in the other order
MAX_COUNT = 1 << 16  # of tensors, of texts; the largest models have a few thousand
DEFAULT_ALIGNMENT = 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
UINT32, INT32 = 4, 5
MAX_STORED_DIMENSIONS = 4
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # of tensors that were folded to fit GGUF's four dimensions


class _Cursor:
    """Reads little-endian values one after the other, and fails where the bytes end."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.at = path, raw, 0

    def take(self, length: int) -> bytes:
        if length > len(self.raw) - self.at:
            raise damaged(self.path, "the header goes on past its end")
        self.at += length
        return self.raw[self.at - length : self.at]

    def number(self, code: str) -> int | float | bool:
        found: int | float | bool = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]
        return found if found == found and abs(found) != float("inf") else 0

    def size(self, code: str = "Q") -> int:
        return int(self.number(code))

    def count(self, most: int = MAX_COUNT) -> int:
        found = self.size()
        if found > most:
            raise damaged(self.path, f"the header claims {found} entries in one place")
        return found

    def text(self) -> str:
        return self.take(self.count(MAX_HEADER_BYTES)).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Read past texts: a vocabulary has hundreds of thousands, and most readers need none of them."""
        raw, at, lengths = self.raw, self.at, struct.Struct("<Q")
        if count * lengths.size > len(raw) - at:
            raise damaged(self.path, "the header goes on past its end")
        try:
            for _ in range(count):
                at += 8 + lengths.unpack_from(raw, at)[0]
        except (struct.error, OverflowError) as error:
            raise damaged(self.path, "the header goes on past its end") from error
        if at > len(raw):
            raise damaged(self.path, "the header goes on past its end")
        self.at = at


Value = str | int | float | bool
Values = dict[str, Value | list[Any]]


def read_gguf_header(path: Path) -> FileHeader:
    """Return the header of a GGUF file, checked against the file's size; its metadata without lists.

    Raises:
        PiyingError: it is damaged, of another version, or holds weights in a type that is not known.
    """
    cursor, tensors, values, size = _begin(path)
    metadata, shapes, lengths = _metadata(cursor, values, lists=False)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise damaged(path, f"the header claims an alignment of {alignment}")
    raw = [_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    entries: dict[str, TensorEntry] = {}
    for name, dtype, shape, offset, length in raw:
        end = start + offset + length
        if end > size or name in entries:
            raise damaged(path, f"tensor {clipped(name)!r} lies past the end of the file or comes twice")
        original = shapes.get(name, shape)
        shape = original if math.prod(original) == math.prod(shape) else shape
        entries[name] = TensorEntry(dtype, shape, start + offset, end)
    plain = {name: value for name, value in metadata.items() if not isinstance(value, list)}
    return FileHeader(path, "gguf", entries, plain, lengths)


def gguf_values(path: Path) -> Values:
    """Return all metadata of a GGUF file, lists such as a vocabulary included.

    Raises:
        PiyingError: the file is damaged.
    """
    cursor, _, values, _ = _begin(path)
    return _metadata(cursor, values, lists=True)[0]


def _begin(path: Path) -> tuple[_Cursor, int, int, int]:
    """Return a cursor behind the counts, the numbers of tensors and of values, and the size of the file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        cursor = _Cursor(path, file.read(min(size, 2 * MAX_HEADER_BYTES)))
    if cursor.take(4) != MAGIC:
        raise damaged(path, "it is no GGUF file")
    version = cursor.take(4)
    if (number := int.from_bytes(version, "little")) not in VERSIONS:
        swapped = int.from_bytes(version, "big")
        what = f"version {swapped} in big-endian order" if swapped <= MAX_VERSION else f"version {number}"
        raise PiyingError(
            f"{path}: is a GGUF file of {what}; versions {VERSIONS[0]} and {VERSIONS[-1]} in little-endian order are "
            "read. Choose another file."
        )
    return cursor, cursor.count(), cursor.count(), size


def _metadata(cursor: _Cursor, values: int, lists: bool) -> tuple[Values, dict[str, tuple[int, ...]], dict[str, int]]:
    """Return the metadata, the original shapes of folded tensors, and the lengths of the lists."""
    found: Values = {}
    shapes: dict[str, tuple[int, ...]] = {}
    lengths: dict[str, int] = {}
    for _ in range(values):
        key, kind = cursor.text(), cursor.size("I")
        if key in found or key in lengths:
            raise damaged(cursor.path, f"the header has {clipped(key)!r} twice")
        if kind == STRING:
            found[key] = cursor.text()
        elif kind == ARRAY:
            is_shape = key.startswith(ORIGINAL_SHAPE)
            items, lengths[key] = _array(cursor, lists or is_shape)
            if is_shape and len(items) <= MAX_DIMENSIONS and all(type(item) is int and item >= 0 for item in items):
                shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(items)
            elif lists:
                found[key] = items
        elif kind in NUMBERS:
            found[key] = cursor.number(NUMBERS[kind])
        else:
            raise damaged(cursor.path, f"the header has a value of unknown type {kind}")
    return found, shapes, lengths


def _array(cursor: _Cursor, is_wanted: bool) -> tuple[list[Any], int]:
    """Return a list, or read past it and return an empty one; and its length."""
    kind, length = cursor.size("I"), cursor.count(MAX_HEADER_BYTES)
    if kind == STRING:
        if is_wanted:
            return [cursor.text() for _ in range(length)], length
        cursor.skip_texts(length)
        return [], length
    if kind not in NUMBERS:
        raise damaged(cursor.path, f"the header has an array of unknown type {kind}")
    packed = cursor.take(length * struct.calcsize(NUMBERS[kind]))
    return (list(struct.unpack(f"<{length}{NUMBERS[kind]}", packed)) if is_wanted else []), length


def _tensor(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    """Return name, type, shape (rows first), offset and bytes of one tensor."""
    name, dimensions = cursor.text(), cursor.size("I")
    if dimensions > MAX_DIMENSIONS:
        raise damaged(cursor.path, f"tensor {clipped(name)!r} has {dimensions} dimensions")
    shape = tuple(cursor.size() for _ in range(dimensions))[::-1]
    if any(side >= 1 << 62 for side in shape):
        raise damaged(cursor.path, f"tensor {clipped(name)!r} has a side of {max(shape)}")
    number, offset = cursor.size("I"), cursor.size()
    kind = TYPES.get(number)
    if kind is None:
        raise PiyingError(
            f"{cursor.path}: tensor {clipped(name)!r} is stored in GGUF type {number}, which is not known."
        )
    count = math.prod(shape)
    if count % kind.weights or (kind.weights > 1 and (not count or not shape or shape[-1] % kind.weights)):
        raise damaged(cursor.path, f"tensor {clipped(name)!r} is no whole number of {kind.name} blocks")
    return name, kind.name, shape, offset, count // kind.weights * kind.bytes


def written_gguf_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str | int]
) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return the first bytes of a GGUF file, and the places of its tensors behind them.

    Tensors of more than four dimensions are folded, as ComfyUI-GGUF's converter does.

    Args:
        tensors: {name: (ggml's name of its type, shape)}.
        metadata: texts, and numbers of 32 bits.
    """
    values: list[bytes] = []
    for name, value in metadata.items():
        is_text = isinstance(value, str)
        raw = _text(value) if isinstance(value, str) else struct.pack("<I", value)
        values.append(_text(name) + struct.pack("<I", STRING if is_text else UINT32) + raw)
    numbers = {kind.name: number for number, kind in TYPES.items()}
    lines, entries, end = [], {}, 0
    for name, (dtype, shape) in tensors.items():
        stored = tuple(shape) if len(shape) <= MAX_STORED_DIMENSIONS else (shape[0], math.prod(shape[1:]))
        if stored != tuple(shape):
            sizes = struct.pack(f"<IQ{len(shape)}i", INT32, len(shape), *shape)
            values.append(_text(ORIGINAL_SHAPE + name) + struct.pack("<I", ARRAY) + sizes)
        start = -(-end // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
        end = start + stored_bytes(dtype, math.prod(shape))
        sizes = struct.pack(f"<I{len(stored)}Q", len(stored), *reversed(stored))
        lines.append(_text(name) + sizes + struct.pack("<IQ", numbers[dtype], start))
        entries[name] = TensorEntry(dtype, tuple(shape), start, end)
    first = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(lines), len(values)) + b"".join(values + lines)
    first += b"\0" * (-len(first) % DEFAULT_ALIGNMENT)
    return first, {
        name: replace(one, start=one.start + len(first), end=one.end + len(first)) for name, one in entries.items()
    }


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


class GgufTensor(StoredTensor):
    """One tensor of a GGUF file; packed ones come out as float32.

    Attributes:
        kind: its type by the name that ggml has for it.
    """

    def __init__(self, file: MappedFile, entry: TensorEntry) -> None:
        import torch

        self._file, self._entry = file, entry
        self.shape, self.kind = entry.shape, entry.dtype
        self.dtype = torch_dtype(entry.dtype) if entry.dtype in PLAIN else torch.float32

    @property
    def is_view(self) -> bool:
        """Whether it is not packed, and its place in the file allows that."""
        return self._entry.dtype in PLAIN and self._entry.start % self.dtype.itemsize == 0

    @property
    def is_packed_matrix(self) -> bool:
        """Whether it is a matrix of whole blocks in every row."""
        is_matrix = len(self.shape) == 2 and self.kind in UNPACKERS
        return is_matrix and self.shape[1] % BY_NAME[self.kind].weights == 0

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts, each a tensor of the file; no block is in two of them."""
        return [GgufTensor(self._file, entry) for entry in self._entry.rows(parts)]

    def read(self) -> torch.Tensor:
        """Return the tensor."""
        import torch

        if self._entry.dtype in PLAIN:
            return self._file.tensor(self._entry)
        self._file.prefetch(self._entry)
        weights = torch.empty(self.shape)
        unpack_into(weights, self.packed(), self.kind)
        self.release()
        return weights

    def packed(self) -> torch.Tensor:
        """Return its blocks, a view of the file: uint8 [rows, bytes of a row] of a matrix, else [bytes]."""
        packed = self._file.raw(self._entry)
        return packed.view(self.shape[0], -1) if self.is_packed_matrix else packed

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield the weights, unpacked block by block."""
        if self._entry.dtype in PLAIN:
            yield from super().pieces()
            return
        unpack, kind = UNPACKERS[self._entry.dtype], BY_NAME[self._entry.dtype]
        self._file.prefetch(self._entry)
        for blocks in self._file.raw(self._entry).view(-1, kind.bytes).split(PIECE // kind.weights):
            yield unpack(blocks).reshape(-1)
        self.release()

    def release(self) -> None:
        """Give its pages back to the system."""
        self._file.release(self._entry)


def gguf_tensors(header: FileHeader) -> dict[str, StoredTensor]:
    """Return the tensors of a GGUF file by name; all are of types that `UNPACKERS` has, or plain."""
    file = MappedFile(header.path)
    return {name: GgufTensor(file, entry) for name, entry in header.entries.items()}
