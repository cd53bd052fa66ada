"""Audit: a line of JSON for each job that is over, and structured logs, with the id of the job that they are about."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from ..core.errors import explain_os_errors
from .job import Job

LOG_BYTES, LOG_FILES = 32 << 20, 4


def iso_time(seconds: float | None) -> str | None:
    """Return a time in seconds since 1970 as ISO 8601 has it, in UTC."""
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    )


def audit_entry(job: Job) -> dict[str, Any]:
    """Return what the audit log says of a job."""
    return {
        "time": iso_time(job.ended),
        "job": job.id,
        "batch": job.batch,
        "owner": job.owner,
        "workflow": job.checksum,
        "state": job.state,
        "attempts": job.attempt,
        "workers_lost": job.lost,
        "worker": job.worker,
        "submitted": iso_time(job.submitted),
        "started": iso_time(job.started),
        "files": list(job.files),
        "problem": None if job.problem is None else job.problem["message"],
    }


class AuditLog:
    """A file to which a line is appended for each job that is over.

    Raises:
        PiyingError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with explain_os_errors(f"{path}: cannot be written to"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def add(self, job: Job) -> None:
        """Append the line of a job; it is on disk when this returns."""
        line = json.dumps(audit_entry(job)) + "\n"
        # Opened for each line: whoever moves the file away for good keeping does so without the server.
        with explain_os_errors(f"{self._path}: cannot be written to"), self._path.open("ab") as file:
            # One write: lines of two processes never mix.
            file.write(line.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())


class JsonLines(logging.Formatter):
    """Formats records as lines of JSON; what `extra={"fields": {…}}` gives is put beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        found: dict[str, Any] = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def log_to(path: Path) -> logging.Handler:
    """Have the pack's log records appended to a file, which is renamed when it is large; return the handler."""
    with explain_os_errors(f"{path}: cannot be written to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("piying")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
