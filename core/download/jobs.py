"""Downloads: models and their files fetched one after the other, by the command or in the background."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from ..errors import PiyingError
from ..host.model_folders import ModelsRoot
from ..http import RetryPolicy
from .checksums import LEDGER, Ledger, LedgerEntry, edit_ledger
from .hub_session import AUTO, HubSession
from .hubs import HubFile
from .manifest import ListedFile, ListedModel, files_of, find_listed, safe_path
from .partial_file import partial_bytes
from .transfer import DownloadRefused, RemoteFile, transfer

log = logging.getLogger("piying")


SPARE_BYTES = 256 << 20  # left free on the disk, for what else is written meanwhile


class DownloadListener(Protocol):
    """Who is told how it goes."""

    def message(self, line: str) -> None:
        """Take a line for the person who waits."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Take note that `done` of `total` bytes of a file are here; may raise to stop."""


class SilentListener:
    """A listener that ignores everything."""

    def message(self, line: str) -> None:
        """Do nothing."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class FileDownload:
    """One file of a model.

    Attributes:
        path: where it goes, below the models folder.
        bytes, sha256: what it has to be; None where neither manifest nor hub says.
        remotes: (origin, address) pairs to fetch it from, best first.
        is_pinned: whether the manifest says the sha256, and not the hub.
    """

    path: str
    bytes: int | None
    sha256: str | None
    remotes: tuple[tuple[str, RemoteFile], ...] = ()
    is_pinned: bool = False


def fetch(
    models: Sequence[ListedModel],
    root: ModelsRoot,
    *,
    source: str = AUTO,
    listener: DownloadListener | None = None,
    policy: RetryPolicy | None = None,
) -> list[Path]:
    """Fetch what is missing of models, and of the parts they need; return their files.

    Args:
        models: from `find_listed`.
        root: the models folder; made where it is not there.
        source: `huggingface`, `modelscope`, or `auto`, which takes the one that answers.
        listener: told lines and progress.
        policy: how long to wait for a server.

    Raises:
        PiyingError: a file cannot be had, is not what it should be, or does not fit on the disk. What is already
            here of it stays, and the next call goes on from there.
    """
    listener, ledger = listener or SilentListener(), Ledger.read(root)
    session = HubSession(source, replace(policy or RetryPolicy(), notify=listener.message))
    downloads = [download for file in files_of(models) for download in downloads_of(file, session, root, ledger)]
    missing = [download for download in downloads if not is_present(download, root, ledger)]
    check_disk_space(missing, root)
    for download in missing:
        _fetch_file(download, root, ledger=ledger, policy=session.policy, listener=listener)
    whole = {
        file.path: sorted(one.path.removeprefix(file.path) for one in downloads if one.path.startswith(file.path))
        for file in files_of(models)
        if file.is_repository
    }
    if whole:  # the next call need not ask which files a repository has
        with edit_ledger(root) as current:
            current.repositories.update(whole)
    listener.message(f"{len(downloads)} files are in {root}, {len(missing)} of them new.")
    return [root / download.path for download in downloads]


def is_present(download: FileDownload, root: ModelsRoot, ledger: Ledger) -> bool:
    """Return whether a file is here, as far as its size tells; `verify` reads it."""
    path = root / download.path
    entry = ledger.files.get(download.path)
    size = download.bytes if download.bytes is not None else entry.bytes if entry else None
    try:
        return path.is_file() and size in (None, path.stat().st_size)
    except OSError:
        return False


def check_disk_space(downloads: Iterable[FileDownload], root: ModelsRoot) -> None:
    """Accept what is still to come where the disk has room for it.

    Raises:
        PiyingError: it has not.
    """
    needed: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for download in downloads:
        target = (root / download.path).absolute()
        folder = next(folder for folder in target.parents if folder.exists())
        disk = folder.stat().st_dev
        folders.setdefault(disk, folder)
        needed[disk] += max(0, (download.bytes or 0) - partial_bytes(target))
    for disk, size in needed.items():
        free = shutil.disk_usage(folders[disk]).free
        if size and size + SPARE_BYTES > free:
            raise PiyingError(
                f"{size / 1e9:.1f} GB are to come and the disk of {folders[disk]} has {free / 1e9:.1f} GB free. "
                "Make room, or name a folder on another disk with --to."
            )


# Manifest entry → files to download


def downloads_of(file: ListedFile, session: HubSession, root: ModelsRoot, ledger: Ledger) -> list[FileDownload]:
    """Return the files of a line of the manifest, without asking a hub where all is here and known."""
    if file.is_repository:
        names = ledger.repositories.get(file.path)
        known = [_in_ledger(file.path + name, ledger) for name in names or ()]
        if names and all(is_present(download, root, ledger) for download in known):
            return known
        return _repository_downloads(file, session)
    if not (file.bytes and file.sha256) and file.path in ledger.files:
        download = _in_ledger(file.path, ledger)
        if is_present(download, root, ledger):
            return [download]
    return [_file_download(file, session)]


def _in_ledger(path: str, ledger: Ledger) -> FileDownload:
    entry = ledger.files.get(path)
    return FileDownload(path, entry.bytes if entry else None, entry.sha256 if entry else None)


def _file_download(file: ListedFile, session: HubSession) -> FileDownload:
    """Return a single file; a hub is asked for what the manifest does not say."""
    remotes, known = [], HubFile("", file.bytes, file.sha256)
    refusal: DownloadRefused | None = None
    sources = session.sources(file)
    for hub, source in sources:
        known = replace(known, path=source.file or "")
        # What one hub has told holds for the next: two hubs may keep different files under one name.
        if known.bytes is None or known.sha256 is None:
            try:
                listed = next((entry for entry in session.listing(hub, source) if entry.path == known.path), None)
            except DownloadRefused as error:
                refusal = error
                if hub is not sources[-1][0]:
                    session.policy.notify(f"{error} Asking the next hub.")
                continue
            if listed is None:
                refusal = DownloadRefused(
                    f"{hub.title} has no {known.path} in {source.repo}. It may have moved: update Piying."
                )
                continue
            known = replace(known, bytes=known.bytes or listed.bytes, sha256=known.sha256 or listed.sha256)
        remotes.append((f"{hub.key}:{source.repo}", hub.remote(source, known)))
    if not remotes and refusal:
        raise refusal
    return FileDownload(file.path, known.bytes, known.sha256, tuple(remotes), file.sha256 is not None)


def _repository_downloads(file: ListedFile, session: HubSession) -> list[FileDownload]:
    """Return the files of a repository, from the first hub that lists it."""
    refusal: DownloadRefused | None = None
    sources = session.sources(file)
    for hub, source in sources:
        try:
            listed = [
                entry
                for entry in session.listing(hub, source)
                if any(fnmatchcase(entry.path, pattern) for pattern in file.only)
            ]
        except DownloadRefused as error:
            refusal = error
            if hub is not sources[-1][0]:
                session.policy.notify(f"{error} Asking the next hub.")
            continue
        if listed:
            origin = f"{hub.key}:{source.repo}"
            return [
                FileDownload(
                    file.path + safe_path(entry.path),
                    entry.bytes,
                    entry.sha256,
                    ((origin, hub.remote(source, entry)),),
                )
                for entry in listed
            ]
        refusal = DownloadRefused(f"{hub.title} lists no file of {source.repo} that is needed. Update Piying.")
    raise refusal or PiyingError(f"{file.path} is on no hub.")


# One file


def _fetch_file(
    download: FileDownload,
    root: ModelsRoot,
    *,
    ledger: Ledger,
    policy: RetryPolicy,
    listener: DownloadListener,
) -> None:
    """Fetch a file from the first hub that gives it, and write what it was into the ledger."""
    refusals = []
    target, before = root / download.path, ledger.files.get(download.path)
    for origin, remote in download.remotes:
        expected = remote
        if before is not None and not download.is_pinned:
            # Where no manifest says what a file has to be, it has to be what came the first time.
            if remote.sha256 not in (None, before.sha256):
                refusals.append(
                    f"{download.path} is another file at {remote.hub} than the one that was fetched from "
                    f"{before.source} before. To take the new one, remove its entry from {LEDGER} in the models "
                    "folder."
                )
                continue
            expected = replace(remote, bytes=before.bytes, sha256=before.sha256)

        def progress(done: int, total: int | None = expected.bytes) -> None:
            listener.progress(download.path, done, total)

        def on_wait() -> None:
            listener.message(f"{download.path}: another process is fetching it; waiting.")

        try:
            digest = transfer(expected, target, progress=progress, policy=policy, on_wait=on_wait)
        except DownloadRefused as error:
            refusals.append(str(error))
            continue
        entry = LedgerEntry(target.stat().st_size, digest, origin)
        ledger.files[download.path] = entry
        # Read again and written at once: another process may have added files of its own meanwhile.
        with edit_ledger(root) as current:
            current.files[download.path] = entry
        listener.message(f"{download.path}: {entry.bytes} bytes, sha256 {digest[:12]}…, from {remote.hub}")
        return
    raise DownloadRefused(" ".join(refusals))


# In the background


class JobState(str, Enum):
    """How far a job is; the values are those of the page."""

    FETCHING, DONE, CANCELLED, FAILED = "fetching", "done", "cancelled", "failed"


SPEED_SECONDS = 10.0  # the speed shown is that of the last so many seconds


class JobCancelled(PiyingError):
    """The user has stopped it."""


class DownloadJob:
    """A download of one model: a listener that records the progress of its files."""

    def __init__(self, model: ListedModel, root: ModelsRoot, policy: RetryPolicy | None = None) -> None:
        self.model, self.root, self.policy = model, root, policy
        self.state = JobState.FETCHING
        self._cancelled = threading.Event()
        self._message = ""
        self._file = ""
        self._files: dict[str, int] = {}
        self._points: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._run, name="piying-fetch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next bytes; what is here stays, and the next start goes on from there."""
        self._cancelled.set()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, or so long."""
        self._thread.join(seconds)

    def message(self, line: str) -> None:
        """Take a line for the person who waits; raises where the user has stopped it."""
        log.info("%s", line)
        self._message = line
        self._raise_if_cancelled()

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Take note of a file's progress; raises where the user has stopped it."""
        del total
        self._file, self._files[name] = name, done
        now = time.monotonic()
        self._points.append((now, sum(self._files.values())))
        while now - self._points[0][0] > SPEED_SECONDS:
            self._points.popleft()
        self._raise_if_cancelled()

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise JobCancelled("Stopped. What is here stays; fetching again goes on from there.")

    def _run(self) -> None:
        try:
            fetch([self.model], self.root, listener=self, policy=self.policy)
            self.state = JobState.DONE
        except JobCancelled as error:
            self._message, self.state = str(error), JobState.CANCELLED
        except (PiyingError, OSError) as error:
            log.warning("%s could not be fetched: %s", self.model.id, error)
            self._message, self.state = str(error), JobState.FAILED

    def to_json(self) -> dict[str, Any]:
        """Return state and progress; speed in bytes per second."""
        points = list(self._points)
        seconds = points[-1][0] - points[0][0] if points else 0.0
        return {
            "model": self.model.id,
            "state": self.state.value,
            "file": self._file,
            "done": sum(list(self._files.values())),
            "speed": round((points[-1][1] - points[0][1]) / seconds) if seconds else 0,
            "message": self._message,
        }


class Downloader:
    """Fetches one model at a time into a models folder."""

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        self.policy = policy
        self.job: DownloadJob | None = None
        self._lock = threading.Lock()

    def start(self, model: str, root: ModelsRoot) -> DownloadJob:
        """Begin to fetch a model of the manifest, or return the job that does.

        Raises:
            PiyingError: there is no such model, or another download is running.
        """
        (listed,) = find_listed([model])
        with self._lock:
            if self.job is not None and self.job.state is JobState.FETCHING:
                if self.job.model.id == model:
                    return self.job
                raise PiyingError(f"{self.job.model.title} is being downloaded. Wait for it, or stop it first.")
            self.job = DownloadJob(listed, root, self.policy)
            self.job.start()
            return self.job

    def cancel(self) -> None:
        """Stop the running download."""
        if self.job is not None:
            self.job.cancel()
