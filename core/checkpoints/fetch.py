"""Models from a hub into a models folder: what is missing comes, what is there is checked.

    fetch(find_listed(["wan2.1-vace-1.3b"]), Path("models"), report=...)

Needs the standard library alone. huggingface_hub, where it is installed, says who is logged in.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ..errors import PiyingError
from .fetch_http import Patience, Refused, Remote
from .fetch_hubs import AUTO, Hub, HubFile, choose_hubs, safe_path, titles
from .fetch_part import part_bytes
from .fetch_proof import LEDGER, Ledger, Seen, changing
from .fetch_transfer import transfer
from .manifest import Listed, ListedFile, Source, files_of

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
class Job:
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

    def __init__(self, choice: str = AUTO, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
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
    patience: Patience | None = None,
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
    hubs = Hubs(source, replace(patience or Patience(), tell=report.say))
    jobs = [job for file in files_of(models) for job in jobs_of(file, hubs, root, ledger)]
    missing = [job for job in jobs if not is_there(job, root, ledger)]
    check_disk(missing, root)
    for job in missing:
        _fetch_one(job, root, ledger, hubs.patience, report)
    _note_repositories(models, jobs, root)
    report.say(f"{len(jobs)} files are in {root}, {len(missing)} of them new.")
    return [root / job.path for job in jobs]


def jobs_of(file: ListedFile, hubs: Hubs, root: Path, ledger: Ledger) -> list[Job]:
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


def _known(path: str, ledger: Ledger) -> Job:
    seen = ledger.files.get(path)
    return Job(path, seen.bytes if seen else None, seen.sha256 if seen else None)


def _file_job(file: ListedFile, hubs: Hubs) -> Job:
    """Return a single file's job; a hub is asked for what the manifest does not say."""
    remotes, known = [], HubFile("", file.bytes, file.sha256)
    refusal: Refused | None = None
    for hub, source in hubs.offering(file):
        try:
            known = _known_of(hub, source, known, hubs)
        except Refused as error:
            refusal = error
            continue
        remotes.append((f"{hub.key}:{source.repo}", hub.remote(source, known)))
    if not remotes and refusal:
        raise refusal
    return Job(file.path, known.bytes, known.sha256, tuple(remotes), file.sha256 is not None)


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
        raise Refused(f"{hub.title} has no {source.file} in {source.repo}. It may have moved: update Piying.")
    return found


def _repository_jobs(file: ListedFile, hubs: Hubs) -> list[Job]:
    """Return the jobs of a repository, from the first hub that lists it."""
    refusal: Refused | None = None
    for hub, source in hubs.offering(file):
        try:
            listed = [entry for entry in hubs.listing(hub, source) if _is_wanted(entry.path, file.only)]
        except Refused as error:
            refusal = error
            continue
        if listed:
            return [_repository_job(file, hub, source, entry) for entry in listed]
        refusal = Refused(f"{hub.title} lists no file of {source.repo} that is needed. Update Piying.")
    raise refusal or PiyingError(f"{file.path} is on no hub.")


def _repository_job(file: ListedFile, hub: Hub, source: Source, entry: HubFile) -> Job:
    remote = hub.remote(source, entry)
    return Job(file.path + safe_path(entry.path), entry.bytes, entry.sha256, ((f"{hub.key}:{source.repo}", remote),))


def _is_wanted(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# What is there


def is_there(job: Job, root: Path, ledger: Ledger) -> bool:
    """Tell whether a file is here, as far as its size tells; `verify` reads it."""
    path = root / job.path
    seen = ledger.files.get(job.path)
    size = job.bytes if job.bytes is not None else seen.bytes if seen else None
    try:
        return path.is_file() and size in (None, path.stat().st_size)
    except OSError:
        return False


def check_disk(jobs: Iterable[Job], root: Path) -> None:
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


def _fetch_one(job: Job, root: Path, ledger: Ledger, patience: Patience, report: Report) -> None:
    """Fetch a file from the first hub that gives it, and remember what it was."""
    refusals = []
    for origin, remote in job.remotes:
        try:
            expected = remote if job.pinned else _as_first_seen(job.path, remote, ledger)
            digest = _transfer(job, expected, root, patience, report)
        except Refused as error:
            refusals.append(str(error))
            continue
        seen = _remember(job, root, ledger, digest, origin)
        report.say(f"{job.path}: {seen.bytes} bytes, sha256 {seen.sha256[:12]}…, from {remote.hub}")
        return
    raise Refused(" ".join(refusals))


def _as_first_seen(path: str, remote: Remote, ledger: Ledger) -> Remote:
    """Expect what came the first time, where no manifest says what a file has to be."""
    seen = ledger.files.get(path)
    if seen is None:
        return remote
    if remote.sha256 not in (None, seen.sha256):
        raise Refused(
            f"{path} is another file at {remote.hub} than the one that was fetched from {seen.source} before. To take "
            f"the new one, remove its entry from {LEDGER} in the models folder."
        )
    return replace(remote, bytes=seen.bytes, sha256=seen.sha256)


def _transfer(job: Job, remote: Remote, root: Path, patience: Patience, report: Report) -> str:
    def advance(done: int) -> None:
        report.advance(job.path, done, remote.bytes)

    def waiting() -> None:
        report.say(f"{job.path}: another process is fetching it; waiting.")

    return transfer(remote, root / job.path, advance, patience, waiting)


def _remember(job: Job, root: Path, ledger: Ledger, digest: str, origin: str) -> Seen:
    seen = Seen((root / job.path).stat().st_size, digest, origin)
    ledger.files[job.path] = seen
    with changing(root) as current:
        current.files[job.path] = seen
    return seen


def _note_repositories(models: Sequence[Listed], jobs: Sequence[Job], root: Path) -> None:
    """Write down which files a repository has, so that the next call need not ask."""
    whole = {file.path: _names_below(file.path, jobs) for file in files_of(models) if file.is_repository}
    if whole:
        with changing(root) as ledger:
            ledger.repositories.update(whole)


def _names_below(folder: str, jobs: Iterable[Job]) -> list[str]:
    return sorted(job.path.removeprefix(folder) for job in jobs if job.path.startswith(folder))
