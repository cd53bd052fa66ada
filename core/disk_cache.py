"""Disk cache: entries in one folder, a file each, with a checksum, the least recently used of which are deleted.

Only time depends on it: a folder that cannot be written keeps nothing, and an entry that is cut, damaged or of another
version of the format counts as absent and is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic_write import UNFINISHED, atomic_write

log = logging.getLogger("piying")

# At the end of each entry: a mark, then a SHA-256 over those of its chunks. Of the standard library's hashes it is the
# fastest that finds every fault, and hashlib releases Python's lock: 1.0 GB/s in each thread with the processor's SHA
# instructions. Together they have the form of a Matroska Void element, so that video players skip them.
MARK = b"\xec\xa0"
TRAILER_BYTES = len(MARK) + hashlib.sha256().digest_size
CHUNK = 4 << 20
LARGEST = 1 << 30  # bytes of an entry that is read into memory
STALE_SECONDS = 24 * 3600  # after which an unfinished file is one that a killed process has left


def entry_name(key: Mapping[str, Any]) -> str:
    """Return the name of the entry for a key: the SHA-256 of its canonical JSON."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class DiskCache:
    """The entries with one file name ending in one folder, which is made when the first is written.

    Attributes:
        max_entries, max_bytes: what `evict` leaves; None for any number.
        largest: bytes of an entry above which `get` does not read it.
    """

    folder: Path
    suffix: str
    max_entries: int | None = None
    max_bytes: int | None = None
    largest: int = LARGEST

    def path(self, name: str) -> Path:
        """Return the file of an entry, which need not be there."""
        return self.folder / f"{name}{self.suffix}"

    def get(self, name: str) -> bytes | None:
        """Return the data of an entry, which then counts as used now; None where there is none."""
        path = self.path(name)
        try:
            size = _regular_size(path)
            data = path.read_bytes() if size <= self.largest + TRAILER_BYTES else b""
        except OSError:
            return None
        if not _is_right(name, memoryview(data)):
            self._delete_damaged(path)
            return None
        _touch(path)
        return data[:-TRAILER_BYTES]

    def put(self, name: str, data: bytes) -> None:
        """Write an entry and evict others; one that cannot be written is left out."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._cleared(name)) as path, path.open("wb") as file:
                file.write(data)
                file.write(_trailer(name, memoryview(data)))
        except OSError as error:
            log.debug("%s cannot be written (%s): nothing is cached.", self.path(name), error)
        else:
            self.evict()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path for a program to write an entry's data to; the entry is there, whole, when the block ends.

        Raises:
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._cleared(name)) as path:
            yield path
            with _mapped(path) as data:
                trailer = _trailer(name, data)
            with path.open("ab") as file:
                file.write(trailer)

    def _cleared(self, name: str) -> Path:
        """Return the file of an entry; an empty folder in its place is removed, which no file can replace."""
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        return path

    def find(self, name: str) -> Path | None:
        """Return the file of an entry whose checksum is right; None where there is none."""
        path = self.path(name)
        try:
            _regular_size(path)
            with _mapped(path) as data:
                is_right = _is_right(name, data)
        except OSError:
            return None
        if not is_right:
            self._delete_damaged(path)
            return None
        _touch(path)
        return path

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        with suppress(OSError):
            self.path(name).unlink()

    def evict(self, keep: Collection[str] = ()) -> list[str]:
        """Delete the least recently used entries beyond the limits, but those to keep, and return their names."""
        entries = []
        with suppress(OSError), os.scandir(self.folder) as found:
            for entry in found:
                with suppress(OSError):  # another process may have deleted it
                    status = entry.stat()
                    if entry.name.endswith(UNFINISHED) and time.time() - status.st_mtime > STALE_SECONDS:
                        Path(entry.path).unlink()
                    elif entry.name.endswith(self.suffix) and entry.name.removesuffix(self.suffix) not in keep:
                        entries.append((status.st_mtime_ns, status.st_size, entry.name.removesuffix(self.suffix)))
        size, evicted = 0, []
        for number, (_, own, name) in enumerate(sorted(entries, reverse=True), 1):
            size += own
            if _exceeds(number, self.max_entries) or _exceeds(size, self.max_bytes):
                self.delete(name)
                evicted.append(name)
        return evicted

    def _delete_damaged(self, path: Path) -> None:
        log.debug("%s is damaged, or of another version of Piying: it is deleted.", path)
        with suppress(OSError):
            path.unlink()


def payload_bytes(path: Path) -> int:
    """Return the bytes of a file without the trailer of an entry, where it ends in one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = max(0, size - TRAILER_BYTES)
        file.seek(end)
        return end if file.read(len(MARK)) == MARK else size


def _trailer(name: str, data: memoryview) -> bytes:
    """Return the end of an entry with these data; its name is part of it, so that no entry passes for another."""
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    whole = hashlib.sha256(name.encode())
    if len(chunks) > 1:
        with ThreadPoolExecutor() as pool:
            whole.update(b"".join(pool.map(_digest, chunks)))
    else:
        whole.update(b"".join(map(_digest, chunks)))
    return MARK + whole.digest()


def _digest(chunk: memoryview) -> bytes:
    return hashlib.sha256(chunk).digest()


def _is_right(name: str, data: memoryview) -> bool:
    """Return whether the bytes of an entry's file end in the trailer of what comes before."""
    end = len(data) - TRAILER_BYTES
    return end >= 0 and data[end:] == _trailer(name, data[:end])


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file, which may be larger than memory."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # cannot be mapped
            yield memoryview(b"")
            return
        # Closed with its last slice, which the traceback of an error may hold.
        with memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            yield data


def _regular_size(path: Path) -> int:
    """Return the bytes of a file; raises OSError for what is none, such as a pipe, which would be read without end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    return status.st_size


def _exceeds(number: int, limit: int | None) -> bool:
    return limit is not None and number > limit


def _touch(path: Path) -> None:
    # The time of the last use; a folder that is read-only evicts nothing.
    with suppress(OSError):
        os.utime(path)
