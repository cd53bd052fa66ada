"""Partial files: `NAME.part` is the beginning of a file, and `NAME.part.json` says of which version of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ..atomic_write import write_text
from ..errors import PiyingError
from ..files.json_file import read_json_or_empty

CHUNK = 1 << 20


class PartialFile:
    """The beginning of a file, kept between attempts and between runs.

    It is resumed where it is known to be the same file's: the same sha256 is expected, or, where none is known, the
    server gives the same ETag and what is here is what was written. Any other restarts from zero.

    Attributes:
        target: the file it becomes.
        size: its bytes.
        most: the most bytes it ever had.
        announced: the bytes of the whole file, where a server said so in this run.
        was_resumed: whether it came in more than one response, and might be put together of two files.
    """

    def __init__(self, target: Path, sha256: str | None) -> None:
        self.target = target
        self.size = self.most = 0
        self.announced: int | None = None
        self.was_resumed = False
        self._sha256 = sha256
        self._path = _part_path(target)
        self._state_path = target.with_name(target.name + ".part.json")
        self._etag: str | None = None
        self._hash = hashlib.sha256()
        self._file = self._path.open("r+b" if self._path.exists() else "x+b")

    def __enter__(self) -> PartialFile:
        state = read_json_or_empty(self._state_path)
        self._etag = _usable(state.get("etag"))
        is_known = self._sha256 is not None or self._etag is not None
        is_ours = is_known and state.get("sha256") == self._sha256
        while is_ours and (chunk := self._file.read(CHUNK)):
            self._hash.update(chunk)
        # Without a checksum of the whole nothing would ever tell of damage to this part.
        if is_ours and (self._sha256 is not None or state.get("part") == self.digest()):
            self.size = self.most = self._file.tell()
            self.was_resumed = self.size > 0
        else:
            self.reset()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if kind is not None and self._sha256 is None and self.size:
            with contextlib.suppress(PiyingError):
                self.write_state(self._etag)
        # By what lies there: Ctrl-C may come between bytes being written and being counted.
        if kind is not None and partial_bytes(self.target) == 0:
            self._path.unlink(missing_ok=True)
            self._state_path.unlink(missing_ok=True)

    def range_headers(self) -> dict[str, str]:
        """Return the request headers that ask for the rest, and for all where this may not be resumed."""
        if not self.size or not (self._sha256 or self._etag):
            return {}
        strong = self._etag is not None and not self._etag.startswith("W/")
        return {"Range": f"bytes={self.size}-", **({"If-Range": self._etag or ""} if strong else {})}

    def is_other_version(self, etag: str | None) -> bool:
        """Return whether the server's file is not the one this is a part of."""
        if self._etag and etag:
            return self._etag != etag
        return self._sha256 is None

    def write_state(self, etag: str | None) -> None:
        """Write what this is a part of, for the next run."""
        self._etag = _usable(etag)
        with _disk_errors(self._state_path):
            state = {"sha256": self._sha256, "etag": self._etag, "part": self.digest()}
            write_text(self._state_path, json.dumps(state))

    def write(self, chunk: bytes) -> None:
        """Append bytes; PiyingError where the disk does not take them."""
        with _disk_errors(self._path):
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)
        self.most = max(self.most, self.size)

    def reset(self) -> None:
        """Restart from zero."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size, self.announced, self._etag, self.was_resumed = 0, None, None, False

    def digest(self) -> str:
        """Return the sha256 of what is here."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Become the file, in one step, once the disk has it all."""
        with _disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(self.target)
            self._state_path.unlink(missing_ok=True)


def partial_bytes(target: Path) -> int:
    """Return the bytes of an unfinished download that are here, 0 where there are none."""
    path = _part_path(target)
    return path.stat().st_size if path.is_file() else 0


def _part_path(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _usable(etag: object) -> str | None:
    """Return an ETag that can be sent back in a header."""
    return etag if isinstance(etag, str) and etag.isascii() and etag.isprintable() else None


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise PiyingError(
                f"The disk of {path.parent} is full. Make room, or name another folder with --to, and run the same "
                "command again: it goes on where it stopped."
            ) from error
        raise PiyingError(f"{path} cannot be written ({error.strerror or error}).") from error
