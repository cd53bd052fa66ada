"""Inputs and results shared by all contenders of the speed benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch


def piying(name: str) -> Any:
    """Import a module of the pack, training's too."""
    return import_module(f"piying.{name}")


@dataclass(frozen=True)
class Setting:
    """The same for all: the model, the video, the steps.

    Attributes:
        folder: the model's, in diffusers' form.
        model: its name on the loader.
        frames: 4n+1.
    """

    folder: Path
    model: str
    device: str
    steps: int
    cfg: float = 4.0
    shift: float = 5.0
    width: int = 64
    height: int = 64
    frames: int = 17


@dataclass
class Count:
    """How many predictions went through all blocks; both prompts in one batch are two."""

    predictions: int = 0


@contextmanager
def counted(transformer: Any) -> Iterator[Count]:
    """Count predictions in which the last main block was computed, attention included, from the hooks of torch.

    diffusers' caches stand in for a block, or for its attention, without torch's noticing: what is counted
    is therefore the work inside, the projection of the queries.
    """
    count = Count()

    def add(_: Any, given: tuple[torch.Tensor, ...], __: Any) -> None:
        count.predictions += given[0].shape[0]

    hook = transformer.blocks[-1].attn1.to_q.register_forward_hook(add)
    try:
        yield count
    finally:
        hook.remove()


@dataclass(frozen=True)
class Made:
    """A video: frames [n, h, w, 3] in 0..1, seconds of sampling alone, predictions that went through all blocks."""

    frames: np.ndarray
    seconds: float
    predictions: int
    record: dict[str, Any] = field(default_factory=dict)
