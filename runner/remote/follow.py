"""Following a job on a server until it is over: by events where they come, and by asking where they do not."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import PiyingError
from ..display import Display
from ..errors import InvalidGraph, JobFailed, NodeError, NodeFailed, ServerNodeError, WorkflowError
from . import timeouts
from .answers import JobRefused, JobState
from .event_stream import EventStream, has_websockets
from .job import ServerJob
from .job_display import JobDisplay
from .server import ComfyServer, ServerError

MOST_EVENTS = 100  # shown before a cancel is looked for
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class ServerLost(Exception):
    """A server went away before a job was finished; the text says how, and another one may take the job."""


@dataclass
class SentJob:
    """A job that a server has taken.

    Attributes:
        server, job: which, and its id there.
        left_out: what the server has against outputs that it does not run.
    """

    server: ComfyServer
    made: ServerJob
    job: str
    stream: EventStream | None
    display: Display
    left_out: list[NodeError] = field(default_factory=list)
    _silent_since: float | None = None
    _had_outage: bool = False
    _before: int = 0

    def outputs(self, check_cancelled: Callable[[], None]) -> dict[str, Any]:
        """Follow the job to its end, and return what its nodes showed, {node id: {key: entries}}.

        Raises:
            ServerLost: the server is gone, or was started again.
            NodeFailed: a node raised there.
            JobFailed: the job was stopped or removed there.
        """
        shown = JobDisplay(self.display, self.made.graph, self.job)
        asked, questions, absent, has_ended = time.monotonic(), 0, 0, False
        while True:
            check_cancelled()
            if self._show_events(shown) and not has_ended:
                has_ended, asked, questions = True, 0.0, 0
            now = time.monotonic()
            between = timeouts.BETWEEN_QUESTIONS[min(questions, len(timeouts.BETWEEN_QUESTIONS) - 1)]
            has_events = self.stream is not None and self.stream.is_connected
            if has_events and not (has_ended or absent or self._silent_since):
                between = timeouts.WITH_EVENTS
            if now - asked < between:
                continue
            asked, questions = now, questions + 1
            state = self._state()
            absent = absent + 1 if state.state == "absent" else 0
            if state.state == "pending":
                self._tell_place()
            elif state.state == "absent" and absent >= timeouts.GONE_AFTER:
                self._raise_gone()
            elif state.state in ("done", "failed", "stopped"):
                self._show_events(shown)
                shown.end(state.outputs if state.state == "done" else {})
                return self._result(state)

    def _show_events(self, shown: JobDisplay) -> bool:
        """Show what has come, and return whether it was the end."""
        if self.stream is None:
            time.sleep(timeouts.POLL)
            return False
        event = self.stream.next(timeouts.POLL)
        for _ in range(MOST_EVENTS):
            if event is None:
                break
            self._silent_since = None
            is_end = event.kind in ENDS or (event.kind == "executing" and event.data.get("node") is None)
            if is_end and event.data.get("prompt_id") == self.job:
                return True
            shown.show(event)
            event = self.stream.next(0)
        return False

    def _state(self) -> JobState:
        """Return the state of the job; unknown ones count as running, until the server has been silent too long."""
        try:
            state = self.server.state(self.job)
        except ServerError as error:
            now = time.monotonic()
            self._had_outage, self._silent_since = True, self._silent_since or now
            silence = now - self._silent_since
            if silence >= (timeouts.REFUSED_AFTER if error.is_refused else timeouts.LOST_AFTER):
                raise ServerLost(f"{error} The job was not finished there.") from error
            return JobState("running")
        self._silent_since = None
        return state

    def _tell_place(self) -> None:
        with contextlib.suppress(ServerError):
            before = self.server.before(self.job)
            if before and before != self._before:
                self.display.message(
                    f"{self.server}: {before} {'job is' if before == 1 else 'jobs are'} before this one.", "INFO"
                )
            self._before = before

    def _raise_gone(self) -> None:
        if self._had_outage or (self.stream is not None and self.stream.drops):
            raise ServerLost(f"{self.server}: was started again, and no longer knows the job.")
        raise JobFailed(f"{self.server}: the job is gone. Somebody removed it from the queue there.")

    def _result(self, state: JobState) -> dict[str, Any]:
        if state.state == "stopped":
            raise JobFailed(f"{self.server}: the job was stopped there, by its page or another program.")
        if state.state == "failed":
            raise node_failure(state.error, self.made, self.server)
        return state.outputs


@contextmanager
def sent(server: ComfyServer, made: ServerJob, partial: bool, display: Display) -> Iterator[SentJob]:
    """Upload the input files, queue the job and yield it; where the block is cancelled, so is the job.

    Raises:
        InvalidGraph: the server takes none of it, or, unless `partial`, not all.
        WorkflowError: it takes none of it, and does not say which node is wrong.
        ServerError: it cannot be used.
    """
    client, job = uuid.uuid4().hex, str(uuid.uuid4())
    stream = EventStream(server.address, client) if has_websockets() else None
    try:
        workflow = made.with_files(server.upload)
        if stream is not None and stream.wait_connected(timeouts.CONNECT / 2):
            with contextlib.suppress(ServerError):  # its nodes then only count steps
                server.watch(client)
        elif stream is not None:
            display.message(
                f"{server}: its events cannot be received ({stream.failure}); its state is asked for instead.", "INFO"
            )
        try:
            job, refusal = server.submit(workflow.api, workflow.extra_pnginfo, client=client, job=job)
            left_out = made.refused(refusal)
            if left_out and not partial:
                server.cancel(job)
                raise InvalidGraph(left_out)
            yield SentJob(server, made, job, stream, display, left_out)
        except JobRefused as error:
            refused = made.refused(error.refusal)
            if refused:
                raise InvalidGraph(refused) from error
            raise WorkflowError(f"{server}: does not take the workflow: {str(error).rstrip('.')}.") from error
        except KeyboardInterrupt:
            _cancel(server, job, display)
            raise
    finally:
        if stream is not None:
            stream.close()


def _cancel(server: ComfyServer, job: str, display: Display) -> None:
    try:
        server.cancel(job)
    except ServerError as error:
        display.message(f"{error} The job could not be cancelled, and may go on there.", "WARNING")
    else:
        display.message(f"{server}: the job is cancelled there.", "INFO")


def node_failure(error: dict[str, Any], made: ServerJob, server: ComfyServer) -> NodeFailed | JobFailed:
    """Return the error for what ComfyUI tells of a node that raised."""
    kind, text = (str(error.get(key) or "") for key in ("exception_type", "exception_message"))
    if not kind and not text:
        return JobFailed(f"{server}: the job failed, and the server does not say why. Its log does.")
    node_id = str(error.get("node_id") or "")
    node = made.graph.get(node_id)
    title = str(node) if node is not None else f"{error.get('node_type') or 'a node'} (node {node_id})"
    lines = error.get("traceback")
    traceback = "".join(map(str, lines)) if isinstance(lines, list) else ""
    text = text.strip()
    # Piying's errors are sentences for people; what others raise is told with its type, as in a run here.
    if kind.startswith("piying."):
        return NodeFailed(title, node_id, PiyingError(text))
    return NodeFailed(title, node_id, ServerNodeError(f"{kind.rpartition('.')[2]}: {text}", traceback))
