"""Packed tensors: the tensors of some modules as one run of bytes, and their places in the modules' tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# The caching allocator of torch places every CUDA tensor at a multiple of this
# (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize): kernels chosen by alignment stay the same ones.
ALIGNMENT = 512
# Classes of tensors whose memory is their numbers.
PLAIN = (torch.Tensor, torch.nn.Parameter)


@dataclass
class _Held:
    """One tensor, and every table entry of a module that holds it: tied names have one tensor."""

    tensor: torch.Tensor
    entries: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def put(self, tensor: torch.Tensor) -> None:
        for table, name in self.entries:
            table[name] = tensor


class ModuleTensors:
    """The parameters and buffers of some modules, each once.

    Other tensors can stand in for them: `bind` writes into the modules' own tables, and `restore`
    puts back the very objects that were there. The originals themselves are never touched.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        """Take the tensors of `modules` themselves, not of their children."""
        found: dict[int, _Held] = {}
        for module in modules:
            tables: list[dict[str, Any]] = [module._parameters, module._buffers]
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None:
                        found.setdefault(id(tensor), _Held(tensor)).entries.append((table, name))
        self._held = list(found.values())

    @property
    def originals(self) -> list[torch.Tensor]:
        """The tensors that the modules hold when nothing stands in."""
        return [held.tensor for held in self._held]

    def bind(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let `tensors`, in the order of `originals`, stand in for them."""
        for held, tensor in zip(self._held, tensors, strict=True):
            held.put(_like(held.tensor, tensor))

    def restore(self) -> None:
        """Put every original back."""
        for held in self._held:
            held.put(held.tensor)


def _like(original: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` as a parameter where `original` is one."""
    if isinstance(original, torch.nn.Parameter) and not isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=False)
    return tensor


@dataclass(frozen=True)
class _Part:
    offset: int
    data: torch.Tensor  # uint8 [bytes], a view of the original's memory
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PackedTensors(ModuleTensors):
    """Tensors in host memory that can be copied to one buffer and used from there.

    Attributes:
        size: bytes of such a buffer, the gaps between tensors included.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        """Lay the tensors out.

        Raises:
            ValueError: a tensor is not in host memory.
            TypeError: a tensor is of a class of its own, whose memory is not the numbers themselves.
        """
        super().__init__(modules)
        self._parts: list[_Part] = []
        self.size = 0
        for tensor in self.originals:
            part = _part(tensor, self.size)
            self._parts.append(part)
            self.size = -(-(part.offset + part.data.numel()) // ALIGNMENT) * ALIGNMENT
        self._ends = [part.offset + part.data.numel() for part in self._parts]

    def read(self, start: int, into: torch.Tensor) -> None:
        """Copy the bytes from `start` on into the uint8 tensor `into` until it is full; gaps are left as they are."""
        stop = start + into.numel()
        for part in self._parts[bisect_right(self._ends, start) :]:
            if part.offset >= stop:
                return
            low, high = max(part.offset, start), min(part.offset + part.data.numel(), stop)
            into[low - start : high - start].copy_(part.data[low - part.offset : high - part.offset])

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors as they lie in `buffer`, a uint8 tensor of at least `size` bytes."""
        found = []
        for original, part in zip(self.originals, self._parts, strict=True):
            numbers = buffer[part.offset : part.offset + part.data.numel()].view(part.dtype)
            found.append(_like(original, numbers.as_strided(part.shape, part.stride)))
        return found


def _part(tensor: torch.Tensor, offset: int) -> _Part:
    if type(tensor) not in PLAIN:
        raise TypeError(f"Tensors of class {type(tensor).__name__} cannot be streamed.")
    if tensor.device.type != "cpu":
        raise ValueError(f"Streamed tensors start in host memory; this one is on {tensor.device}.")
    plain = tensor.detach()
    # The order in memory is kept (a transposed weight stays one), unless there are holes in it.
    stride = torch.empty_like(plain, device="meta").stride()
    if plain.stride() != stride:
        plain = torch.empty_strided(plain.shape, stride, dtype=plain.dtype).copy_(plain)
    data = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
    return _Part(offset, data, plain.dtype, tuple(plain.shape), stride)
