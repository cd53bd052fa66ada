"""Proof that files are what they should be: hashes, the list of those seen, and one writer at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import PiyingError

LEDGER = "piying-models.lock.json"
CHUNK = 4 << 20
HEADER_LIMIT = 100 << 20  # safetensors' own limit of a header, bytes
POLL = 0.2  # seconds between looks whether another process is done


def sha256_of(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """Return the sha256 of a file; `progress` is told the bytes read."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()


def is_whole_safetensors(path: Path) -> bool:
    """Tell whether a safetensors file is as long as its header says: a cut one is not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(size == 8 + length + max(ends, default=0))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return False


# What was seen


@dataclass(frozen=True)
class Seen:
    """A file as it was first fetched: its size, its sha256 and where it came from."""

    bytes: int
    sha256: str
    source: str


@dataclass
class Ledger:
    """The list of the files that were fetched into a models folder, `piying-models.lock.json` in it.

    Attributes:
        files: {path below the models folder: what it was}.
        repositories: {path of a repository's folder: the names of its files}, of those that came whole.
    """

    files: dict[str, Seen] = field(default_factory=dict)
    repositories: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Ledger:
        """Read a models folder's list, an empty one where there is none.

        Raises:
            PiyingError: it is there and damaged.
        """
        path = root / LEDGER
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            files = {name: Seen(**entry) for name, entry in content["files"].items()}
            return cls(files, dict(content["repositories"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PiyingError(
                f"{path} cannot be read ({type(error).__name__}). It holds the hashes of the models that were "
                "fetched. Bring it back from a copy, or remove it to trust what is there."
            ) from error

    def write(self, root: Path) -> None:
        """Put the list in its place, whole."""
        path = root / LEDGER
        beside = path.with_name(path.name + ".new")
        content = {"schema": 1, **asdict(self)}
        beside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(path)


@contextlib.contextmanager
def changing(root: Path) -> Iterator[Ledger]:
    """Give a models folder's list to be changed, to one process at a time, and write it."""
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root / (LEDGER + ".lock")):
        ledger = Ledger.read(root)
        yield ledger
        ledger.write(root)


# One at a time


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however that comes.

    Args:
        path: made, and removed afterwards.
        waiting: called once where another process holds it.
    """
    file = _acquire(path)
    if file is None:
        waiting()
    while file is None:
        time.sleep(POLL)
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
    if _try_lock(file) and _is_still(path, file):
        return file
    file.close()
    return None


def _is_still(path: Path, file: IO[bytes]) -> bool:
    """Tell whether the locked file is the one of that name: its last holder may have removed it meanwhile."""
    try:
        return os.name == "nt" or os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


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
