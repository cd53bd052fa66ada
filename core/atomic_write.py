"""Atomic file writes: a reader sees the old content or the new, whole, and never a part of either.

A process that is killed leaves a hidden file behind at worst. Data is not flushed to the disk: a power failure may
still cost the file, which every reader of a cache has to expect anyway.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# An ending of its own: scans for models and caches go by `.safetensors`, `.json`, and `.part` is a download to resume.
UNFINISHED = ".unfinished"


@contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """Yield the path of a hidden file in `folder`, which is not made, and delete it where it is there in the end."""
    # The name is independent of the final one, which may be as long as the file system allows. The number of the
    # process tells a leftover from work in progress; the random part keeps threads apart.
    path = folder / f".piying-{os.getpid()}-{os.urandom(8).hex()}{UNFINISHED}"
    try:
        yield path
    finally:
        # The error that led here says more than one about the temporary file would.
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder to write to; it replaces `path` when the block ends, and is deleted on an error.

    The folder has to exist. Two writers of one path do not disturb each other: the last one to finish wins.
    """
    # Not tempfile's functions: their files can be read by their owner alone, and a rename keeps that.
    with unfinished_file(path.parent) as unfinished:
        yield unfinished
        unfinished.replace(path)


def write_bytes(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a whole file."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8, with the line ends of `text` on every system."""
    write_bytes(path, text.encode("utf-8"))
