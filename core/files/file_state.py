"""File states: what a function finds out about a file, cached until the file's size or modification time changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

CACHED = 1 << 15  # files: with more than the cache holds, each list of models would open all of them again

R = TypeVar("R")


def cached_by_state(function: Callable[..., R]) -> Callable[..., R]:
    """Cache a function of a file and of further hashable arguments; errors are not cached.

    Raises:
        OSError: from each call, where the file is not there or cannot be asked for its state.
    """

    @lru_cache(maxsize=CACHED)
    def known(path: Path, size: int, changed: int, *args: Hashable) -> R:
        del size, changed  # they tell one state of the file from another
        return function(path, *args)

    @wraps(function)
    def cached(path: Path, *args: Hashable) -> R:
        status = path.stat()
        return known(path, status.st_size, status.st_mtime_ns, *args)

    return cached
