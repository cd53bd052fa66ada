"""Journal: all jobs and their states in one SQLite file, which a server that was killed goes on from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import PiyingError, explain_os_errors
from .job import OVER, Asked, Job, State

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    batch TEXT NOT NULL,
    state TEXT NOT NULL,
    job TEXT NOT NULL,
    asked TEXT NOT NULL,
    audited INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state);
CREATE INDEX IF NOT EXISTS not_audited ON jobs (audited) WHERE audited = 0;
CREATE INDEX IF NOT EXISTS by_batch ON jobs (batch) WHERE batch <> '';
"""
LOCK_SECONDS = 10.0  # a server that was just killed may hold the file a moment longer
ACTIVE: tuple[State, ...] = ("queued", "running")


@dataclass(frozen=True)
class Selection:
    """Which jobs to list.

    Attributes:
        owner: whose, None for everybody's.
        states: only those in one of these; empty for any.
        batch: only those of this batch; empty for any.
        limit: at most so many.
        before: only those submitted before the job of this id; empty for any.
    """

    owner: str | None = None
    states: tuple[State, ...] = ()
    batch: str = ""
    limit: int = 100
    before: str = ""


class Journal:
    """The jobs of one server. Each change is on disk when its method returns.

    Raises:
        PiyingError: the file cannot be opened, is none of a journal, or another server has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_os_errors(f"--state {path.parent}: cannot make it"):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Calls come from several threads, one at a time: the queue has a lock.
            self._database = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False, isolation_level=None)
            # Held until the server ends: two of them would give the same job to two workers.
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            # A job that a client was told of is on disk, whatever happens to this machine.
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            busy = "another server uses it. Stop that one, or name another folder"
            reason = busy if "locked" in str(error) else f"{error}. Move the file away, or name another folder"
            raise PiyingError(f"--state {path.parent}: {path.name} cannot be used: {reason}.") from error

    def add(self, jobs: Sequence[tuple[Job, Asked]]) -> None:
        """Add jobs, all of them or none."""
        rows = [(*self._columns(job), asked.to_json()) for job, asked in jobs]
        self._in_one("INSERT INTO jobs (owner, batch, state, job, id, asked) VALUES (?, ?, ?, ?, ?, ?)", rows)

    def save(self, jobs: Iterable[Job]) -> None:
        """Write the states of jobs that are there, of all or of none."""
        rows = [self._columns(job) for job in jobs]
        self._in_one("UPDATE jobs SET owner = ?, batch = ?, state = ?, job = ? WHERE id = ?", rows)

    def find(self, job_id: str) -> Job | None:
        """Return a job."""
        row = self._database.execute("SELECT job FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else _decoded(row[0])

    def asked(self, job_id: str) -> Asked:
        """Return what a job that is there was asked to run."""
        row = self._database.execute("SELECT asked FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return Asked.from_json(row[0])

    def active(self) -> list[Job]:
        """Return the jobs that are not over, in the order of their submission."""
        marks = ", ".join("?" * len(ACTIVE))
        rows = self._database.execute(f"SELECT job FROM jobs WHERE state IN ({marks}) ORDER BY number", ACTIVE)
        return [_decoded(text) for (text,) in rows]

    def unaudited(self) -> list[Job]:
        """Return the jobs that are over and are not marked as audited."""
        marks = ", ".join("?" * len(OVER))
        rows = self._database.execute(f"SELECT job FROM jobs WHERE state IN ({marks}) AND audited = 0", OVER)
        return [_decoded(text) for (text,) in rows]

    def mark_audited(self, job_id: str) -> None:
        """Take note that the audit log has the line of a job."""
        self._database.execute("UPDATE jobs SET audited = 1 WHERE id = ?", (job_id,))

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state that any is in."""
        return dict(self._database.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())

    def listed(self, selection: Selection) -> list[Job]:
        """Return jobs, the last submitted first."""
        conditions: list[tuple[str, Sequence[object]]] = []
        if selection.owner is not None:
            conditions.append(("owner = ?", (selection.owner,)))
        if selection.states:
            conditions.append((f"state IN ({', '.join('?' * len(selection.states))})", selection.states))
        if selection.batch:
            conditions.append(("batch = ?", (selection.batch,)))
        if selection.before:
            conditions.append(("number < (SELECT number FROM jobs WHERE id = ?)", (selection.before,)))
        where = " AND ".join(text for text, _ in conditions) or "1"
        values = [value for _, found in conditions for value in found]
        rows = self._database.execute(
            f"SELECT job FROM jobs WHERE {where} ORDER BY number DESC LIMIT ?", (*values, selection.limit)
        )
        return [_decoded(text) for (text,) in rows]

    def forget(self, keep: int) -> list[str]:
        """Delete the oldest jobs that are over beyond `keep` of them, and return their ids."""
        marks = ", ".join("?" * len(OVER))
        rows = self._database.execute(
            f"DELETE FROM jobs WHERE state IN ({marks}) AND number NOT IN "
            f"(SELECT number FROM jobs WHERE state IN ({marks}) ORDER BY number DESC LIMIT ?) RETURNING id",
            (*OVER, *OVER, keep),
        )
        return [found for (found,) in rows.fetchall()]

    def close(self) -> None:
        """Let another server have the file."""
        self._database.close()

    @staticmethod
    def _columns(job: Job) -> tuple[str, str, str, str, str]:
        return job.owner, job.batch, job.state, json.dumps(job.to_json()), job.id

    def _in_one(self, statement: str, rows: Sequence[tuple[str, ...]]) -> None:
        # Without it each row would be a transaction, with a flush of its own.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(statement, rows)
        except sqlite3.Error:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _decoded(text: str) -> Job:
    values = json.loads(text)
    return Job(**values | {"files": tuple(values["files"])})
