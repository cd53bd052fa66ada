"""Display of a job: what a server tells of its nodes, shown as a run of this process is."""

from __future__ import annotations

from typing import Any

from ...core.errors import clipped
from ...core.host.base import Progress, TimedProgress
from ..display import Display
from ..graph import Graph, Node
from .answers import listed, table
from .event_stream import ServerEvent

STEPS = "Steps"  # the phase of nodes that only count
LARGEST_COUNT = 1 << 31


class JobDisplay:
    """Shows the events of one job.

    Args:
        display: where.
        graph: the nodes that were sent.
        job: the job's id on the server; other jobs of it are left out.
    """

    def __init__(self, display: Display, graph: Graph, job: str) -> None:
        self._display, self._graph, self._job = display, graph, job
        self._running: Node | None = None
        self._finished: set[str] = set()
        self._cached: dict[str, None] = {}  # in the order they were told
        self._phase: tuple[str, str, int] | None = None  # node, name, total
        self._progress: Progress | None = None
        self._done = -1
        self._has_phases: set[str] = set()  # nodes that name their phases themselves

    def show(self, event: ServerEvent) -> None:
        """Show an event."""
        data = event.data
        # Piying's own events and texts come without the job's id, and only while it runs.
        if data.get("prompt_id", self._job) != self._job:
            return
        if event.kind == "executing":
            self._begin(data.get("node"), data.get("display_node"))
        elif event.kind == "execution_cached":
            self._cached |= {str(node): None for node in listed(data.get("nodes"))}
        elif event.kind == "executed":
            self._end(data.get("node"), data.get("display_node"), data.get("output"))
        elif event.kind == "progress":
            self._step(data.get("node"), STEPS, data.get("value"), data.get("max"))
        elif event.kind == "progress_state":
            self._show_states(data.get("nodes"))
        elif event.kind == "piying.progress":
            self._show_phase(data)
        elif event.kind == "progress_text" and self._progress is not None and isinstance(data.get("text"), str):
            self._progress.text(data["text"])

    def end(self, outputs: dict[str, Any]) -> None:
        """Show the results that no event told of, once the job is over."""
        for node_id, output in outputs.items():
            self._end(node_id, node_id, output)
        self._finish_running()
        for node_id in self._cached:
            if node_id in self._graph:
                self._finish(self._graph[node_id], {})

    def _node(self, node_id: Any, shown_on: Any) -> Node | None:
        """Return a node of the graph; one that another expanded into stands under the one that shows it."""
        known = [self._graph[each] for each in (node_id, shown_on) if isinstance(each, str) and each in self._graph]
        return known[0] if known else None

    def _begin(self, node_id: Any, shown_on: Any) -> None:
        node = self._node(node_id, shown_on)
        if node is None or (self._running is not None and node.id == self._running.id):
            return
        self._finish_running()
        self._running, self._phase, self._progress = node, None, None
        self._display.node_started(node)

    def _finish_running(self) -> None:
        if self._running is not None:
            self._finish(self._running, {})
            self._running = None

    def _end(self, node_id: Any, shown_on: Any, output: Any) -> None:
        node = self._node(node_id, shown_on)
        if node is None:
            return
        if self._running is not None and self._running.id == node.id:
            self._running = None
        self._finish(node, output)

    def _finish(self, node: Node, output: Any) -> None:
        if node.id in self._finished:
            return
        self._finished.add(node.id)
        ui, texts = {key: value for key, value in table(output).items() if key != "text"}, table(output).get("text")
        if texts:
            ui["text"] = [str(text) for text in (texts if isinstance(texts, list) else [texts])]
        self._display.node_finished(node, ui, node.id in self._cached)

    def _show_states(self, states: Any) -> None:
        for node_id, state in table(states).items():
            if table(state).get("state") == "running":
                self._begin(node_id, state.get("display_node_id"))
                # Every node that runs has 1 to reach, whether it counts or not.
                if state.get("max") != 1:
                    self._step(node_id, STEPS, state.get("value"), state.get("max"))

    def _show_phase(self, data: dict[str, Any]) -> None:
        node_id, phase, seconds = data.get("node"), data.get("phase"), data.get("seconds_left")
        if not isinstance(node_id, str) or not isinstance(phase, str):
            return
        self._has_phases.add(node_id)
        self._step(node_id, phase, data.get("done"), data.get("total"))
        is_known = isinstance(seconds, int | float) and 0 <= seconds < LARGEST_COUNT
        if data.get("done") == 0 and is_known and isinstance(self._progress, TimedProgress):
            self._progress.expect(float(seconds))

    def _step(self, node_id: Any, phase: str, done: Any, total: Any) -> None:
        """Show a step of a phase; a count that makes no sense is left out."""
        counts = [each for each in (done, total) if isinstance(each, int | float) and 0 <= each < LARGEST_COUNT]
        if not isinstance(node_id, str) or len(counts) < 2 or not 1 <= int(counts[1]) >= int(counts[0]):
            return
        if phase == STEPS and node_id in self._has_phases:
            return
        step, steps = map(int, counts)
        if self._phase != (node_id, phase, steps) or step < self._done:
            self._begin(node_id, node_id)
            self._phase, self._done = (node_id, phase, steps), -1
            self._progress = self._display.progress(clipped(" ".join(phase.split())), steps)
        if self._progress is not None and step > self._done and step:
            self._progress.step(step)
        self._done = step
