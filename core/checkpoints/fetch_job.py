"""Fetching in the background: one model at a time, watched and stopped from elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from ..errors import PiyingError
from .fetch import fetch
from .fetch_http import Patience
from .manifest import Listed, find_listed

log = logging.getLogger("piying")

FETCHING, DONE, CANCELLED, FAILED = "fetching", "done", "cancelled", "failed"
SPEED_SECONDS = 10.0  # the speed shown is that of the last so many seconds


class Cancelled(PiyingError):
    """The user has stopped it."""


class Job:
    """One model on its way into the models folder."""

    def __init__(self, model: Listed, root: Path, patience: Patience | None = None) -> None:
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

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience
        self.job: Job | None = None
        self._lock = threading.Lock()

    def start(self, model: str, root: Path) -> Job:
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
            self.job = Job(listed, root, self.patience)
            self.job.start()
            return self.job

    def cancel(self) -> None:
        """Stop what is on its way."""
        if self.job is not None:
            self.job.cancel()
