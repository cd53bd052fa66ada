"""Hosts of tests: a headless one that is the current one for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from piying.core.executor import model_cache
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost


@contextmanager
def current_host(**given: Any) -> Iterator[HeadlessHost]:
    """Yield a host on the CPU, made of what is given; models that were read meanwhile leave memory afterwards."""
    made = HeadlessHost(chosen_device="cpu", **given)
    set_host(made)
    yield made
    set_host(None)
    model_cache.evict_models()
