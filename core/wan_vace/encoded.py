"""What the VAE made of tasks, kept between runs: another prompt or seed encodes nothing again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..memory.store import TensorStore

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .condition import Encode, VACEInputs

KEPT = 8  # tasks and gray videos; one takes up to 40 MB for 81 frames at 720p


@dataclass(frozen=True)
class EncodedTasks:
    """Latents of tasks on disk.

    Attributes:
        store: holds them.
        by: what decides them beside the pictures: the VAE, and how it computes.
    """

    store: TensorStore
    by: Mapping[str, Any]

    @classmethod
    def under(cls, cache: Path, by: Mapping[str, Any]) -> EncodedTasks:
        """Return those in the host's cache folder."""
        return cls(TensorStore(cache / "tasks", KEPT), by)

    def get(self, inputs: VACEInputs) -> dict[str, torch.Tensor] | None:
        """Return what was put for a task that looks the same, or None."""
        return self.store.get(self._key(inputs))

    def put(self, inputs: VACEInputs, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep what belongs to a task."""
        self.store.put(self._key(inputs), tensors)

    def gray_once(self, encode: Encode) -> Encode:
        """Return `encode`, which gives latents on the CPU, so that it is called once for all gray videos of a size.

        One of the two parts of most tasks is gray: what is kept where all is drawn over, and what is drawn over
        where nothing is.
        """

        def latents(video: torch.Tensor) -> torch.Tensor:
            if video.any():
                return encode(video)
            key = {**self.by, "gray": list(video.shape)}
            kept = self.store.get(key)
            if kept is None:
                kept = {"latents": encode(video)}
                self.store.put(key, kept)
            return kept["latents"]

        return latents

    def _key(self, inputs: VACEInputs) -> dict[str, Any]:
        canvas = inputs.canvas
        return {**self.by, "tensors": digest([canvas.frames, canvas.make, *inputs.references])}


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
