"""Stored tensors: tensors that lie in a file and have not been read, and what is made of them on reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class StoredTensor:
    """A tensor that lies somewhere and has not been read: its shape and the type of its stored values are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def read_dtype(self) -> torch.dtype:
        """The type of what `read` returns: another one than `dtype` where stored values are scaled or unpacked."""
        return self.dtype

    def read(self) -> torch.Tensor:
        """Return the tensor, on the CPU."""
        raise NotImplementedError

    def release(self) -> None:
        """Say that what `read` gave is no longer needed."""

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the tensor's rows in equal parts."""
        return [RowsOf(self, index, parts) for index in range(parts)]


class RowsOf(StoredTensor):
    """One of several equal parts of a tensor's rows."""

    def __init__(self, whole: StoredTensor, index: int, parts: int) -> None:
        self._whole, self._index = whole, index
        self.shape, self.dtype = (whole.shape[0] // parts, *whole.shape[1:]), whole.dtype

    def read(self) -> torch.Tensor:
        """Return a view of the whole."""
        start = self._index * self.shape[0]
        return self._whole.read()[start : start + self.shape[0]]


class TransformedTensor(StoredTensor):
    """A tensor with its values moved about."""

    def __init__(
        self, stored: StoredTensor, shape: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self._stored, self._change = stored, change
        self.shape, self.dtype = shape, stored.read_dtype

    def read(self) -> torch.Tensor:
        """Return what the change makes of the tensor."""
        return self._change(self._stored.read())
