"""Safetensors files: their headers, read without torch, and their tensors as views of the mapped file.

Written for files from strangers: nothing in a header makes us read or allocate more than
`MAX_HEADER_BYTES` and what Python makes of that.
"""

from __future__ import annotations

import errno
import io
import json
import math
import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk_cache import payload_bytes
from ..errors import PiyingError, clipped, file_error
from .dtypes import NUMBER_TYPES, is_readable, torch_dtype
from .stored_tensor import PLAIN_PIECE, StoredTensor

if TYPE_CHECKING:
    import torch


MAX_HEADER_BYTES = 16 << 20  # the largest known, of models with thousands of tensors, are under 1 MB
MAX_DIMENSIONS = 8
ALIGNMENT = 8  # of the header
MAX_TENSORS = 1 << 15  # of one file; a mixture of 128 experts in one file has 19,000


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its type (a safetensors or GGUF name), shape, and bytes start … end of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def rows(self, parts: int) -> list[TensorEntry]:
        """Return the entries of its rows in equal parts."""
        size = (self.end - self.start) // parts
        starts = [self.start + index * size for index in range(parts)]
        shape = (self.shape[0] // parts, *self.shape[1:])
        return [TensorEntry(self.dtype, shape, start, start + size) for start in starts]


@dataclass(frozen=True)
class FileHeader:
    """The tensors of one file by name, and what it says beside them.

    Attributes:
        format: "safetensors", "gguf" or "pth".
        metadata: texts, and in GGUF files numbers too.
        lists: of GGUF files {name of a list in the metadata: its length}.
        shards: the headers of its files, where it is that of several together.
    """

    path: Path
    format: str
    entries: dict[str, TensorEntry]
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    lists: Mapping[str, int] = field(default_factory=dict)
    shards: tuple[FileHeader, ...] = ()

    @property
    def files(self) -> tuple[FileHeader, ...]:
        """Return the headers of its files, each with the places of its tensors."""
        return self.shards or (self,)


def open_regular(path: Path) -> io.BufferedReader:
    """Return a regular file, open for reading: a pipe would be waited for, and a device has no end.

    Raises:
        PiyingError: it is none, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PiyingError(f"{path}: is no regular file. Choose another file.")
        return path.open("rb")
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise file_error(f"Cannot open {path}", error.errno, "") from error
        raise PiyingError(f"{path}: cannot be opened ({error.strerror}). Choose another file.") from error


def damaged(path: Path, reason: str) -> PiyingError:
    """Return the error for a file whose header cannot be true."""
    return PiyingError(f"{path}: {reason}. The file is cut short or damaged; fetch it again.")


def read_safetensors_header(path: Path) -> FileHeader:
    """Return the header of a safetensors file, checked against the file's size.

    Raises:
        PiyingError: the header is absent, too large, no JSON, or its tensors do not fill the file
            exactly once.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > size - 8:
            raise damaged(path, f"the header claims {length} bytes, the file has {size}")
        if length > MAX_HEADER_BYTES:
            raise damaged(path, f"the header claims {length} bytes; no model needs more than {MAX_HEADER_BYTES}")
        raw = file.read(length)
    table = _parse(path, raw)
    if len(table) > MAX_TENSORS:
        raise damaged(path, f"the header lists more than the {MAX_TENSORS} tensors that a file may have")
    metadata = table.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in table.items()}
    _check_places(path, entries.values(), 8 + length, size)
    texts = metadata if isinstance(metadata, dict) else {}
    texts = {name: value for name, value in texts.items() if isinstance(value, str)}
    return FileHeader(path, "safetensors", entries, texts)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    # Two lists and a table are written for a tensor. To count them takes milliseconds, to build them seconds.
    if max(raw.count(b"["), raw.count(b"{")) > 4 * MAX_TENSORS:
        raise damaged(path, f"the header lists more than the {MAX_TENSORS} tensors that a file may have")
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the header is no JSON of a safetensors file ({clipped(str(error))})") from error
    if not isinstance(table, dict):
        raise damaged(path, "the header is no table of tensors")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    table = value if isinstance(value, dict) else {}
    dtype, shape, offsets = table.get("dtype"), _sizes(table.get("shape")), _sizes(table.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise damaged(path, f"tensor {clipped(name)!r} has no proper dtype, shape and data_offsets")
    if dtype not in NUMBER_TYPES:
        raise PiyingError(
            f"{path}: tensor {clipped(name)!r} is stored as {clipped(dtype, 20)}, which is not read here."
        )
    entry = TensorEntry(dtype, shape, data_start + offsets[0], data_start + offsets[1])
    if entry.end - entry.start != entry.count * NUMBER_TYPES[dtype].bytes:
        raise damaged(path, f"tensor {clipped(name)!r} has a shape of another length than its bytes")
    return entry


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a short list of whole numbers ≥ 0 as a tuple, anything else as None; True is no number."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item < 1 << 62 for item in value) else None


def _check_places(path: Path, entries: Iterable[TensorEntry], start: int, size: int) -> None:
    """Accept tensors that lie one behind the other from `start` to the end of the file."""
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != start:
            raise damaged(path, "tensors overlap or leave gaps")
        start = entry.end
    # A file of cast weights ends in its checksum; weights may look like the mark of one.
    if start != size and start != payload_bytes(path):
        raise damaged(path, f"its tensors end at byte {start}, the file has {size}")


def written_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return the first bytes of a safetensors file, and the places of its tensors behind them.

    Args:
        tensors: {name: (safetensors name of its type, shape)}.
        metadata: texts.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    entries, end = {}, 0
    # Wide types first, so that every tensor lies at a multiple of its own and can be mapped.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -NUMBER_TYPES[item[1][0]].bytes):
        start, end = end, end + math.prod(shape) * NUMBER_TYPES[dtype].bytes
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        entries[name] = TensorEntry(dtype, tuple(shape), start, end)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    first = len(text).to_bytes(8, "little") + text
    moved = {
        name: replace(one, start=one.start + len(first), end=one.end + len(first)) for name, one in entries.items()
    }
    return first, moved


class MappedFile:
    """A file's bytes in the address space: pages come from disk as they are touched.

    The mapping is private: writing to a tensor never reaches the file.
    """

    def __init__(self, path: Path) -> None:
        import torch

        with open_regular(path) as file:
            self._map = mmap.mmap(file.fileno(), 0, **_private())
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        """Return one tensor: a view of the file where its place allows, else a copy."""
        dtype, raw = torch_dtype(entry.dtype), self.raw(entry)
        if entry.start % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)

    def raw(self, entry: TensorEntry) -> torch.Tensor:
        """Return a tensor's bytes as they are in the file."""
        return self._bytes[entry.start : entry.end]

    def release(self, entry: TensorEntry) -> None:
        """Give the tensor's pages back to the system; they are read again if they are needed again.

        Without it a file that is read once stays in the process's memory until the system runs short.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        start, end = -(-entry.start // page) * page, entry.end // page * page
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def prefetch(self, entry: TensorEntry) -> None:
        """Have the system read a tensor's pages ahead, where it can."""
        if hasattr(mmap, "MADV_WILLNEED"):
            start = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, entry.end - start)


def _private() -> dict[str, Any]:
    """Return the arguments of a private mapping that does not count against the machine's memory.

    Linux refuses a writable private mapping larger than memory and swap unless told that no room need
    be reserved for it; most files here are larger than the machine.
    """
    if sys.platform == "linux":
        reserve_nothing = getattr(mmap, "MAP_NORESERVE", 0x4000)
        return {"flags": mmap.MAP_PRIVATE | reserve_nothing, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    return {"access": mmap.ACCESS_COPY}


class MappedTensor(StoredTensor):
    """One tensor of a mapped file."""

    def __init__(self, file: MappedFile, entry: TensorEntry) -> None:
        self._file, self._entry = file, entry
        self.shape, self.dtype = entry.shape, torch_dtype(entry.dtype)

    @property
    def is_view(self) -> bool:
        """Whether its place in the file allows that."""
        return self._entry.start % self.dtype.itemsize == 0

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts, each a tensor of the file."""
        return [MappedTensor(self._file, entry) for entry in self._entry.rows(parts)]

    def read(self) -> torch.Tensor:
        """Return a view of the file."""
        return self._file.tensor(self._entry)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield views of the file, whose pages go back to the system."""
        self._file.prefetch(self._entry)
        size = self.dtype.itemsize
        start = self._entry.start
        for piece in self.read().reshape(-1).split(PLAIN_PIECE):
            yield piece
            end = start + piece.numel() * size
            self._file.release(replace(self._entry, start=start, end=end))
            start = end // mmap.PAGESIZE * mmap.PAGESIZE  # of a page on the border the second piece lets go

    def release(self) -> None:
        """Give its pages back to the system."""
        self._file.release(self._entry)


def check_types(header: FileHeader) -> None:
    """Accept a safetensors file all of whose tensors are of types that are read here.

    Raises:
        PiyingError: one is of a type that torch has no use for.
    """
    for name, entry in header.entries.items():
        if not is_readable(entry.dtype):
            raise PiyingError(
                f"{header.path}: tensor {clipped(name)!r} is stored as {entry.dtype}, which is not read here."
            )


def mapped(header: FileHeader) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name; all are of types that `check_types` accepts."""
    file = MappedFile(header.path)
    return {name: MappedTensor(file, entry) for name, entry in header.entries.items()}
