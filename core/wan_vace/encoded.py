"""What the VAE made of tasks, kept between runs: another prompt or seed encodes nothing again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..memory.store import TensorStore
from .digest import digest

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .condition import Encode, VACEInputs

Tensors = Mapping[str, "torch.Tensor"]
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

    def once(self, inputs: VACEInputs, make: Callable[[], Tensors]) -> Tensors:
        """Return what was made for a task that looks the same, else what `make` gives, which is kept."""
        canvas = inputs.canvas
        return self._once({"tensors": digest([canvas.frames, canvas.make, *inputs.references])}, make)

    def gray_once(self, encode: Encode) -> Encode:
        """Return `encode`, which gives latents on the CPU, so that it is called once for all gray videos of a size.

        One of the two parts of most tasks is gray: what is kept where all is drawn over, and what is drawn over
        where nothing is.
        """

        def latents(video: torch.Tensor) -> torch.Tensor:
            if video.any():
                return encode(video)
            return self._once({"gray": list(video.shape)}, lambda: {"latents": encode(video)})["latents"]

        return latents

    def _once(self, what: Mapping[str, Any], make: Callable[[], Tensors]) -> Tensors:
        key = {**self.by, **what}
        kept: Tensors | None = self.store.get(key)
        if kept is None:
            kept = make()
            self.store.put(key, kept)
        return kept
