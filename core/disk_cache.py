"""Disk cache: entries in one folder, a file each, with a checksum, the least recently used of which are deleted.

Only time depends on it: a folder that cannot be written keeps nothing, and an entry that is cut, damaged or of another
version of the format counts as absent and is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .atomic_write import UNFINISHED, atomic_write

log = logging.getLogger("piying")

# At the end of each entry: a mark, then a SHA-256. Of the hashes in the standard library it is the fastest that finds
# every fault (1.0 GB/s with the processor's SHA instructions, BLAKE2b 0.7; 64 MB in 65 ms). Together they have the
# form of a Matroska Void element, so that video players skip them.
MARK = b"\xec\xa0"
TRAILER_BYTES = len(MARK) + hashlib.sha256().digest_size
CHUNK = 1 << 20
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
            data = path.read_bytes() if path.stat().st_size <= self.largest + TRAILER_BYTES else b""
        except OSError:
            return None
        payload = memoryview(data)[: max(0, len(data) - TRAILER_BYTES)]
        if data[len(payload) :] != _trailer(name, [payload]):
            self._delete_damaged(path)
            return None
        _touch(path)
        return bytes(payload)

    def put(self, name: str, data: bytes) -> None:
        """Write an entry and evict others; one that cannot be written is left out."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path(name)) as path, path.open("wb") as file:
                file.write(data)
                file.write(_trailer(name, [data]))
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
        with atomic_write(self.path(name)) as path:
            yield path
            with path.open("r+b") as file:
                trailer = _trailer(name, iter(lambda: file.read(CHUNK), b""))
                file.write(trailer)

    def find(self, name: str) -> Path | None:
        """Return the file of an entry whose checksum is right; None where there is none."""
        path = self.path(name)
        try:
            with path.open("rb") as file:
                end = file.seek(0, os.SEEK_END) - TRAILER_BYTES
                file.seek(0)
                found = _trailer(name, _chunks(file, end))
                is_right = end >= 0 and file.read() == found
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


def _trailer(name: str, chunks: Iterable[bytes | memoryview]) -> bytes:
    """Return the end of an entry with these data; its name is part of it, so that no entry passes for another."""
    digest = hashlib.sha256(name.encode())
    for chunk in chunks:
        digest.update(chunk)
    return MARK + digest.digest()


def _chunks(file: BinaryIO, end: int) -> Iterator[bytes]:
    left = end
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk


def _exceeds(number: int, limit: int | None) -> bool:
    return limit is not None and number > limit


def _touch(path: Path) -> None:
    # The time of the last use; a folder that is read-only evicts nothing.
    with suppress(OSError):
        os.utime(path)
