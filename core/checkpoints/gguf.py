"""Tensors of a GGUF file, unpacked as they are read."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from ..errors import PiyingError
from .header import Entry, Header
from .tensors import DTYPES, MappedFile, Stored

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = ("F32", "F16", "BF16")


class GgufTensor(Stored):
    """One tensor of a GGUF file; packed ones come out as float32."""

    def __init__(self, file: MappedFile, entry: Entry) -> None:
        self._file, self._entry = file, entry
        self.shape = entry.shape
        self.dtype = DTYPES[entry.dtype] if entry.dtype in PLAIN else torch.float32

    def read(self) -> torch.Tensor:
        """Return the tensor."""
        if self._entry.dtype in PLAIN:
            return self._file.tensor(self._entry)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        packed = self._file.raw(self._entry).numpy().reshape(self.shape[0], -1)
        return torch.from_numpy(dequantize(packed, GGMLQuantizationType[self._entry.dtype])).view(self.shape)

    def release(self) -> None:
        """Give its pages back to the system."""
        self._file.release(self._entry)


def gguf_tensors(header: Header) -> dict[str, Stored]:
    """Return the tensors of a GGUF file by name.

    Raises:
        PiyingError: some are packed and the package that unpacks them is not installed.
    """
    packed = {entry.dtype for entry in header.entries.values()} - set(PLAIN)
    if packed and importlib.util.find_spec("gguf") is None:
        raise _no_package(header.path, packed)
    file = MappedFile(header.path)
    return {name: GgufTensor(file, entry) for name, entry in header.entries.items()}


def _no_package(path: Path, packed: set[str]) -> PiyingError:
    return PiyingError(
        f"{path}: its weights are packed as {', '.join(sorted(packed))}; unpacking them needs the gguf package. "
        "Install it with `pip install gguf`, or choose a safetensors file."
    )
