"""Metrics: jobs, phases, memory and workers, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .dispatcher import Dispatcher
from .job import Job

SECONDS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800)
GIGABYTES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 80, 141)


class Metrics:
    """What a server has done since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.submitted = Counter("piying_jobs_submitted", "Jobs that were taken", **own)
        self._over = Counter("piying_jobs_over", "Jobs that are over, by how they ended", ["state"], **own)
        self._jobs = Gauge("piying_jobs", "Jobs that wait, and that run", ["state"], **own)
        self._waited = Histogram(
            "piying_job_wait_seconds", "From submission to the last attempt", buckets=SECONDS, **own
        )
        self._ran = Histogram("piying_job_run_seconds", "Of the last attempt", buckets=SECONDS, **own)
        self._phases = Histogram("piying_phase_seconds", "Of phases of samplers", ["phase"], buckets=SECONDS, **own)
        self._peak = Histogram("piying_peak_vram_gb", "Peak of the card, measured", buckets=GIGABYTES, **own)
        self._predicted = Histogram("piying_predicted_vram_gb", "Peak of the card, planned", buckets=GIGABYTES, **own)
        self._error = Histogram(
            "piying_seconds_over_prediction",
            "Seconds of samplers over the plan's",
            buckets=(0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0),
            **own,
        )
        self._retries = Counter("piying_out_of_memory_retries", "Times that a run went on with a cheaper plan", **own)
        self._requests = Counter("piying_model_requests", "Times that a run needed a model", **own)
        self._loads = Counter("piying_model_loads", "Times that it had to be read", **own)
        self._lost = Gauge("piying_workers_lost", "Workers that were lost", **own)
        self._workers = Gauge("piying_workers", "Workers, by what they do", ["state"], **own)
        self._busy = Gauge("piying_worker_busy_seconds", "Seconds that a worker has run jobs for", ["worker"], **own)

    def add(self, job: Job) -> None:
        """Count a job that is over."""
        self._over.labels(job.state).inc()
        if job.started is None or job.ended is None:
            return
        self._waited.observe(job.started - job.submitted)
        self._ran.observe(job.ended - job.started)
        measured = job.measured
        if not measured:
            return
        for phase, seconds in measured["phases"].items():
            self._phases.labels(phase).observe(seconds)
        # Nodes without a plan, such as those that load a picture, predict nothing.
        if measured["predicted_seconds"]:
            self._peak.observe(measured["peak_vram_gb"])
            self._predicted.observe(measured["predicted_vram_gb"])
            self._error.observe(sum(measured["phases"].values()) / measured["predicted_seconds"])
        self._retries.inc(measured["retries"])
        self._requests.inc(measured["model_requests"])
        self._loads.inc(measured["model_loads"])

    def exposition(self, counts: Mapping[str, int], dispatcher: Dispatcher, now: float) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            counts: jobs that wait and that run.
            dispatcher: has the workers.
            now: seconds since 1970.
        """
        for state, count in counts.items():
            self._jobs.labels(state).set(count)
        workers = dict(dispatcher.workers)
        busy = sum(worker.job is not None for worker in workers.values())
        self._workers.labels("busy").set(busy)
        self._workers.labels("idle").set(len(workers) - busy)
        self._lost.set(dispatcher.lost_workers)
        # Workers come and go, and a label that is not removed stays for ever.
        self._busy.clear()
        for name, worker in workers.items():
            running = now - worker.since if worker.job is not None else 0.0
            self._busy.labels(name).set(worker.busy_seconds + running)
        text: bytes = generate_latest(self.registry)
        return text
