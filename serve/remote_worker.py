"""Remote worker: what runs in a worker's process, on any machine of a cluster; called from several threads."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import Any

from ..runner.cli import QUIET_LIBRARIES
from .events import GROWING, Event
from .job import Asked, Outcome
from .job_runner import Forecast, JobRunner, Machine
from .settings import Folders

MOST_EVENTS = 2000  # that wait to be fetched
PATIENCE = 1.0  # seconds that a request for events waits for one


class RemoteWorker:
    """Runs jobs in this process, and hands out their events to who asks for them.

    Args:
        folders: those of the server.
        options: device and limits, see `JobRunner`.
    """

    def __init__(self, folders: Folders, options: dict[str, Any]) -> None:
        # Before torch and diffusers are imported, which read them once.
        for name, value in QUIET_LIBRARIES.items():
            os.environ.setdefault(name, value)
        logging.getLogger("piying").setLevel(logging.INFO)
        self._runner = JobRunner(folders, **options)
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._changed = threading.Condition()
        self._job: str | None = None

    def machine(self) -> Machine:
        """Return what the machine is."""
        return self._runner.machine()

    def forecast(self, asked: Asked) -> Forecast:
        """Return what a job would need here."""
        return self._runner.forecast(asked)

    def run(self, job_id: str, attempt: int, asked: Asked, models: frozenset[str]) -> Outcome:
        """Run a job."""
        with self._changed:
            self._events.clear()
            self._job = job_id
        try:
            return self._runner.run(job_id, attempt, asked, models=models, emit=self._add)
        finally:
            with self._changed:
                self._job = None
                self._changed.notify_all()

    def cancel(self, job_id: str) -> None:
        """Stop a job where it is."""
        self._runner.cancel(job_id)

    def events(self, job_id: str) -> list[Event]:
        """Return the events of a job since the last call; waits for one a moment while the job runs."""
        with self._changed:
            if not self._events and self._job == job_id:
                self._changed.wait(PATIENCE)
            found = list(self._events)
            self._events.clear()
        return found

    def alive(self) -> None:
        """Never return: who waits for it is told when the process is gone."""
        threading.Event().wait()

    def _add(self, event: Event) -> None:
        with self._changed:
            last = self._events[-1] if self._events else {}
            if event["event"] in GROWING and all(last.get(name) == event.get(name) for name in ("event", "phase")):
                self._events.pop()
            self._events.append(event)
            self._changed.notify_all()
