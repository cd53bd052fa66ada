"""Pool: the workers of a server, and what they report. The seam between the queue and what it is distributed by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .job import Asked, Outcome, problem
from .job_runner import Forecast, Machine


@dataclass(frozen=True)
class Task:
    """An attempt at a job, for a worker."""

    job_id: str
    attempt: int
    asked: Asked
    models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WorkerReady:
    """A worker has started."""

    worker: str
    machine: Machine


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, with the job that it ran."""

    worker: str
    reason: str = ""


@dataclass(frozen=True)
class Forecasted:
    """A worker says what jobs that cost alike would need."""

    worker: str
    costs_like: str
    forecast: Forecast


@dataclass(frozen=True)
class Happened:
    """An event of a job."""

    worker: str
    job_id: str
    event: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """An attempt has ended."""

    worker: str
    job_id: str
    attempt: int
    outcome: Outcome


# What a worker says, or is said of it; in the order in which it happened.
Report = WorkerReady | WorkerLost | Forecasted | Happened | Ended


class WorkerPool(Protocol):
    """Workers, each of which does one thing at a time. All methods but `cancel` are called from one thread."""

    def run(self, worker: str, task: Task) -> None:
        """Begin an attempt; its events and its end are reported."""

    def forecast(self, worker: str, costs_like: str, asked: Asked) -> None:
        """Ask a worker that does nothing what a job would need; the answer is reported."""

    def cancel(self, worker: str, job_id: str) -> None:
        """Have a worker stop its job."""

    def kill(self, worker: str) -> None:
        """End a worker that does not stop; it is reported as lost, and another takes its place."""

    def poll(self, seconds: float) -> Sequence[Report]:
        """Wait for reports, at most so long, and return those that have come."""

    def close(self) -> None:
        """End all workers."""


def crashed(text: str) -> Outcome:
    """Return the outcome of an attempt that ended with an error that nobody foresaw."""
    return Outcome("failed", problem(text))
