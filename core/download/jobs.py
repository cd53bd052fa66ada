"""Downloads: models and their files fetched one after the other, by the command or in the background."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..errors import PiyingError
from ..http import DownloadRefused, Remote, RetryPolicy
from .checksums import LEDGER, Ledger, Seen, changing
from .hubs import AUTO, Hub, HubFile, choose_hubs, safe_path, titles
from .manifest import Listed, ListedFile, Source, files_of, find_listed
from .partial_file import part_bytes
from .transfer import transfer

log = logging.getLogger("piying")


SPARE_BYTES = 256 << 20  # left free on the disk, for what else is written meanwhile


class Report(Protocol):
    """Who is told how it goes."""

    def say(self, line: str) -> None:
        """Take a line for the person who waits."""

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Take note that `done` of `total` bytes of a file are here; may raise to stop."""


class Silence:
    """Tells nobody."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class FileDownload:
    """One file to be had.

    Attributes:
        path: where it goes, below the models folder.
        bytes, sha256: what it has to be; None where nobody says.
        remotes: (origin, address) pairs to fetch it from, best first.
        pinned: whether the manifest says the sha256, and not the hub.
    """

    path: str
    bytes: int | None
    sha256: str | None
    remotes: tuple[tuple[str, Remote], ...] = ()
    pinned: bool = False


class Hubs:
    """The hubs of one command, asked no earlier than needed, and once for each repository."""

    def __init__(self, choice: str = AUTO, patience: RetryPolicy | None = None) -> None:
        self.patience = patience or RetryPolicy()
        self._choice = choice
        self._listings: dict[tuple[str, Source], list[HubFile]] = {}

    @cached_property
    def all(self) -> list[Hub]:
        """The hubs to ask, in order."""
        return choose_hubs(self._choice)

    def offering(self, file: ListedFile) -> list[tuple[Hub, Source]]:
        """Return the hubs that keep a file.

        Raises:
            PiyingError: the chosen one does not.
        """
        found = [(hub, file.sources[hub.key]) for hub in self.all if hub.key in file.sources]
        if not found:
            raise PiyingError(f"{file.path} is not on {titles(self.all)}. Leave --source out.")
        return found

    def listing(self, hub: Hub, source: Source) -> list[HubFile]:
        """Return the files of a repository; raises Refused."""
        key = (hub.key, Source(source.repo, source.revision))
        if key not in self._listings:
            self._listings[key] = hub.listing(source, self.patience)
        return self._listings[key]


def fetch(
    models: Sequence[Listed],
    root: Path,
    source: str = AUTO,
    report: Report | None = None,
    patience: RetryPolicy | None = None,
) -> list[Path]:
    """Fetch what is missing of models, and of the parts they need; return their files.

    Args:
        models: from `find_listed`.
        root: the models folder; made where it is not there.
        source: `huggingface`, `modelscope`, or `auto`, which takes the one that answers.
        report: told lines and progress.
        patience: how long to wait for a server.

    Raises:
        PiyingError: a file cannot be had, is not what it should be, or does not fit on the disk. What is already
            here of it stays, and the next call goes on from there.
    """
    report, ledger = report or Silence(), Ledger.read(root)
    hubs = Hubs(source, replace(patience or RetryPolicy(), tell=report.say))
    jobs = [job for file in files_of(models) for job in jobs_of(file, hubs, root, ledger)]
    missing = [job for job in jobs if not is_there(job, root, ledger)]
    check_disk(missing, root)
    for job in missing:
        _fetch_one(job, root, ledger, hubs.patience, report)
    _note_repositories(models, jobs, root)
    report.say(f"{len(jobs)} files are in {root}, {len(missing)} of them new.")
    return [root / job.path for job in jobs]


def jobs_of(file: ListedFile, hubs: Hubs, root: Path, ledger: Ledger) -> list[FileDownload]:
    """Return the files that a line of the manifest stands for, without asking a hub where all is here and known."""
    if file.is_repository:
        names = ledger.repositories.get(file.path)
        known = [_known(file.path + name, ledger) for name in names or ()]
        if names and all(is_there(job, root, ledger) for job in known):
            return known
        return _repository_jobs(file, hubs)
    if not (file.bytes and file.sha256) and file.path in ledger.files:
        known_job = _known(file.path, ledger)
        if is_there(known_job, root, ledger):
            return [known_job]
    return [_file_job(file, hubs)]


def _known(path: str, ledger: Ledger) -> FileDownload:
    seen = ledger.files.get(path)
    return FileDownload(path, seen.bytes if seen else None, seen.sha256 if seen else None)


def _file_job(file: ListedFile, hubs: Hubs) -> FileDownload:
    """Return a single file's job; a hub is asked for what the manifest does not say."""
    remotes, known = [], HubFile("", file.bytes, file.sha256)
    refusal: DownloadRefused | None = None
    for hub, source in hubs.offering(file):
        try:
            known = _known_of(hub, source, known, hubs)
        except DownloadRefused as error:
            refusal = error
            continue
        remotes.append((f"{hub.key}:{source.repo}", hub.remote(source, known)))
    if not remotes and refusal:
        raise refusal
    return FileDownload(file.path, known.bytes, known.sha256, tuple(remotes), file.sha256 is not None)


def _known_of(hub: Hub, source: Source, known: HubFile, hubs: Hubs) -> HubFile:
    """Return what is known of a file at a hub: what was known before, and what the hub adds to it."""
    name = source.file or ""
    if known.bytes is not None and known.sha256 is not None:
        return HubFile(name, known.bytes, known.sha256)
    listed = _look_up(hub, source, hubs)
    return HubFile(name, known.bytes or listed.bytes, known.sha256 or listed.sha256)


def _look_up(hub: Hub, source: Source, hubs: Hubs) -> HubFile:
    found = next((file for file in hubs.listing(hub, source) if file.path == source.file), None)
    if found is None:
        raise DownloadRefused(f"{hub.title} has no {source.file} in {source.repo}. It may have moved: update Piying.")
    return found


def _repository_jobs(file: ListedFile, hubs: Hubs) -> list[FileDownload]:
    """Return the jobs of a repository, from the first hub that lists it."""
    refusal: DownloadRefused | None = None
    for hub, source in hubs.offering(file):
        try:
            listed = [entry for entry in hubs.listing(hub, source) if _is_wanted(entry.path, file.only)]
        except DownloadRefused as error:
            refusal = error
            continue
        if listed:
            return [_repository_job(file, hub, source, entry) for entry in listed]
        refusal = DownloadRefused(f"{hub.title} lists no file of {source.repo} that is needed. Update Piying.")
    raise refusal or PiyingError(f"{file.path} is on no hub.")


def _repository_job(file: ListedFile, hub: Hub, source: Source, entry: HubFile) -> FileDownload:
    remote = hub.remote(source, entry)
    return FileDownload(
        file.path + safe_path(entry.path), entry.bytes, entry.sha256, ((f"{hub.key}:{source.repo}", remote),)
    )


def _is_wanted(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# What is there


def is_there(job: FileDownload, root: Path, ledger: Ledger) -> bool:
    """Tell whether a file is here, as far as its size tells; `verify` reads it."""
    path = root / job.path
    seen = ledger.files.get(job.path)
    size = job.bytes if job.bytes is not None else seen.bytes if seen else None
    try:
        return path.is_file() and size in (None, path.stat().st_size)
    except OSError:
        return False


def check_disk(jobs: Iterable[FileDownload], root: Path) -> None:
    """Accept what is still to come where the disk has room for it.

    Raises:
        PiyingError: it has not.
    """
    needed = sum(max(0, (job.bytes or 0) - part_bytes(root / job.path)) for job in jobs)
    folder = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise PiyingError(
            f"{needed / 1e9:.1f} GB are to come and the disk of {folder} has {free / 1e9:.1f} GB free. Make room, or "
            "name a folder on another disk with --to."
        )


# One file


def _fetch_one(job: FileDownload, root: Path, ledger: Ledger, patience: RetryPolicy, report: Report) -> None:
    """Fetch a file from the first hub that gives it, and remember what it was."""
    refusals = []
    for origin, remote in job.remotes:
        try:
            expected = remote if job.pinned else _as_first_seen(job.path, remote, ledger)
            digest = _transfer(job, expected, root, patience, report)
        except DownloadRefused as error:
            refusals.append(str(error))
            continue
        seen = _remember(job, root, ledger, digest, origin)
        report.say(f"{job.path}: {seen.bytes} bytes, sha256 {seen.sha256[:12]}…, from {remote.hub}")
        return
    raise DownloadRefused(" ".join(refusals))


def _as_first_seen(path: str, remote: Remote, ledger: Ledger) -> Remote:
    """Expect what came the first time, where no manifest says what a file has to be."""
    seen = ledger.files.get(path)
    if seen is None:
        return remote
    if remote.sha256 not in (None, seen.sha256):
        raise DownloadRefused(
            f"{path} is another file at {remote.hub} than the one that was fetched from {seen.source} before. To take "
            f"the new one, remove its entry from {LEDGER} in the models folder."
        )
    return replace(remote, bytes=seen.bytes, sha256=seen.sha256)


def _transfer(job: FileDownload, remote: Remote, root: Path, patience: RetryPolicy, report: Report) -> str:
    def advance(done: int) -> None:
        report.advance(job.path, done, remote.bytes)

    def waiting() -> None:
        report.say(f"{job.path}: another process is fetching it; waiting.")

    return transfer(remote, root / job.path, advance, patience, waiting)


def _remember(job: FileDownload, root: Path, ledger: Ledger, digest: str, origin: str) -> Seen:
    seen = Seen((root / job.path).stat().st_size, digest, origin)
    ledger.files[job.path] = seen
    with changing(root) as current:
        current.files[job.path] = seen
    return seen


def _note_repositories(models: Sequence[Listed], jobs: Sequence[FileDownload], root: Path) -> None:
    """Write down which files a repository has, so that the next call need not ask."""
    whole = {file.path: _names_below(file.path, jobs) for file in files_of(models) if file.is_repository}
    if whole:
        with changing(root) as ledger:
            ledger.repositories.update(whole)


def _names_below(folder: str, jobs: Iterable[FileDownload]) -> list[str]:
    return sorted(job.path.removeprefix(folder) for job in jobs if job.path.startswith(folder))


FETCHING, DONE, CANCELLED, FAILED = "fetching", "done", "cancelled", "failed"
SPEED_SECONDS = 10.0  # the speed shown is that of the last so many seconds


class Cancelled(PiyingError):
    """The user has stopped it."""


class DownloadJob:
    """One model on its way into the models folder."""

    def __init__(self, model: Listed, root: Path, patience: RetryPolicy | None = None) -> None:
        self.model, self.root, self.patience = model, root, patience
        self.state = FETCHING
        self._stop = threading.Event()
        self._said = ""
        self._file = ""
        self._files: dict[str, int] = {}
        self._points: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._run, name="piying-fetch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next bytes; what is here stays, and the next start goes on from there."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, or so long."""
        self._thread.join(seconds)

    def say(self, line: str) -> None:
        """Take a line for the person who waits."""
        log.info("%s", line)
        self._said = line
        self._check()

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Take note of a file's progress; raises where the user has stopped it."""
        del total
        self._file, self._files[name] = name, done
        now = time.monotonic()
        self._points.append((now, sum(self._files.values())))
        while now - self._points[0][0] > SPEED_SECONDS:
            self._points.popleft()
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled("Stopped. What is here stays; fetching again goes on from there.")

    def _run(self) -> None:
        try:
            fetch([self.model], self.root, report=self, patience=self.patience)
            self.state = DONE
        except Cancelled as error:
            self._said, self.state = str(error), CANCELLED
        except (PiyingError, OSError) as error:
            log.warning("%s could not be fetched: %s", self.model.id, error)
            self._said, self.state = str(error), FAILED

    def to_json(self) -> dict[str, Any]:
        """Return how it goes; speed in bytes per second."""
        points = list(self._points)
        seconds = points[-1][0] - points[0][0] if points else 0.0
        return {
            "model": self.model.id,
            "state": self.state,
            "file": self._file,
            "done": sum(list(self._files.values())),
            "speed": round((points[-1][1] - points[0][1]) / seconds) if seconds else 0,
            "said": self._said,
        }


class Fetcher:
    """Fetches one model at a time into a models folder."""

    def __init__(self, patience: RetryPolicy | None = None) -> None:
        self.patience = patience
        self.job: DownloadJob | None = None
        self._lock = threading.Lock()

    def start(self, model: str, root: Path) -> DownloadJob:
        """Begin to fetch a model of the manifest, or return the job that does.

        Raises:
            PiyingError: there is no such model, or another one is on its way.
        """
        (listed,) = find_listed([model])
        with self._lock:
            if self.job is not None and self.job.state == FETCHING:
                if self.job.model.id == model:
                    return self.job
                raise PiyingError(f"{self.job.model.title} is on its way. Wait for it, or stop it first.")
            self.job = DownloadJob(listed, root, self.patience)
            self.job.start()
            return self.job

    def cancel(self) -> None:
        """Stop what is on its way."""
        if self.job is not None:
            self.job.cancel()
