"""Tensors of a PyTorch file (.pth, .pt, .bin), read without running any code in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import PiyingError
from .dtypes import safetensors_names
from .safetensors_file import MAX_HEADER_BYTES, FileHeader, TensorEntry, damaged
from .stored_tensor import StoredTensor

WRAPPERS = ("ema", "module", "state_dict", "model")  # under which training scripts put the weights


class HeldTensor(StoredTensor):
    """A tensor that torch has mapped already."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

    def read(self) -> torch.Tensor:
        """Return it."""
        return self._tensor


def read_pth(path: Path) -> tuple[FileHeader, dict[str, StoredTensor]]:
    """Return the header and the tensors of a PyTorch file; they are mapped, not read.

    Raises:
        PiyingError: it is damaged, of the format before PyTorch 1.6, or holds anything but tensors.
    """
    _check_zip(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise PiyingError(
            f"{path}: holds more than tensors, and what else it holds is not run here. Choose a safetensors file."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise damaged(path, f"PyTorch cannot read it ({' '.join(str(error).split())[:100]})") from error
    tensors = _tensors(path, loaded)
    types = safetensors_names()
    entries = {
        name: TensorEntry(types[tensor.dtype], tuple(tensor.shape), 0, tensor.numel() * tensor.element_size())
        for name, tensor in tensors.items()
    }
    return FileHeader(path, "pth", entries), {name: HeldTensor(tensor) for name, tensor in tensors.items()}


def _check_zip(path: Path) -> None:
    """Accept an archive as PyTorch writes it: nothing compressed, so nothing larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise damaged(path, "it is no PyTorch file of version 1.6 or later") from error
    pickled = sum(member.file_size for member in members if member.filename.endswith(".pkl"))
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or pickled > MAX_HEADER_BYTES:
        raise damaged(path, "its archive is not as PyTorch writes it")


def _tensors(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise PiyingError(f"{path}: holds no table of tensors. Choose another file.")
    found = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    for name, tensor in found.items():
        # A view that repeats its storage would grow beyond the file as soon as it is converted.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() or tensor.is_sparse:
            raise damaged(path, f"tensor {str(name)[:80]!r} is larger than its bytes")
        if not isinstance(name, str) or tensor.dtype not in safetensors_names():
            raise PiyingError(f"{path}: tensor {str(name)[:80]!r} is of {tensor.dtype}, which is not read here.")
    return found
