"""Model cache: loaded models held in host memory between runs, one per slot, such as "FAMILY/transformer".

A second run of the same workflow must not read gigabytes from disk again; two checkpoints of one
slot at once would fill the memory of most machines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..host.base import DevicePolicy

log = logging.getLogger("piying")


Model = TypeVar("Model")


@dataclass
class Uses:
    """How often models were asked for in this process, how often one had to be read for it, and how long that took."""

    requests: int = 0
    loads: int = 0
    seconds: float = 0.0


uses = Uses()
# From the least to the most recently used.
_models: dict[str, tuple[Hashable, object]] = {}
_elsewhere: list[Callable[[], None]] = []


def cached_model(
    slot: str,
    key: Hashable,
    load: Callable[[], Model],
    policy: DevicePolicy | None = None,
    *,
    size: int = 0,
    beside: int = 0,
    mapped: int = 0,
) -> Model:
    """Return the model in `slot` when its key is `key`; else replace it by what `load` returns.

    Where there is no room for it and for the work with it, other slots are evicted, least recently used first.

    Args:
        slot: what the model is used for; one model per slot.
        key: what the model was read from, and how.
        load: reads it.
        policy: gets a callback, so that its user can have the models leave memory.
        size: bytes that `load` takes, without what stays in mapped files.
        beside: bytes that the work with it takes.
        mapped: bytes that it adds to the address space, its files included.
    """
    # Not at the top: nodes are declared where models leave memory, and their start measures none.
    from ..main_memory import has_room

    uses.requests += 1
    # The old model goes before the new one is read, so that the two are never in memory together.
    held = _models.pop(slot, None)
    if held is not None and held[0] == key:
        size = mapped = 0
    else:
        held = None
    needed = size + beside
    while _models and needed and not has_room(needed, max(needed, mapped)):
        oldest = next(iter(_models))
        log.info("Letting %s go from memory: %.1f GB are needed.", oldest, needed / 1e9)
        evict_models(oldest)
    if held is not None:
        _models[slot] = held
        return held[1]  # type: ignore[return-value]
    uses.loads += 1
    begun = time.perf_counter()
    model = load()
    uses.seconds += time.perf_counter() - begun
    _models[slot] = (key, model)
    if policy is not None:
        policy.on_eviction(evict_models, cached_bytes)
    return model


def is_cached(slot: str, how: tuple[str, str]) -> bool:
    """Return whether a slot holds a model in that number type and storage."""
    key = _models[slot][0] if slot in _models else ()
    return isinstance(key, tuple) and key[1:] == how


def evict_models(slot: str | None = None) -> None:
    """Drop the model of one slot, or of all."""
    if slot is None:
        _models.clear()
        for evict in _elsewhere:
            evict()
    else:
        _models.pop(slot, None)


def evict_with_models(evict: Callable[[], None]) -> None:
    """Have `evict` called whenever all models are dropped: other processes hold some for this one."""
    _elsewhere.append(evict)


def cached_bytes() -> int:
    """Return the bytes of all cached models."""
    import torch

    from .placement import module_bytes

    # A copy: the page asks for a plan while a run puts models in.
    models = [model for _, model in list(_models.values())]
    return sum(module_bytes(model) for model in models if isinstance(model, torch.nn.Module))
