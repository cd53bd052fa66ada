"""Dispatcher: gives waiting jobs to workers by the memory plan, and takes what workers report back to the queue."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .events import EventLog
from .job import Job
from .job_runner import Forecast, Machine, unfit
from .placement import Estimate, WaitingJob, Worker, place
from .pool import Ended, Forecasted, Happened, Report, Task, WorkerLost, WorkerPool, WorkerReady
from .queue import Queue

log = logging.getLogger("piying.serve")

MOST_CONSIDERED = 512  # waiting jobs, from the oldest on
MOST_FORECASTS = 4096
STOP_SECONDS = 30.0  # after which a worker that does not stop its cancelled job is ended


@dataclass
class WorkerState:
    """A worker as the dispatcher knows it.

    Attributes:
        job: id of the job that it runs; `attempt` is the job's.
        asked: what jobs cost alike whose forecast it works on; None where it does not.
        since, until: when the job began, and when it should end.
        told: when it was told to stop the job, else None.
        busy_seconds: that it has run jobs for, this one not included.
    """

    machine: Machine
    loaded: frozenset[str] = frozenset()
    job: str | None = None
    attempt: int = 0
    asked: str | None = None
    since: float = 0.0
    until: float = 0.0
    told: float | None = None
    busy_seconds: float = 0.0

    @property
    def kind(self) -> str:
        """The kind of its machine."""
        return self.machine.kind

    @property
    def is_free(self) -> bool:
        """Whether it does nothing."""
        return self.job is None and self.asked is None


@dataclass
class Dispatcher:
    """Moves jobs between a queue and a pool; `step` is called again and again from one thread.

    Attributes:
        clock: returns seconds since 1970.
        workers: by id, those that are ready.
    """

    queue: Queue
    pool: WorkerPool
    events: EventLog
    clock: Callable[[], float]
    workers: dict[str, WorkerState] = field(default_factory=dict)
    lost_workers: int = 0
    _forecasts: dict[tuple[str, str], Forecast] = field(default_factory=dict)
    _kinds: set[str] = field(default_factory=set)
    _lost_forecasts: Counter[str] = field(default_factory=Counter)

    def step(self, seconds: float) -> None:
        """Wait for reports, at most so long, take them, and give jobs to free workers."""
        for report in self.pool.poll(seconds):
            self._take(report)
        self._stop_cancelled()
        self._place()

    def _take(self, report: Report) -> None:
        now, worker = self.clock(), self.workers.get(report.worker)
        if isinstance(report, WorkerReady):
            self.workers[report.worker] = WorkerState(report.machine)
            self._kinds.add(report.machine.kind)
            log.info("%s is ready: %s.", report.worker, report.machine.kind)
        elif isinstance(report, WorkerLost):
            self.workers.pop(report.worker, None)
            self.lost_workers += 1
            log.warning("%s is lost. %s", report.worker, report.reason)
            if worker is not None and worker.job is not None:
                job = self.queue.lose_worker(worker.job, worker.attempt, now)
                if job is not None and not job.is_over:
                    text = "Its worker was lost: the job waits for another one."
                    self.events.add(job.id, {"event": "message", "level": "warning", "text": text})
            elif worker is not None and worker.asked is not None:
                self._lose_forecast(worker.asked, worker.kind)
        elif worker is None:
            pass  # one that counts as lost: what it says is about an attempt that another one has taken the place of
        elif isinstance(report, Forecasted):
            worker.asked = None
            self._keep(report.costs_like, worker.kind, report.forecast)
        elif isinstance(report, Happened):
            if worker.job == report.job_id:
                self.events.add(report.job_id, report.event)
        else:
            self._end(worker, report, now)

    def _end(self, worker: WorkerState, report: Ended, now: float) -> None:
        if worker.job != report.job_id or worker.attempt != report.attempt:
            return
        worker.busy_seconds += now - worker.since
        worker.job, worker.told, worker.loaded = None, None, report.outcome.loaded
        self.queue.finish(report.job_id, report.attempt, report.outcome, now)

    def _stop_cancelled(self) -> None:
        now = self.clock()
        cancelled = {job.id for job in self.queue.running() if job.is_cancelling}
        for name, worker in list(self.workers.items()):
            if worker.job not in cancelled:
                continue
            # Nodes look for it between steps; a library that hangs never does.
            if worker.told is None:
                worker.told = now
                self.pool.cancel(name, worker.job or "")
            elif now - worker.told > STOP_SECONDS:
                worker.told = now
                log.warning("%s does not stop the job %s: it is ended.", name, worker.job)
                self.pool.kill(name)

    def _place(self) -> None:
        free = {name: worker for name, worker in self.workers.items() if worker.is_free}
        if not free:
            return
        now = self.clock()
        waiting = self.queue.waiting()[:MOST_CONSIDERED]
        asked = {worker.kind for worker in free.values()}
        known = [job for job in waiting if all((job.costs_like, kind) in self._forecasts for kind in asked)]
        # A worker that answers is not free in this round: the others get jobs meanwhile.
        self._ask_about(waiting, free)
        known = self._without_hopeless(known)
        workers = [
            Worker(name, one.kind, one.loaded, None if one.is_free else max(one.until, now), one.machine.vram)
            for name, one in self.workers.items()
        ]
        jobs = {job.id: job for job in known}
        for placement in place(list(map(self._waiting_job, known)), workers, now):
            worker = self.workers[placement.worker]
            if worker.is_free:
                self._start(jobs[placement.job], placement.worker, worker)

    def _start(self, job: Job, name: str, worker: WorkerState) -> None:
        now = self.clock()
        started = self.queue.start(job.id, name, now)
        if started is None:  # cancelled meanwhile
            return
        forecast = self._forecasts[job.costs_like, worker.kind]
        missing = forecast.models - worker.loaded
        worker.job, worker.attempt, worker.since = job.id, started.attempt, now
        worker.until = now + forecast.estimate.seconds + (forecast.estimate.loading if missing else 0.0)
        worker.loaded |= forecast.models
        self.events.add(job.id, {"event": "started", "worker": name, "attempt": started.attempt})
        self.pool.run(name, Task(job.id, started.attempt, self.queue.asked(job.id), forecast.models))

    def _ask_about(self, waiting: list[Job], free: dict[str, WorkerState]) -> None:
        """Have free workers say what waiting jobs need that nobody of their kind has spoken of."""
        pending = {(job.costs_like, kind) for job in waiting for kind in self._kinds} - self._forecasts.keys()
        for job in waiting:
            for name, worker in free.items():
                if worker.is_free and (job.costs_like, worker.kind) in pending:
                    pending.discard((job.costs_like, worker.kind))
                    worker.asked = job.costs_like
                    self.pool.forecast(name, job.costs_like, self.queue.asked(job.id))

    def _without_hopeless(self, jobs: list[Job]) -> list[Job]:
        """Return jobs but those that fit no machine that was ever here, which fail."""
        found = []
        for job in jobs:
            forecasts = {kind: self._forecasts.get((job.costs_like, kind)) for kind in self._kinds}
            # A kind that is not here now may come back, and is waited for where the job fits it.
            if all(one is not None and not one.estimate.fits for one in forecasts.values()):
                reasons = [f"{kind}: {one.reason}" for kind, one in sorted(forecasts.items()) if one is not None]
                only = next(iter(forecasts.values()))
                text = only.reason if len(reasons) == 1 and only is not None else " ".join(reasons)
                self.queue.refuse(job.id, text, self.clock())
            else:
                found.append(job)
        return found

    def _waiting_job(self, job: Job) -> WaitingJob:
        estimates: dict[str, Estimate] = {}
        models: frozenset[str] = frozenset()
        for kind in self._kinds:
            forecast = self._forecasts.get((job.costs_like, kind))
            if forecast is not None:
                estimates[kind] = forecast.estimate
                models |= forecast.models
        return WaitingJob(job.id, job.submitted, models, estimates)

    def _lose_forecast(self, costs_like: str, kind: str) -> None:
        """Take note that a worker was lost while it planned a job, which is not asked about for ever."""
        self._lost_forecasts[costs_like] += 1
        lost = self._lost_forecasts[costs_like]
        if lost > self.queue.retries:
            self._keep(costs_like, kind, unfit(f"{lost} workers were lost while they planned this job."))

    def _keep(self, costs_like: str, kind: str, forecast: Forecast) -> None:
        self._forecasts[costs_like, kind] = forecast
        while len(self._forecasts) > MOST_FORECASTS:
            del self._forecasts[next(iter(self._forecasts))]
