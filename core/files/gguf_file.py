"""GGUF files: their headers, and their tensors, dequantized as they are read.

The format: docs/gguf.md of ggml-org/ggml.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from .dtypes import torch_dtype
from .safetensors_file import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    FileHeader,
    MappedFile,
    TensorEntry,
    damaged,
)
from .stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch


MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_COUNT = 1 << 16  # of tensors, of texts; the largest models have a few thousand
DEFAULT_ALIGNMENT = 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # of tensors that were folded to fit GGUF's four dimensions

# {number: (name, weights in a block, bytes of a block)}, from GGML_QUANT_SIZES of the gguf package.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
BLOCKS = {name: (weights, size) for name, weights, size in TYPES.values()}


class _Cursor:
    """Reads little-endian values one after the other, and fails where the bytes end."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.at = path, raw, 0

    def take(self, length: int) -> bytes:
        if length > len(self.raw) - self.at:
            raise damaged(self.path, "the header goes on past its end")
        self.at += length
        return self.raw[self.at - length : self.at]

    def number(self, code: str) -> int:
        found = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]
        return int(found) if found == found and abs(found) != float("inf") else 0

    def count(self, most: int = MAX_COUNT) -> int:
        found = self.number("Q")
        if found > most:
            raise damaged(self.path, f"the header claims {found} entries in one place")
        return found

    def text(self) -> str:
        return self.take(self.count(MAX_HEADER_BYTES)).decode("utf-8", "replace")


def read_gguf_header(path: Path) -> FileHeader:
    """Return the header of a GGUF file, checked against the file's size.

    Raises:
        PiyingError: it is damaged, of another version, or holds weights in a type that is not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        cursor = _Cursor(path, file.read(min(size, 2 * MAX_HEADER_BYTES)))
    if cursor.take(4) != MAGIC or cursor.number("I") not in VERSIONS:
        raise damaged(path, f"it is no GGUF file of version {VERSIONS[0]} or {VERSIONS[-1]}")
    tensors, values = cursor.count(), cursor.count()
    alignment, texts, shapes = _metadata(cursor, values)
    raw = [_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    entries: dict[str, TensorEntry] = {}
    for name, dtype, shape, offset, length in raw:
        end = start + offset + length
        if end > size or name in entries:
            raise damaged(path, f"tensor {name[:80]!r} lies past the end of the file or comes twice")
        original = shapes.get(name, shape)
        shape = original if math.prod(original) == math.prod(shape) else shape
        entries[name] = TensorEntry(dtype, shape, start + offset, end)
    return FileHeader(path, "gguf", entries, texts)


def _metadata(cursor: _Cursor, values: int) -> tuple[int, dict[str, str], dict[str, tuple[int, ...]]]:
    """Return the alignment, the texts, and the original shapes of folded tensors."""
    alignment, texts, shapes = DEFAULT_ALIGNMENT, {}, {}
    for _ in range(values):
        key, kind = cursor.text(), cursor.number("I")
        if kind == STRING:
            texts[key] = cursor.text()
        elif kind == ARRAY:
            numbers = _array(cursor)
            if key.startswith(ORIGINAL_SHAPE) and len(numbers) <= MAX_DIMENSIONS:
                shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(numbers)
        elif kind in NUMBERS:
            number = cursor.number(NUMBERS[kind])
            alignment = number if key == "general.alignment" else alignment
        else:
            raise damaged(cursor.path, f"the header has a value of unknown type {kind}")
    if alignment <= 0 or alignment > 1 << 20:
        raise damaged(cursor.path, f"the header claims an alignment of {alignment}")
    return alignment, texts, shapes


def _array(cursor: _Cursor) -> list[int]:
    """Read past an array and return it where it is a short one of numbers."""
    kind, length = cursor.number("I"), cursor.count(MAX_HEADER_BYTES)
    if kind == STRING:
        for _ in range(length):
            cursor.text()
        return []
    if kind not in NUMBERS:
        raise damaged(cursor.path, f"the header has an array of unknown type {kind}")
    if length > MAX_DIMENSIONS:
        cursor.take(length * struct.calcsize(NUMBERS[kind]))
        return []
    return [cursor.number(NUMBERS[kind]) for _ in range(length)]


def _tensor(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    """Return name, type, shape (rows first), offset and bytes of one tensor."""
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise damaged(cursor.path, f"tensor {name[:80]!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in TYPES:
        raise PiyingError(
            f"{cursor.path}: tensor {name[:80]!r} is stored in GGUF type {kind}, which this pack cannot read. "
            f"Readable: {', '.join(name for name, _, _ in TYPES.values())}."
        )
    dtype, block, block_bytes = TYPES[kind]
    count = math.prod(shape)
    if count % block or (block > 1 and (not shape or shape[-1] % block)):
        raise damaged(cursor.path, f"tensor {name[:80]!r} is no whole number of {dtype} blocks")
    return name, dtype, shape, offset, count // block * block_bytes


PLAIN = ("F32", "F16", "BF16")
CHUNK = 1 << 18  # weights unpacked at a time: what that takes beside them stays in the processor's cache


class GgufTensor(StoredTensor):
    """One tensor of a GGUF file; packed ones come out as float32."""

    def __init__(self, file: MappedFile, entry: TensorEntry) -> None:
        import torch

        self._file, self._entry = file, entry
        self.shape = entry.shape
        self.dtype = torch_dtype(entry.dtype) if entry.dtype in PLAIN else torch.float32

    def read(self) -> torch.Tensor:
        """Return the tensor."""
        import torch

        if self._entry.dtype in PLAIN:
            return self._file.tensor(self._entry)
        from diffusers.quantizers.gguf.utils import dequantize_functions

        unpack: Any = next(
            function for kind, function in dequantize_functions.items() if kind.name == self._entry.dtype
        )
        block, block_bytes = BLOCKS[self._entry.dtype]
        packed = self._file.raw(self._entry)
        if self._entry.start % 2:  # the scales inside are 16-bit numbers
            packed = packed.clone()
        packed = packed.view(-1, block_bytes)
        weights = torch.empty(len(packed), block)
        step = CHUNK // block
        for start in range(0, len(packed), step):
            part = slice(start, start + step)
            weights[part] = unpack(packed[part], block, block_bytes, dtype=torch.float32)
        return weights.view(self.shape)

    def release(self) -> None:
        """Give its pages back to the system."""
        self._file.release(self._entry)


def gguf_tensors(header: FileHeader) -> dict[str, StoredTensor]:
    """Return the tensors of a GGUF file by name.

    Raises:
        PiyingError: some are packed and the package that unpacks them is not installed.
    """
    packed = {entry.dtype for entry in header.entries.values()} - set(PLAIN)
    # diffusers' functions, which unpack, take the names of the types from it.
    if packed and importlib.util.find_spec("gguf") is None:
        raise PiyingError(
            f"{header.path}: its weights are packed as {', '.join(sorted(packed))}; unpacking them needs the gguf "
            "package. Install it with `pip install gguf`, or choose a safetensors file."
        )
    file = MappedFile(header.path)
    return {name: GgufTensor(file, entry) for name, entry in header.entries.items()}
