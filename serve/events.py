"""Events of jobs: what `--json` would print for each, kept for those who look later, and passed on as they come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .job import Job

Event = dict[str, Any]
GROWING = ("progress", "text")  # events that say again, and more, what those before them said
KEPT_EVENTS = 500  # of a job
KEPT_OVER = 200  # jobs that are over, whose events are kept in memory


@dataclass
class _JobEvents:
    """The last events of one job with their numbers, and who waits for more of them."""

    numbered: deque[tuple[int, Event]] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    next: int = 1
    is_over: bool = False
    listeners: list[Callable[[], object]] = field(default_factory=list)

    def drop_last_of(self, event: Event) -> None:
        """Drop the step before a step: a job has thousands, and only the last says anything."""
        for index in range(len(self.numbered) - 1, -1, -1):
            other = self.numbered[index][1]
            if other["event"] not in GROWING:
                return
            if all(other.get(name) == event.get(name) for name in ("event", "node", "phase")):
                del self.numbered[index]
                return


class EventLog:
    """The events of the jobs that are not over, and of the last that are. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._jobs: dict[str, _JobEvents] = {}
        self._over: deque[str] = deque()
        self._lock = threading.Lock()

    def add(self, job_id: str, event: Event) -> None:
        """Add an event."""
        with self._lock:
            events = self._jobs.setdefault(job_id, _JobEvents())
            if event["event"] in GROWING:
                events.drop_last_of(event)
            events.numbered.append((events.next, event))
            events.next += 1
            listeners = list(events.listeners)
        for notify in listeners:
            notify()

    def close(self, job: Job) -> None:
        """Add the last events of a job that is over."""
        for event in closing_events(job):
            self.add(job.id, event)
        with self._lock:
            events = self._jobs[job.id]
            events.is_over = True
            listeners = list(events.listeners)
            self._over.append(job.id)
            while len(self._over) > KEPT_OVER:
                self._jobs.pop(self._over.popleft(), None)
        for notify in listeners:
            notify()

    def after(self, job_id: str, number: int) -> tuple[list[tuple[int, Event]], bool]:
        """Return the events with larger numbers that are kept, and whether those are the last."""
        with self._lock:
            events = self._jobs.get(job_id) or _JobEvents()
            return [one for one in events.numbered if one[0] > number], events.is_over

    @contextmanager
    def listening(self, job_id: str, notify: Callable[[], object]) -> Iterator[None]:
        """Have `notify` called, from any thread, with each event of a job that is not over."""
        with self._lock:
            events = self._jobs.setdefault(job_id, _JobEvents())
            events.listeners.append(notify)
        try:
            yield
        finally:
            with self._lock:
                events.listeners.remove(notify)
                # Of a job that was over long ago there is nothing to keep.
                if not events.numbered and not events.listeners and self._jobs.get(job_id) is events:
                    del self._jobs[job_id]


def closing_events(job: Job) -> list[Event]:
    """Return the events that a job that is over ends with."""
    if job.state == "done":
        saved = [{"event": "saved", "path": file["name"]} for file in job.files]
        return [*saved, {"event": "done", "seconds": round((job.ended or 0.0) - (job.started or job.submitted), 3)}]
    found = job.problem or {"message": "", "exit_code": 1, "node": None, "input": None}
    return [{"event": "error", **{name: found[name] for name in ("message", "exit_code", "node")}}]  # type: ignore[literal-required]
