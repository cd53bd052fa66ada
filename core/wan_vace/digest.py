"""Tensors → a text that tells them from all others, to name by it what is made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a text that changes with any value, type or shape; the tensors are on the CPU."""
    found = hashlib.sha256()
    # Several at a time: a video is gigabytes, and hashlib lets go of Python's lock.
    with ThreadPoolExecutor() as pool:
        for tensor in tensors:
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            for part in pool.map(_digest_of_one, _once(tensor)):
                found.update(part)
    return found.hexdigest()


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without what only repeats: an empty canvas is one value seen as gigabytes."""
    for axis, step in enumerate(tensor.stride()):
        tensor = tensor.narrow(axis, 0, 1) if step == 0 and tensor.shape[axis] else tensor
    return tensor


def _digest_of_one(piece: torch.Tensor) -> bytes:
    # numpy knows no bf16.
    return hashlib.sha256((piece.float() if piece.is_floating_point() else piece).contiguous().numpy()).digest()
