"""A queue without Ray and HTTP: a pool of pretend workers, whose time, losses and results a test decides."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from piying.serve.dispatcher import Dispatcher
from piying.serve.events import EventLog
from piying.serve.job import Asked, Job, Outcome
from piying.serve.job_runner import Forecast, Machine
from piying.serve.journal import Journal
from piying.serve.placement import Estimate
from piying.serve.pool import Ended, Forecasted, Report, Task, WorkerLost, WorkerReady
from piying.serve.queue import Queue
from piying.serve.results import FolderStore

PICTURE = {
    "1": {"class_type": "PiyingSampleImage", "inputs": {"sample": "first frame"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
}
FITS = Estimate(fits=True, seconds=1.0, loading=1.0, vram=0, ram=0)


def pytest_collection_modifyitems(items):
    missing = [name for name in ("ray", "fastapi", "prometheus_client") if importlib.util.find_spec(name) is None]
    reason = f'{", ".join(missing)} missing; python -m pip install "ray[serve]" adds it'
    for item in items:
        if missing and item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.skip(reason=reason))


def new_job(number: int = 0, owner: str = "local", **values: object) -> tuple[Job, Asked]:
    asked = Asked(PICTURE, seed=number, **values)
    return Job.new(hashlib.md5(f"{owner}{number}".encode()).hexdigest(), owner, asked, 100.0 + number), asked


@dataclass
class PretendPool:
    """Workers that do nothing until a test says how their work went.

    Attributes:
        running: the attempt of each worker.
        forecasts: by costs_like; others fit everywhere.
    """

    store: FolderStore
    kinds: dict[str, str]
    running: dict[str, Task] = field(default_factory=dict)
    cancelled: list[tuple[str, str]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    lost_by_forecast: str = ""
    reports: deque[Report] = field(default_factory=deque)
    numbers: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.reports += [WorkerReady(name, Machine(kind)) for name, kind in self.kinds.items()]

    def run(self, worker: str, task: Task) -> None:
        assert worker not in self.running
        self.running[worker] = task

    def forecast(self, worker: str, costs_like: str, asked: Asked) -> None:
        if costs_like == self.lost_by_forecast:
            self.lose(worker)
        else:
            self.reports.append(Forecasted(worker, costs_like, self.forecasts.get(costs_like, Forecast(FITS))))

    def cancel(self, worker: str, job_id: str) -> None:
        self.cancelled.append((worker, job_id))

    def kill(self, worker: str) -> None:
        self.killed.append(worker)
        self.lose(worker)

    def poll(self, seconds: float) -> Sequence[Report]:
        found = list(self.reports)
        self.reports.clear()
        return found

    def close(self) -> None:
        self.running.clear()

    def write(self, task: Task) -> Path:
        """Write what the task makes, as far as the moment before it is published."""
        folder = self.store.attempt_folder(task.job_id, task.attempt)
        (folder / "a.txt").write_text(json.dumps(task.asked.seed))
        return folder

    def finish(self, worker: str) -> None:
        """Let a worker end its job well."""
        task = self.running.pop(worker)
        files = self.store.publish(task.job_id, self.write(task))
        self.reports.append(Ended(worker, task.job_id, task.attempt, Outcome("done", files=files, loaded=task.models)))

    def lose(self, worker: str) -> None:
        """Let a worker be lost, and another of its kind start."""
        self.running.pop(worker, None)
        kind = self.kinds.pop(worker)
        name = f"w{next(self.numbers)}"
        self.kinds[name] = kind
        self.reports += [WorkerLost(worker, "killed"), WorkerReady(name, Machine(kind))]


@dataclass
class Server:
    """A queue, its dispatcher and pretend workers on a folder, with a clock that a test moves."""

    folder: Path
    now: float = 1000.0
    workers: int = 2
    retries: int = 1
    over: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FolderStore(self.folder / "results")
        self.queue = Queue(
            Journal(self.folder / "jobs.sqlite"),
            results=self.store.find,
            retries=self.retries,
            on_over=self.over.append,
        )
        self.pool = PretendPool(self.store, {f"first{index}": "card" for index in range(self.workers)})
        self.events = EventLog()
        self.dispatcher = Dispatcher(self.queue, self.pool, self.events, lambda: self.now)

    def steps(self, count: int = 3) -> None:
        """Let reports be taken and jobs be placed."""
        for _ in range(count):
            self.now += 0.1
            self.dispatcher.step(0.0)

    def restarted(self) -> Server:
        """Return a server that goes on from what this one, which was killed, has left on disk."""
        self.queue.close()  # the system does so when a process is gone
        other = Server(self.folder, self.now, self.workers, self.retries)
        other.queue.recover(other.now)
        return other


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.queue.close()
