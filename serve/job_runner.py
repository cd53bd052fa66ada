"""Job runner: runs jobs one after the other in one process, whose session keeps models loaded between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..core.errors import PiyingError
from ..core.executor.model_cache import uses
from ..core.executor.retry import retries
from ..core.process import CANCELLED, FAILED, WRONG
from ..runner.display import EventDisplay, LogToDisplay, error_text
from ..runner.errors import InvalidGraph, NodeFailed, WorkflowError
from ..runner.graph import Node
from ..runner.plan import as_json
from .job import Asked, Outcome, problem, problems_of
from .placement import Estimate
from .results import ResultStore, result_store
from .settings import Folders

log = logging.getLogger("piying")

GB = 2**30
NO_LIMIT = Estimate(fits=True, seconds=0.0, loading=0.0, vram=0, ram=0)
Emit = Callable[[dict[str, Any]], None]


class Measured(TypedDict):
    """How a run went.

    Attributes:
        seconds: of the whole attempt.
        phases: seconds of each phase of its samplers, those of several together.
        predicted_seconds, predicted_vram_gb, peak_vram_gb: of its samplers, sums and the largest peak.
        nodes: how many nodes ran.
        model_requests, model_loads: how often a model was needed, and had to be read for it.
        retries: how often it ran out of memory and went on.
    """

    seconds: float
    phases: dict[str, float]
    predicted_seconds: float
    predicted_vram_gb: float
    peak_vram_gb: float
    nodes: int
    model_requests: int
    model_loads: int
    retries: int


@dataclass(frozen=True)
class Machine:
    """What a job runs on.

    Attributes:
        kind: tells it from machines with other estimates.
        vram: bytes of the card; 0 without one.
    """

    kind: str
    vram: int = 0


@dataclass(frozen=True)
class Forecast:
    """What a job would need on the machine that was asked.

    Attributes:
        models: names of the models that it loads.
        reason: why it does not fit, where it does not.
    """

    estimate: Estimate
    models: frozenset[str] = frozenset()
    reason: str = ""


def unfit(reason: str) -> Forecast:
    """Return the forecast of a job that cannot run."""
    return Forecast(Estimate(fits=False, seconds=0.0, loading=0.0, vram=0, ram=0), reason=reason)


class _RecordingDisplay(EventDisplay):
    """Emits the events of a run, and keeps the records that its samplers show of themselves."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(emit)
        self.records: list[Mapping[str, Any]] = []
        self.nodes = 0

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """Keep the records of a node."""
        self.nodes += 1
        self.records += [record for record in ui.get("piying", ()) if isinstance(record, Mapping)]
        super().node_finished(node, ui, cached)


class JobRunner:
    """Runs jobs in this process, one at a time. `cancel` may be called from another thread.

    Args:
        folders: see `Folders`.
        device: `auto`, or a torch device.
        vram, ram: bytes to use, or None for all.

    Raises:
        WorkflowError, PiyingError: a folder is not there, or the device cannot be used.
    """

    def __init__(
        self, folders: Folders, *, device: str = "auto", vram: int | None = None, ram: int | None = None
    ) -> None:
        self._cancelled: str | None = None
        self._running: str | None = None
        self._lock = threading.Lock()
        self._store: ResultStore = result_store(folders.results)
        self._session = folders.session(
            Path("output"), device=device, vram=vram, ram=ram, check_cancelled=self._check_cancelled
        )
        # Of each class of samplers the last model: the next one takes its place in memory.
        self._loaded: dict[str, str] = {}

    def close(self) -> None:
        """Release models and temporary files."""
        self._session.close()

    def machine(self) -> Machine:
        """Return what this machine is."""
        import psutil

        device = self._session.device()
        gigabytes = round(psutil.virtual_memory().total / GB)
        if device == "cpu":
            return Machine(f"CPU, {psutil.cpu_count()} threads, {gigabytes} GB")
        import torch

        card = torch.get_device_module(device)
        total = int(card.get_device_properties(device).total_memory)
        return Machine(f"{card.get_device_name(device)}, {round(total / GB)} GB, {gigabytes} GB", total)

    def forecast(self, asked: Asked) -> Forecast:
        """Return what a job would need here, with models loaded as in a new process."""
        try:
            with self._session.one_pass():
                info = self._session.definitions()
                workflow = self._session.prepare(
                    asked.workflow, set=asked.set, prompt=asked.prompt, seed=asked.seed, info=info
                )
                graph, roots, _ = self._session.check(workflow, asked.partial, info)
                try:
                    plans = as_json(self._session.plan(graph, roots))
                except WorkflowError:  # no node can tell: it has no model
                    return Forecast(NO_LIMIT)
        except (WorkflowError, PiyingError) as error:
            return unfit(str(error))
        loading = sum(part.get("loading_seconds", 0.0) for part in plans["components"])
        estimate = Estimate(
            fits=plans["fits"],
            seconds=max(0.0, plans["seconds"] - loading),
            loading=loading,
            vram=int(plans["peak_vram_gb"] * GB),
            ram=int(plans["peak_ram_gb"] * GB),
        )
        models = frozenset(f"{node['class_type']}: {node['model']}" for node in plans["nodes"] if "model" in node)
        return Forecast(estimate, models, "" if plans["fits"] else " ".join(plans["reasons"]))

    def run(self, job_id: str, attempt: int, asked: Asked, *, models: frozenset[str], emit: Emit) -> Outcome:
        """Run a job, and return how it ended; its files are in the results when this returns.

        Args:
            models: those that it loads, by its forecast.
            emit: called with the events that `--json` prints, but for those of its end, which are the server's.
        """
        display = _RecordingDisplay(emit)
        begun, counts = time.monotonic(), (uses.requests, uses.loads, retries.out_of_memory)
        # Counters of the process, which runs one job at a time: what they grow by is this job's.
        with self._current(job_id, display):
            outcome = self._outcome(job_id, attempt, asked, display)
        seconds = time.monotonic() - begun
        for name in sorted(models):
            class_type, _, model = name.partition(": ")
            self._loaded[class_type] = model
        loaded = frozenset(f"{class_type}: {name}" for class_type, name in self._loaded.items())
        records, phases = display.records, dict[str, float]()
        for record in records:
            for phase, took in dict(record.get("seconds") or {}).items():
                phases[phase] = round(phases.get(phase, 0.0) + took, 3)
        measured: Measured = {
            "seconds": round(seconds, 3),
            "phases": phases,
            "predicted_seconds": sum(record.get("predicted_seconds", 0.0) for record in records),
            "predicted_vram_gb": max((record.get("predicted_vram_gb", 0.0) for record in records), default=0.0),
            "peak_vram_gb": max((record.get("peak_vram_gb", 0.0) for record in records), default=0.0),
            "nodes": display.nodes,
            "model_requests": uses.requests - counts[0],
            "model_loads": uses.loads - counts[1],
            "retries": retries.out_of_memory - counts[2],
        }
        return Outcome(outcome.state, outcome.problem, outcome.files, measured, loaded)

    def cancel(self, job_id: str) -> None:
        """Stop a job where it is, if it runs."""
        with self._lock:
            if self._running == job_id:
                self._cancelled = job_id

    def _outcome(self, job_id: str, attempt: int, asked: Asked, display: EventDisplay) -> Outcome:
        folder: Path | None = None
        try:
            folder = self._store.attempt_folder(job_id, attempt)
            self._session.change_output(folder)
            self._check_cancelled()
            finished = self._session.run(
                asked.workflow, set=asked.set, prompt=asked.prompt, seed=asked.seed, partial=asked.partial
            )
            for error in finished.errors:
                display.message(f"left out: {error}", "WARNING")
            return Outcome("done", files=self._store.publish(job_id, folder))
        except KeyboardInterrupt as error:
            return Outcome("cancelled", problem(error_text(error, ""), exit_code=CANCELLED))
        except InvalidGraph as error:
            return Outcome("failed", problems_of(error)[0])
        except (WorkflowError, PiyingError) as error:
            return Outcome("failed", problem(str(error), exit_code=WRONG))
        except NodeFailed as error:
            log.debug("%s failed", error.node, exc_info=error)
            text = error_text(error, "The worker's log has the traceback with --verbose.")
            return Outcome("failed", problem(text, node=error.node_id, exit_code=FAILED))
        finally:
            if folder is not None:
                # Where the results are there, the folder is not: it was renamed, or copied and deleted.
                self._store.discard(folder)

    def _check_cancelled(self) -> None:
        if self._cancelled is not None and self._cancelled == self._running:
            raise KeyboardInterrupt

    @contextmanager
    def _current(self, job_id: str, display: EventDisplay) -> Iterator[None]:
        """Show what happens inside on a display, and let the job be cancelled."""
        handler = LogToDisplay(display)
        with self._lock:
            self._running = job_id
        self._session.display = display
        logger = logging.getLogger("piying")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            with self._lock:
                self._running = self._cancelled = None
