"""Checksums of downloaded files: SHA-256, the ledger that records them, and the lock for one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ..atomic_write import write_text
from ..errors import PiyingError
from ..files.json_file import load_json
from ..host.model_folders import ModelsRoot

log = logging.getLogger("piying")

LEDGER = "piying-models.lock.json"
CHUNK = 4 << 20
POLL_SECONDS = 0.2  # between looks whether another process is done


def sha256_of(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """Return the sha256 of a file; `progress` is told the bytes read."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()


@dataclass(frozen=True)
class LedgerEntry:
    """A file as it was first downloaded: its size, its sha256 and where it came from."""

    bytes: int
    sha256: str
    source: str

    def to_json(self, path: str) -> dict[str, Any]:
        """Return the entry of a file as the ledger stores it, with a checksum of its own."""
        return {**asdict(self), "check": self._check(path)}

    @classmethod
    def from_json(cls, path: str, stored: dict[str, Any]) -> LedgerEntry:
        """Return a stored entry; one that an earlier version wrote has no checksum.

        Raises:
            TypeError, ValueError: it is none, or damaged.
        """
        fields = dict(stored)
        check = fields.pop("check", None)
        entry = cls(**fields)
        if check not in (None, entry._check(path)):
            raise ValueError("its checksum is wrong")
        return entry

    def _check(self, path: str) -> str:
        return hashlib.sha256(json.dumps([path, self.bytes, self.sha256, self.source]).encode()).hexdigest()[:16]


@dataclass
class Ledger:
    """The files that were downloaded into a models folder, listed in its `piying-models.lock.json`.

    Attributes:
        files: {path below the models folder: what it was}.
        repositories: {path of a repository's folder: the names of its files}, of those that came whole.
    """

    files: dict[str, LedgerEntry] = field(default_factory=dict)
    repositories: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: ModelsRoot) -> Ledger:
        """Read a models folder's ledger, an empty one where there is none.

        A damaged entry is left out, and said: the file counts as one whose checksum nobody knows.

        Raises:
            PiyingError: it is there and can be read by no means.
        """
        path = root / LEDGER
        try:
            content = load_json(path)
            stored = dict(content["files"])
            repositories = {folder: list(map(str, names)) for folder, names in content["repositories"].items()}
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PiyingError(
                f"{path} cannot be read ({type(error).__name__}). It holds the checksums of the models that were "
                "fetched. Bring it back from a copy, or remove it to trust what is there."
            ) from error
        files = {}
        for name, entry in stored.items():
            try:
                files[name] = LedgerEntry.from_json(name, entry)
            except (TypeError, ValueError) as error:
                log.warning("%s: the entry of %s is left out (%s).", path, name, error)
        return cls(files, repositories)

    def write(self, root: ModelsRoot) -> None:
        """Write the ledger, whole or not at all."""
        files = {name: entry.to_json(name) for name, entry in self.files.items()}
        content = {"schema": 1, "files": files, "repositories": self.repositories}
        write_text(root / LEDGER, json.dumps(content, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def edit_ledger(root: ModelsRoot) -> Iterator[Ledger]:
    """Yield a models folder's ledger to be changed, to one process at a time, and write it."""
    (root / LEDGER).parent.mkdir(parents=True, exist_ok=True)
    with file_lock(root / (LEDGER + ".lock")):
        ledger = Ledger.read(root)
        yield ledger
        ledger.write(root)


@contextlib.contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file; the system releases it when the process ends, however that comes.

    Args:
        path: made, and removed afterwards.
        on_wait: called once where another process holds it.
    """
    file = _acquire(path)
    if file is None:
        on_wait()
    while file is None:
        time.sleep(POLL_SECONDS)
        file = _acquire(path)
    try:
        yield
    finally:
        # Windows removes no open file, Unix must remove it before the next one gets it.
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                path.unlink()


def _acquire(path: Path) -> IO[bytes] | None:
    file = path.open("ab")
    if _try_lock(file):
        # Its last holder may have removed the file between opening and locking: a lock on it would exclude no one.
        with contextlib.suppress(FileNotFoundError):
            if os.name == "nt" or os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
    file.close()
    return None


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # some network file systems know no locks; one process is the usual case
        return True
