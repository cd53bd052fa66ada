"""Tensors of a safetensors file, as views of the mapped file: nothing is read before it is used."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import PiyingError
from .header import Entry, Header

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}


class MappedFile:
    """A file's bytes in the address space: pages come from disk as they are touched.

    The mapping is private: writing to a tensor never reaches the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, **_private())
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def tensor(self, entry: Entry) -> torch.Tensor:
        """Return one tensor: a view of the file where its place allows, else a copy."""
        dtype, raw = DTYPES[entry.dtype], self.raw(entry)
        if entry.start % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)

    def raw(self, entry: Entry) -> torch.Tensor:
        """Return a tensor's bytes as they are in the file."""
        return self._bytes[entry.start : entry.end]

    def release(self, entry: Entry) -> None:
        """Give the tensor's pages back to the system; they are read again if they are needed again.

        Without it a file that is read once stays in the process's memory until the system runs short.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        start, end = -(-entry.start // page) * page, entry.end // page * page
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def _private() -> dict[str, Any]:
    """Return the arguments of a private mapping that does not count against the machine's memory.

    Linux refuses a writable private mapping larger than memory and swap unless told that no room need
    be reserved for it; most files here are larger than the machine.
    """
    if sys.platform == "linux":
        reserve_nothing = getattr(mmap, "MAP_NORESERVE", 0x4000)
        return {"flags": mmap.MAP_PRIVATE | reserve_nothing, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    return {"access": mmap.ACCESS_COPY}


class Stored:
    """A tensor that lies somewhere and has not been read: its shape and type are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        """Return the tensor, on the CPU."""
        raise NotImplementedError

    def release(self) -> None:
        """Say that what `read` gave is no longer needed."""

    def split(self, parts: int) -> list[Stored]:
        """Return the tensor's rows in equal parts."""
        return [Rows(self, index, parts) for index in range(parts)]


class Rows(Stored):
    """One of several equal parts of a tensor's rows."""

    def __init__(self, whole: Stored, index: int, parts: int) -> None:
        self._whole, self._index = whole, index
        self.shape, self.dtype = (whole.shape[0] // parts, *whole.shape[1:]), whole.dtype

    def read(self) -> torch.Tensor:
        """Return a view of the whole."""
        start = self._index * self.shape[0]
        return self._whole.read()[start : start + self.shape[0]]


class Changed(Stored):
    """A tensor with its values moved about."""

    def __init__(self, stored: Stored, shape: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._stored, self._change = stored, change
        self.shape, self.dtype = shape, stored.dtype

    def read(self) -> torch.Tensor:
        """Return what the change makes of the tensor."""
        return self._change(self._stored.read())


class MappedTensor(Stored):
    """One tensor of a mapped file."""

    def __init__(self, file: MappedFile, entry: Entry) -> None:
        self._file, self._entry = file, entry
        self.shape, self.dtype = entry.shape, DTYPES[entry.dtype]

    def read(self) -> torch.Tensor:
        """Return a view of the file."""
        return self._file.tensor(self._entry)

    def release(self) -> None:
        """Give its pages back to the system."""
        self._file.release(self._entry)


def mapped(header: Header) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name.

    Raises:
        PiyingError: one is of a type that torch has no use for.
    """
    for name, entry in header.entries.items():
        if entry.dtype not in DTYPES:
            raise PiyingError(
                f"{header.path}: tensor {name[:80]!r} is stored as {entry.dtype}, which is not read here."
            )
    file = MappedFile(header.path)
    return {name: MappedTensor(file, entry) for name, entry in header.entries.items()}
