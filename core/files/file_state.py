"""File states: what a function finds out about a file, cached until the file changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from pathlib import Path
from typing import NamedTuple, TypeVar

CACHED = 1 << 15  # files: with more than the cache holds, each list of models would open all of them again

# Changes within one tick of a file system's clock (2 s on FAT) leave the same times: what was changed just now is not
# cached, as git does not trust its index then.
RACY_NS = 2_000_000_000

R = TypeVar("R")


class FileState(NamedTuple):
    """What differs between two states of a file, and between two files of one name; times in ns."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @property
    def is_racy(self) -> bool:
        """Whether the file may change again without looking different."""
        return time.time_ns() - max(self.modified, self.changed) < RACY_NS


def file_state(path: str | Path) -> FileState:
    """Return the state of a file now.

    Raises:
        OSError: it is not there, or cannot be asked.
    """
    status = os.stat(path)  # noqa: PTH116 - of thousands of files
    return FileState(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def cached_by_state(function: Callable[..., R]) -> Callable[..., R]:
    """Cache a function of a file and of further hashable arguments; errors are not cached.

    Raises:
        OSError: from each call, where the file is not there or cannot be asked for its state.
    """

    @lru_cache(maxsize=CACHED)
    def known(path: Path, state: FileState, *args: Hashable) -> R:
        del state  # it tells one state of the file from another
        return function(path, *args)

    @wraps(function)
    def cached(path: Path, *args: Hashable) -> R:
        state = file_state(path)
        return function(path, *args) if state.is_racy else known(path, state, *args)

    return cached
