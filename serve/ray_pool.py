"""Ray: a worker for each card of each machine of a cluster, and the server's routes behind Ray Serve."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private.state import state as cluster_state  # what tells which machines stop; ray.nodes() does not
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..core.errors import short_text
from .job import Asked
from .job_runner import unfit
from .pool import Ended, Forecasted, Happened, Report, Task, WorkerLost, WorkerReady, crashed
from .server_process import ServerProcess
from .settings import Folders, Settings

log = logging.getLogger("piying.serve")

PACK = __name__.partition(".")[0]
ROOT = Path(__file__).resolve().parents[1]
HEAD = "node:__internal_head__"  # what Ray calls its first machine
LOOK_EVERY = 2.0  # seconds between looks at the machines of the cluster
START_AGAIN = 10.0  # seconds after a worker was lost or could not start
CONCURRENT = {"control": 4}
MOST_REQUESTS = 5000  # that a server answers at once, clients that follow a job included


def pack_loader(pack: str = PACK, root: str = str(ROOT)) -> Callable[[str], Any]:
    """Return a function for other processes that loads the pack there and returns a module of it.

    The pack is found by path and on no `sys.path`, so that nothing of it can be imported there before. This function
    is local, and uses nothing of this module: so it travels as code.
    """

    def load(name: str) -> Any:
        import importlib
        import importlib.util
        import sys

        if pack not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                pack, f"{root}/__init__.py", submodule_search_locations=[root]
            )
            if spec is None or spec.loader is None:
                raise ImportError(f"{root} has no pack")
            sys.modules[pack] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[pack])
        return importlib.import_module(f"{pack}.serve.{name}")

    return load


def _actor_class() -> Any:
    """Return the class of the actors, which load the pack before they see anything of it."""
    load = pack_loader()

    class PiyingWorker:
        def __init__(self, folders: dict[str, Any], options: dict[str, Any]) -> None:
            made = load("settings").Folders(**folders)
            self._worker = load("remote_worker").RemoteWorker(made, options)

        def call(self, method: str, *arguments: Any) -> Any:
            return getattr(self._worker, method)(*arguments)

        @ray.method(concurrency_group="control")
        def control(self, method: str, *arguments: Any) -> Any:
            return getattr(self._worker, method)(*arguments)

    return ray.remote(concurrency_groups=CONCURRENT)(PiyingWorker)


@dataclass
class _Actor:
    """A worker's actor, and the job that it runs."""

    handle: Any
    node: str
    slot: int
    job_id: str = ""
    events: Any = None


@dataclass
class RayPool:
    """Workers on all machines of the cluster that this process belongs to.

    Attributes:
        folders: those of the server, under the same names on each machine.
        options: device and limits of each worker, see `JobRunner`.
    """

    folders: Folders
    options: dict[str, Any] = field(default_factory=dict)
    _actors: dict[str, _Actor] = field(default_factory=dict)
    _waiting: dict[Any, Callable[[Any], Sequence[Report]]] = field(default_factory=dict)
    _of: dict[Any, str] = field(default_factory=dict)
    _class: Any = field(default_factory=_actor_class)
    _looked: float = 0.0
    _stopping: frozenset[str] = frozenset()
    _not_before: dict[tuple[str, int], float] = field(default_factory=dict)
    _started: int = 0

    def run(self, worker: str, task: Task) -> None:
        """Begin an attempt."""
        actor = self._actors[worker]
        actor.job_id = task.job_id
        arguments = (task.job_id, task.attempt, task.asked, task.models)
        ended = actor.handle.call.remote("run", *arguments)

        def done(ref: Any) -> Sequence[Report]:
            try:
                outcome = ray.get(ref)
            except RayTaskError as error:
                outcome = crashed(short_text(error))
            late = self._late_events(worker, actor)
            return [*late, Ended(worker, task.job_id, task.attempt, outcome)]

        self._wait_for(worker, ended, done)
        self._ask_for_events(worker, actor)

    def forecast(self, worker: str, costs_like: str, asked: Asked) -> None:
        """Ask a worker what a job would need."""

        def done(ref: Any) -> Sequence[Report]:
            try:
                return [Forecasted(worker, costs_like, ray.get(ref))]
            except RayTaskError as error:
                return [Forecasted(worker, costs_like, unfit(short_text(error)))]

        self._wait_for(worker, self._actors[worker].handle.call.remote("forecast", asked), done)

    def cancel(self, worker: str, job_id: str) -> None:
        """Have a worker stop its job."""
        self._actors[worker].handle.control.remote("cancel", job_id)

    def kill(self, worker: str) -> None:
        """End a worker; that it is gone is then reported."""
        ray.kill(self._actors[worker].handle)

    def poll(self, seconds: float) -> Sequence[Report]:
        """Start workers on machines that are new, wait for reports, and return them."""
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            self._stopping = frozenset(cluster_state.get_draining_nodes())
            self._start_missing()
        if not self._waiting:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        found: list[Report] = []
        for ref in ready:
            handler, worker = self._waiting.pop(ref, None), self._of.pop(ref, "")
            if handler is None:  # of a worker that was lost meanwhile
                continue
            try:
                found += handler(ref)
            except RayError as error:
                found += self._lose(worker, short_text(error))
        return found + self._leave_stopping()

    def close(self) -> None:
        """End all workers."""
        for actor in self._actors.values():
            ray.kill(actor.handle)

    def _wait_for(self, worker: str, ref: Any, handler: Callable[[Any], Sequence[Report]]) -> None:
        self._waiting[ref], self._of[ref] = handler, worker

    def _ask_for_events(self, worker: str, actor: _Actor) -> None:
        ref = actor.handle.control.remote("events", actor.job_id)
        actor.events = ref

        def done(ref: Any) -> Sequence[Report]:
            job_id, events = actor.job_id, ray.get(ref)
            self._ask_for_events(worker, actor)
            return [Happened(worker, job_id, event) for event in events]

        self._wait_for(worker, ref, done)

    def _late_events(self, worker: str, actor: _Actor) -> list[Report]:
        """Return the events of a job that has ended that were not fetched yet."""
        found: list[Report] = []
        last = actor.handle.control.remote("events", actor.job_id)
        for ref in (actor.events, last):
            self._waiting.pop(ref, None)
            self._of.pop(ref, None)
            try:
                found += [Happened(worker, actor.job_id, event) for event in ray.get(ref, timeout=5)]
            except GetTimeoutError:
                log.warning("%s: the last events of the job %s did not come.", worker, actor.job_id)
        actor.job_id, actor.events = "", None
        return found

    def _leave_stopping(self) -> list[Report]:
        """End the workers without a call on machines that were told to stop.

        Ray lets such a machine go on until its workers are gone, for half a minute at most: time to end a job, but one
        that begins now would be lost.
        """
        if not self._stopping:
            return []
        calls = Counter(self._of.values())  # "alive" is one
        idle = [name for name, one in self._actors.items() if one.node in self._stopping and calls[name] == 1]
        return [report for name in idle for report in self._lose(name, "Its machine stops.")]

    def _lose(self, worker: str, reason: str) -> list[Report]:
        actor = self._actors.pop(worker, None)
        if actor is None:
            return []
        # One that cannot be reached may still run: what it does from here on is not wanted.
        ray.kill(actor.handle)
        for ref in [ref for ref, name in self._of.items() if name == worker]:
            del self._of[ref], self._waiting[ref]
        self._not_before[actor.node, actor.slot] = time.monotonic() + (0.0 if actor.job_id else START_AGAIN)
        return [WorkerLost(worker, reason)]

    def _start_missing(self) -> None:
        taken = {(actor.node, actor.slot) for actor in self._actors.values()}
        for node in ray.nodes():
            if not node["Alive"] or node["NodeID"] in self._stopping:
                continue
            cards, cores = int(node["Resources"].get("GPU", 0)), node["Resources"].get("CPU", 0.0)
            for slot in range(max(1, cards)):
                place = (node["NodeID"], slot)
                if place in taken or self._not_before.get(place, 0.0) > time.monotonic() or cores < 1:
                    continue
                self._start(node, slot, cards, cores)

    def _start(self, node: dict[str, Any], slot: int, cards: int, cores: float) -> None:
        self._started += 1
        # With a number: one that takes the place of a lost worker is another one.
        name = f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}-{self._started}"
        handle = self._class.options(
            num_cpus=max(1, int(cores) // max(1, cards)),
            num_gpus=1 if cards else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            max_restarts=0,
        ).remote(vars(self.folders), self.options)
        self._actors[name] = _Actor(handle, node["NodeID"], slot)
        self._wait_for(name, handle.call.remote("machine"), lambda ref: [WorkerReady(name, ray.get(ref))])
        # Becomes ready only when the process is gone, and then raises.
        self._wait_for(name, handle.control.remote("alive"), lambda ref: ray.get(ref) or [])


def deployment(settings: Settings, options: dict[str, Any], server: ServerProcess) -> Any:
    """Return the Serve application of a server.

    Args:
        settings: see `Settings`.
        options: of the workers.
        server: the process that it belongs to.
    """
    load, values, process = pack_loader(), settings.to_json(), vars(server)

    def build() -> Any:
        return load("ray_pool").application(values, options)

    class PiyingQueue:
        def check_health(self) -> None:
            # Serve then starts it anew, and the journal has all jobs.
            if not self.app.state.service.is_well:  # type: ignore[attr-defined]
                raise RuntimeError("no jobs are given to workers any more")

        def server(self) -> dict[str, Any]:
            return process

    made = serve.ingress(build)(PiyingQueue)
    return serve.deployment(
        num_replicas=1,  # it has the journal
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
    )(made).bind()


def application(values: str, options: dict[str, Any]) -> Any:
    """Return the routes of a server whose workers are Ray's; jobs are given to them from its start on."""
    from .app import build_app
    from .service import Service

    settings = Settings.from_json(values)
    service = Service(settings, lambda: RayPool(settings.folders, options))
    return build_app(service)
