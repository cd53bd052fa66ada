"""Service: a queue with its workers, checks, events, audit and metrics, as the HTTP routes use it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import PiyingError
from .audit import AuditLog, log_to
from .dispatcher import Dispatcher
from .events import EventLog
from .intake import Intake
from .job import Asked, Job
from .journal import Journal
from .metrics import Metrics
from .pool import WorkerPool
from .queue import Queue
from .results import ResultStore, result_store
from .settings import Settings

log = logging.getLogger("piying.serve")

STEP = 0.1  # seconds between looks at the queue
FORGET_EVERY = 3600.0  # seconds


class Service:
    """A server without HTTP. Methods may be called from any thread.

    Args:
        settings: see `Settings`.
        pool: makes the workers.
        clock: returns seconds since 1970.

    Raises:
        PiyingError, WorkflowError: a folder is not there or cannot be used, or another server has the journal.
    """

    def __init__(
        self, settings: Settings, pool: Callable[[], WorkerPool], clock: Callable[[], float] = time.time
    ) -> None:
        self.settings, self._clock = settings, clock
        state = Path(settings.state)
        self._handler = log_to(state / "log.jsonl")
        self.results: ResultStore = result_store(settings.folders.results)
        self.events, self.metrics = EventLog(), Metrics()
        self._audit = AuditLog(state / "audit.jsonl")
        self.queue = Queue(
            Journal(state / "jobs.sqlite"),
            results=self.results.find,
            limits=settings.limits,
            retries=settings.retries,
            on_over=self._end,
        )
        # It checks and runs nothing: the machine with the journal may have no card.
        session = settings.folders.session(state, device="cpu")
        self.intake = Intake(session, tuple(Path(folder) for folder in settings.workflows), settings.servers)
        self.dispatcher = Dispatcher(self.queue, pool(), self.events, clock)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Take up the jobs of the last server, and begin to give them to workers."""
        for job in self.queue.recover(self._clock()):
            log.info("The job %s was running when the last server ended: it is %s now.", job.id, job.state)
        self._thread.start()

    def close(self) -> None:
        """End the workers; what they run is begun again by the next server."""
        # Jobs that run stay `running` in the journal, which is how the next server knows them.
        self._is_closing = True
        if self._thread.is_alive():
            self._thread.join()
        self.dispatcher.pool.close()
        self.queue.close()
        self.intake.session.close()
        logging.getLogger("piying").removeHandler(self._handler)
        self._handler.close()

    def submit(self, owner: str, asked: Sequence[tuple[str | None, Asked]], batch: str = "") -> list[Job]:
        """Take jobs, all or none.

        Args:
            owner: name of the token that they came with.
            asked: what each is asked to run, with the id that the client gave it.
            batch: name of what they belong to.

        Raises:
            RefusedError: one of them could not run.
            LimitReached, ConflictError: see `Queue.submit`.
        """
        # Before the limits: what is refused does not count.
        self.intake.check([one for _, one in asked])
        now = self._clock()
        jobs = [(Job.new(job_id or os.urandom(16).hex(), owner, one, now, batch=batch), one) for job_id, one in asked]
        found = self.queue.submit(jobs, now)
        for job in found:
            if job.attempt == 0 and not job.is_over:
                self.events.add(job.id, {"event": "queued", "job": job.id})
        self.metrics.submitted.inc(len(found))
        return found

    def find(self, owner: str, job_id: str) -> Job | None:
        """Return a job of an owner."""
        job = self.queue.find(job_id)
        return job if job is not None and job.owner == owner else None

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job that waits, or have its worker stop it."""
        return self.queue.cancel(job_id, self._clock())

    def read(self, job: Job, name: str) -> Iterator[bytes] | None:
        """Return the bytes of a file of a job's results; None where it has no such file."""
        if job.state != "done" or name not in {file["name"] for file in job.files}:
            return None
        return self.results.read(job.id, name)

    def health(self) -> Mapping[str, Any]:
        """Return how the server is, in a few numbers."""
        workers = list(self.dispatcher.workers.values())
        return {
            "status": "ok" if self.is_well else "stopped",
            "workers": len(workers),
            "busy": sum(worker.job is not None for worker in workers),
            **self.queue.counts(),
        }

    @property
    def is_well(self) -> bool:
        """Whether jobs are given to workers, or will be."""
        return self._thread.ident is None or self._thread.is_alive()

    def exposition(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return self.metrics.exposition(self.queue.counts(), self.dispatcher, self._clock())

    def _run(self) -> None:
        forgotten = self._clock()
        try:
            while not self._is_closing:
                self.dispatcher.step(STEP)
                if self._clock() - forgotten > FORGET_EVERY:
                    forgotten = self._clock()
                    for job_id in self.queue.forget(self.settings.keep):
                        self.results.delete(job_id)
        except BaseException:
            # The server is started anew, and this says why.
            log.exception("No jobs are given to workers any more.")
            raise

    def _end(self, job: Job) -> None:
        try:
            self._audit.add(job)
        except PiyingError as error:  # the job is done all the same; whoever reads the log can mend it
            log.error("%s", error)
        said = "" if job.problem is None else f": {job.problem['message']}"
        fields = {"job": job.id, "attempt": job.attempt, "owner": job.owner, "state": job.state}
        log.info("The job %s is %s%s", job.id, job.state, said, extra={"fields": fields})
        self.metrics.add(job)
        self.events.close(job)
