"""Loaded models kept in host memory between runs, one per slot ("wan_vace/transformer", "prompt", …).

A second run of the same workflow must not read gigabytes from disk again; two checkpoints of one
slot at once would fill the memory of most machines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..host.base import Host

log = logging.getLogger("piying")


Model = TypeVar("Model")

_kept: dict[str, tuple[Hashable, object]] = {}


def kept(slot: str, key: Hashable, load: Callable[[], Model], host: Host | None = None, size: int = 0) -> Model:
    """Return the model kept in `slot` when its key is `key`; else let it go and keep `load()`.

    Args:
        slot: what the model is used for; one model per slot.
        key: what the model was read from, and how.
        load: reads it.
        host: told of the models, so that its user can have them leave memory.
        size: bytes that `load` takes; other slots, least recently used first, go where they do not fit.
    """
    if slot in _kept and _kept[slot][0] == key:
        _kept[slot] = _kept.pop(slot)  # last used, last to go
        return _kept[slot][1]  # type: ignore[return-value]
    # The old model goes before the new one is read, so that the two are never in memory together.
    _kept.pop(slot, None)
    _make_room(size)
    model = load()
    _kept[slot] = (key, model)
    if host is not None:
        host.on_eviction(forget, kept_bytes)
    return model


def forget(slot: str | None = None) -> None:
    """Drop the model of one slot, or of all."""
    if slot is None:
        _kept.clear()
    else:
        _kept.pop(slot, None)


def kept_bytes() -> int:
    """Return the bytes of all models kept."""
    import torch

    from .placement import module_bytes

    return sum(module_bytes(model) for _, model in _kept.values() if isinstance(model, torch.nn.Module))


def _make_room(size: int) -> None:
    import psutil

    while _kept and psutil.virtual_memory().available < size:
        slot = next(iter(_kept))
        log.info("Letting %s go from memory: %.1f GB are needed.", slot, size / 1e9)
        forget(slot)
