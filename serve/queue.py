"""Queue: which jobs wait, run and are over, by rules that need neither threads nor a network, kept in a journal."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from .job import STOPPED, Asked, Job, Outcome, ResultFile, problem
from .journal import Journal, Selection
from .limits import Limits, Submissions

MOST_ATTEMPTS = 20  # of a job that servers are killed with, again and again
KEPT_JOBS = 100_000  # that are over


class ConflictError(Exception):
    """A job of that id is there, and was asked to do something else."""


class Queue:
    """The jobs of a server. Methods may be called from any thread; `now` is in seconds since 1970.

    Args:
        journal: where they are kept.
        results: returns the results of a job, None where there are none.
        limits: of each token.
        retries: how many workers a job may lose and be given to another.
        on_over: called with each job that is over: once, unless the server is killed in the middle of it.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        results: Callable[[str], tuple[ResultFile, ...] | None],
        limits: Limits | None = None,
        retries: int = 1,
        on_over: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._journal, self._results, self._on_over = journal, results, on_over
        self.limits, self.retries = limits or Limits(), retries
        self._submissions = Submissions(self.limits)
        self._lock = threading.RLock()
        # In the order of their submission.
        self._active = {job.id: job for job in journal.active()}

    def recover(self, now: float) -> list[Job]:
        """Take up the jobs that ran when the last server ended, and return them.

        Those whose results are there are done, and others wait again.
        """
        with self._lock:
            for job in self._journal.unaudited():
                self._end(job)
            found = [job for job in self._active.values() if job.state == "running"]
            return [self._without_worker(job, now, lost=False) for job in found]

    def submit(self, asked: Sequence[tuple[Job, Asked]], now: float) -> list[Job]:
        """Add new jobs of one owner, all or none. A job that is there already, and the same, is left as it is.

        Raises:
            LimitReached: they are more than the owner may have.
            ConflictError: a job of the same id is another one.
        """
        with self._lock:
            known = {job.id: self.find(job.id) for job, _ in asked}
            for job, _ in asked:
                there = known[job.id]
                if there is not None and (there.checksum, there.owner) != (job.checksum, job.owner):
                    raise ConflictError(f"The job {job.id} is there, and is another one. Give a new id.")
            new = [(job, one) for job, one in asked if known[job.id] is None]
            # A client that did not get the answer sends the request again: that counts against no limit.
            if new:
                owner = new[0][0].owner
                queued = sum(job.owner == owner and job.state == "queued" for job in self._active.values())
                self._submissions.add(owner, len(new), queued, now)
                self._journal.add(new)
                self._active |= {job.id: job for job, _ in new}
            return [known[job.id] or job for job, _ in asked]

    def waiting(self) -> list[Job]:
        """Return the jobs that may start now, in the order of their submission: no owner runs more than it may."""
        with self._lock:
            free = Counter({job.owner: self.limits.running for job in self._active.values()})
            free.subtract(job.owner for job in self._active.values() if job.state == "running")
            found = []
            for job in self._active.values():
                if job.state == "queued" and free[job.owner] > 0:
                    free[job.owner] -= 1
                    found.append(job)
            return found

    def start(self, job_id: str, worker: str, now: float) -> Job | None:
        """Give a job to a worker, and return it; None where it does not wait any more."""
        with self._lock:
            job = self._active.get(job_id)
            if job is None or job.state != "queued":
                return None
            return self._save(job.begun(worker, now))

    def finish(self, job_id: str, attempt: int, outcome: Outcome, now: float) -> Job | None:
        """Take the outcome of an attempt, and return the job; None where another attempt has taken its place."""
        with self._lock:
            job = self._running(job_id, attempt)
            return None if job is None else self._save(job.over(outcome, now))

    def lose_worker(self, job_id: str, attempt: int, now: float) -> Job | None:
        """Take note that the worker of an attempt is gone, and return the job, which is over or waits again."""
        with self._lock:
            job = self._running(job_id, attempt)
            return None if job is None else self._without_worker(job, now, lost=True)

    def refuse(self, job_id: str, message: str, now: float) -> Job | None:
        """End a waiting job that no worker can run."""
        with self._lock:
            job = self._active.get(job_id)
            if job is None or job.state != "queued":
                return None
            return self._save(job.over(Outcome("failed", problem(message)), now))

    def cancel(self, job_id: str, now: float) -> Job | None:
        """Cancel a job that waits, or mark one that runs for its worker to stop; return it."""
        with self._lock:
            job = self._active.get(job_id)
            if job is None:
                return self.find(job_id)
            if job.state == "queued":
                return self._save(job.over(STOPPED, now))
            return self._save(replace(job, is_cancelling=True))

    def asked(self, job_id: str) -> Asked:
        """Return what a job was asked to run."""
        with self._lock:
            return self._journal.asked(job_id)

    def find(self, job_id: str) -> Job | None:
        """Return a job."""
        with self._lock:
            return self._active.get(job_id) or self._journal.find(job_id)

    def running(self) -> list[Job]:
        """Return the jobs that run."""
        with self._lock:
            return [job for job in self._active.values() if job.state == "running"]

    def counts(self) -> dict[str, int]:
        """Return the number of jobs that wait and that run."""
        with self._lock:
            found = Counter(job.state for job in self._active.values())
            return {"queued": found["queued"], "running": found["running"]}

    def listed(self, selection: Selection) -> list[Job]:
        """Return jobs, the last submitted first."""
        with self._lock:
            return self._journal.listed(selection)

    def forget(self, keep: int = KEPT_JOBS) -> list[str]:
        """Forget the oldest jobs that are over beyond `keep` of them, and return their ids."""
        with self._lock:
            return self._journal.forget(keep)

    def close(self) -> None:
        """Let another server have the journal."""
        with self._lock:
            self._journal.close()

    def _running(self, job_id: str, attempt: int) -> Job | None:
        job = self._active.get(job_id)
        return job if job is not None and job.state == "running" and job.attempt == attempt else None

    def _without_worker(self, job: Job, now: float, *, lost: bool) -> Job:
        """Go on with a job whose worker is gone: it may have been done, and nobody was told."""
        files = self._results(job.id)
        # Results outrank everything: a job that was done is never done again.
        if files is not None:
            return self._save(job.over(Outcome("done", files=files), now))
        if job.is_cancelling:
            return self._save(job.over(STOPPED, now))
        job = job.waiting_again(lost=lost)
        if job.lost > self.retries:
            text = f"{job.lost} workers were lost while they ran this job, the last with attempt {job.attempt}"
            advice = "it may need more memory than it says. Try it by itself with python -m runner"
            return self._save(job.over(Outcome("failed", problem(f"{text}: {advice}.")), now))
        if job.attempt >= MOST_ATTEMPTS:
            text = f"it was begun {job.attempt} times and never ended. Try it by itself with python -m runner."
            return self._save(job.over(Outcome("failed", problem(text)), now))
        return self._save(job)

    def _save(self, job: Job) -> Job:
        self._journal.save([job])
        if job.is_over:
            self._active.pop(job.id, None)
            self._end(job)
        else:
            self._active[job.id] = job
        return job

    def _end(self, job: Job) -> None:
        self._on_over(job)
        # Afterwards: a server that is killed in between tells it twice rather than never.
        self._journal.mark_audited(job.id)
