"""Results: the files of each finished job, in a folder or an object store; whole or not there, and once for each job.

A worker writes the files of an attempt to a folder of its own. They become the job's results in one step: a folder is
renamed to the job's name, which fails where another attempt's has it; in an object store a list of the files is
written last, and only where there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..core.atomic_write import write_text
from ..core.errors import PiyingError, explain_os_errors
from .job import ResultFile

CHUNK = 1 << 20
LISTING = "result.json"  # names the files; results are there when it is
UNFINISHED = ".unfinished"  # the folder of attempts, beside the results


class ResultStore(Protocol):
    """Where results are kept; one object in each process."""

    def attempt_folder(self, job_id: str, attempt: int) -> Path:
        """Return a new folder for the files of an attempt."""

    def publish(self, job_id: str, folder: Path) -> tuple[ResultFile, ...]:
        """Make the files of an attempt the job's results, and return those; earlier ones stay, and are returned.

        Raises:
            PiyingError: they cannot be written.
        """

    def find(self, job_id: str) -> tuple[ResultFile, ...] | None:
        """Return the results of a job; None where there are none."""

    def read(self, job_id: str, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file that `find` names.

        Raises:
            OSError: it cannot be read.
        """

    def delete(self, job_id: str) -> None:
        """Delete the results of a job, where there are any."""

    def discard(self, folder: Path) -> None:
        """Delete what is left of an attempt."""


def listing(folder: Path) -> tuple[ResultFile, ...]:
    """Return the files below a folder with their sizes and checksums, sorted by name."""
    found: list[ResultFile] = []
    for path in sorted(folder.rglob("*")):
        # A job makes no links; one that is there would lead out of the folder.
        if path.is_symlink() or not path.is_file() or (path.parent == folder and path.name == LISTING):
            continue
        with path.open("rb") as file:
            checksum = hashlib.sha256()
            while chunk := file.read(CHUNK):
                checksum.update(chunk)
        name = path.relative_to(folder).as_posix()
        found.append({"name": name, "bytes": path.stat().st_size, "sha256": checksum.hexdigest()})
    return tuple(found)


def result_store(place: str) -> ResultStore:
    """Return the store of a folder, or of an address such as `s3://bucket/results`, which takes fsspec.

    Raises:
        PiyingError: fsspec, or what it needs for such an address, is not installed.
    """
    if "://" not in place:
        return FolderStore(Path(place).absolute())
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise PiyingError(
            f"--results {place}: {str(error).rstrip('.')}. Install what is missing, or name a folder."
        ) from error
    return ObjectStore(system, root)


class FolderStore:
    """Results in a folder, which the machines of a cluster share: `<folder>/<job id>/<file>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def attempt_folder(self, job_id: str, attempt: int) -> Path:
        """Return a folder on the same disk, so that it can be renamed into its place."""
        # The random part: a worker that counts as lost may still be writing to the folder of the same attempt.
        path = self._folder / UNFINISHED / f"{job_id}-{attempt}-{os.urandom(4).hex()}"
        with explain_os_errors(f"--results {self._folder}: cannot be written to"):
            path.mkdir(parents=True)
        return path

    def publish(self, job_id: str, folder: Path) -> tuple[ResultFile, ...]:
        """Rename the folder to the job's."""
        files = listing(folder)
        target = self._folder / job_id
        with explain_os_errors(f"--results {self._folder}: cannot be written to"):
            write_text(folder / LISTING, json.dumps(files))
            try:
                folder.rename(target)
            except OSError:
                # A folder that is not empty cannot be replaced: another attempt was first.
                earlier = self.find(job_id)
                if earlier is None:
                    raise
                self.discard(folder)
                return earlier
        return files

    def find(self, job_id: str) -> tuple[ResultFile, ...] | None:
        """Read the list."""
        try:
            return tuple(json.loads((self._folder / job_id / LISTING).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def read(self, job_id: str, name: str) -> Iterator[bytes]:
        """Read the file."""
        with (self._folder / job_id / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def delete(self, job_id: str) -> None:
        """Delete the folder, under another name first, so that no part of it passes for results."""
        grave = self._folder / UNFINISHED / f"{job_id}-{os.urandom(4).hex()}"
        with suppress(OSError):
            grave.parent.mkdir(exist_ok=True)
            (self._folder / job_id).rename(grave)
            self.discard(grave)

    def discard(self, folder: Path) -> None:
        """Delete the folder."""
        shutil.rmtree(folder, ignore_errors=True)


class ObjectStore:
    """Results behind fsspec: `<root>/<job id>/<attempt>/<file>`, and the list in `<root>/<job id>/result.json`."""

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root.rstrip("/")

    def attempt_folder(self, job_id: str, attempt: int) -> Path:
        """Return a folder on this machine."""
        import tempfile

        return Path(tempfile.mkdtemp(prefix=f"piying-{job_id[:8]}-{attempt}-"))

    def publish(self, job_id: str, folder: Path) -> tuple[ResultFile, ...]:
        """Write the files, then the list of them."""
        files, made = listing(folder), os.urandom(4).hex()
        place = f"{self._root}/{job_id}"
        with explain_os_errors(f"--results {self._root}: cannot be written to"):
            for file in files:
                self._system.makedirs(f"{place}/{made}/{file['name']}".rpartition("/")[0], exist_ok=True)
                self._system.put_file(str(folder / file["name"]), f"{place}/{made}/{file['name']}")
            text = json.dumps({"attempt": made, "files": files}).encode()
            self._system.makedirs(place, exist_ok=True)
            earlier = self.find(job_id)
            if earlier is None:
                try:
                    # Stores that cannot refuse to overwrite do so here: then the last of two attempts wins, whole too.
                    self._system.pipe_file(f"{place}/{LISTING}", text, mode="create")
                except FileExistsError:
                    earlier = self.find(job_id)
            if earlier is not None:
                self._delete(f"{place}/{made}")
        self.discard(folder)
        return files if earlier is None else earlier

    def find(self, job_id: str) -> tuple[ResultFile, ...] | None:
        """Read the list."""
        found = self._listing(job_id)
        return None if found is None else tuple(found["files"])

    def read(self, job_id: str, name: str) -> Iterator[bytes]:
        """Read the file."""
        found = self._listing(job_id)
        if found is None:
            raise FileNotFoundError(name)
        with self._system.open(f"{self._root}/{job_id}/{found['attempt']}/{name}", "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def delete(self, job_id: str) -> None:
        """Delete the list first, so that no part of the files passes for results."""
        self._delete(f"{self._root}/{job_id}/{LISTING}")
        self._delete(f"{self._root}/{job_id}")

    def discard(self, folder: Path) -> None:
        """Delete the folder."""
        shutil.rmtree(folder, ignore_errors=True)

    def _listing(self, job_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._system.cat_file(f"{self._root}/{job_id}/{LISTING}"))
        except (OSError, ValueError):
            return None
        return found

    def _delete(self, place: str) -> None:
        # One by one: `rm` takes the brackets in a name for a pattern.
        with suppress(OSError):
            for path in self._system.find(place):
                self._system.rm_file(path)
