"""Stored tensors: tensors that lie in a file and have not been read, and what is made of them on reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PIECE = 1 << 18  # numbers worked on at a time: with what is made of them they stay in the processor's cache
# The same where a piece is only checked and converted: smaller ones take longer to ask for than to convert.
PLAIN_PIECE = 1 << 20


class StoredTensor:
    """A tensor that lies somewhere and has not been read: its shape and the type of its stored values are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def read_dtype(self) -> torch.dtype:
        """The type of what `read` returns: another one than `dtype` where stored values are scaled or unpacked."""
        return self.dtype

    @property
    def is_view(self) -> bool:
        """Whether `read` gives a view of the mapped file, which takes no memory of its own."""
        return False

    def read(self) -> torch.Tensor:
        """Return the tensor, on the CPU."""
        raise NotImplementedError

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield the numbers in the order in which they lie in a contiguous tensor, each piece [n] in `read_dtype`.

        A piece is to be used up before the next is asked for: its memory may be the next one's, or be given back.
        """
        yield from self.read().reshape(-1).split(PLAIN_PIECE)
        self.release()

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

    @property
    def is_view(self) -> bool:
        """Whether the whole is one."""
        return self._whole.is_view

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

    def release(self) -> None:
        """Give the pages of the tensor back."""
        self._stored.release()


class TextTensor(StoredTensor):
    """A text as a tensor of bytes, which is how files hold one beside their tensors."""

    def __init__(self, text: str) -> None:
        import torch

        self._bytes = text.encode()
        self.shape, self.dtype = (len(self._bytes),), torch.uint8

    def read(self) -> torch.Tensor:
        """Return the bytes."""
        import torch

        return torch.tensor(list(self._bytes), dtype=torch.uint8)
