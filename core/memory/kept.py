"""Loaded models kept in host memory between runs, one per family.

A second run of the same workflow must not read gigabytes from disk again; two checkpoints of one
family at once would fill the memory of most machines.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

Model = TypeVar("Model")

_kept: dict[str, tuple[Hashable, object]] = {}


def kept(family: str, key: Hashable, load: Callable[[], Model]) -> Model:
    """Return the kept model of `family` when its key is `key`; else let it go and keep `load()`."""
    if family in _kept and _kept[family][0] == key:
        return _kept[family][1]  # type: ignore[return-value]
    # The old model goes before the new one is read, so that the two are never in memory together.
    _kept.pop(family, None)
    model = load()
    _kept[family] = (key, model)
    return model


def forget(family: str | None = None) -> None:
    """Drop the kept model of one family, or of all."""
    if family is None:
        _kept.clear()
    else:
        _kept.pop(family, None)
