"""Pool of ComfyUI servers: a job goes to the one with the shortest queue that can run it, and on where it is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import PiyingError, clipped
from ..definitions import ObjectInfo
from ..display import Display
from ..errors import JobFailed, NodeError, WorkflowError
from . import timeouts
from .address import ServerAddress
from .answers import FileProblem, output_files
from .follow import ServerLost, sent
from .job import RemoteJob, ServerJob
from .server import ComfyServer, ServerError

MOST_FILES = 10_000  # of a job

Answer = tuple[ComfyServer, int, ObjectInfo | ServerError]  # a server, jobs that wait there, its node definitions


@dataclass(frozen=True)
class Fetched:
    """The outcome of a job.

    Attributes:
        server: where it ran.
        files: paths of the files that were fetched.
        left_out: what was wrong with outputs that did not run; empty unless the job is `partial`.
    """

    server: str
    files: list[Path]
    left_out: list[NodeError] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """A server that can run a job, and the job made ready for it."""

    server: ComfyServer
    made: ServerJob
    waiting: int


class Pool:
    """Several servers; `run` may be called from several threads, each with a job of its own."""

    def __init__(self, addresses: Iterable[ServerAddress]) -> None:
        self.servers = [ComfyServer(address) for address in dict.fromkeys(addresses)]
        self._lock = threading.Lock()

    def run(self, job: RemoteJob, display: Display, check_cancelled: Callable[[], None] = lambda: None) -> Fetched:
        """Run a job on one of the servers, and fetch its files.

        Args:
            display: shows what happens.
            check_cancelled: called often; raises KeyboardInterrupt to stop the job there too.

        Raises:
            WorkflowError: no server that answers can run the workflow; the text says why not.
            NodeFailed: a node raised.
            JobFailed: no server finished the job, or not all of its files came.
        """
        lost: list[str] = []
        refused: dict[str, WorkflowError] = {}
        left = list(self.servers)
        while left:
            candidates, silent, unable = self._candidates(left, job, check_cancelled, is_strict=False)
            refused |= unable
            for problem in silent.values():
                if len(self.servers) > 1:
                    display.message(f"{problem} It is left out.", "WARNING")
            if not candidates:
                lost += silent.values()
                break
            chosen = self._reserve(candidates)
            left = [each.server for each in candidates if each is not chosen]
            try:
                return self._run_on(chosen, job, display, check_cancelled)
            except WorkflowError as error:
                refused[str(chosen.server)] = error
            except (ServerError, ServerLost) as error:
                lost.append(str(error))
                if left:
                    display.message(f"{error} It goes to another server.", "WARNING")
        raise self._failure(refused, lost)

    def check(
        self, job: RemoteJob, check_cancelled: Callable[[], None] = lambda: None
    ) -> tuple[list[Candidate], list[str]]:
        """Return the servers that can run a job, the shortest queue first, and what is against the others.

        Raises:
            WorkflowError, JobFailed: there is none.
        """
        candidates, silent, unable = self._candidates(self.servers, job, check_cancelled, is_strict=not job.partial)
        if not candidates:
            raise self._failure(unable, list(silent.values()))
        return candidates, [*silent.values(), *(f"{server}: {error}" for server, error in unable.items())]

    def definitions(self) -> tuple[ComfyServer, ObjectInfo]:
        """Return the first server that answers, and its node definitions.

        Raises:
            JobFailed: none does.
        """
        problems = []
        for server in self.servers:
            try:
                return server, server.definitions()
            except ServerError as error:
                problems.append(str(error))
        raise self._failure({}, problems)

    def _candidates(
        self, servers: list[ComfyServer], job: RemoteJob, check_cancelled: Callable[[], None], *, is_strict: bool
    ) -> tuple[list[Candidate], dict[str, str], dict[str, WorkflowError]]:
        """Return the servers that can run a job, the shortest queue first; what others lack, or say.

        They are asked all at once: one that hangs must not keep the others waiting for each other.
        """
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

        def ask(server: ComfyServer) -> None:
            try:
                answers.put((server, server.waiting(), server.definitions()))
            except ServerError as error:
                answers.put((server, 0, error))

        for server in servers:
            threading.Thread(target=ask, args=(server,), name="piying-servers", daemon=True).start()
        candidates: list[Candidate] = []
        silent, unable, deadline = {}, {}, float("inf")
        for _ in servers:
            found = _next_answer(answers, deadline, check_cancelled)
            if found is None:
                break
            server, waiting, answer = found
            if isinstance(answer, ServerError):
                silent[str(server)] = str(answer)
                continue
            try:
                made = job.for_server(answer, str(server))
                made.check(is_strict)
                candidates.append(Candidate(server, made, waiting))
                # One that takes long to say how busy it is is busy.
                deadline = min(deadline, time.monotonic() + timeouts.OTHERS)
            except WorkflowError as error:
                unable[str(server)] = error
        told = {*silent, *unable, *(str(each.server) for each in candidates)}
        late = [server for server in map(str, servers) if server not in told]
        silent |= {server: f"{server}: does not answer in time." for server in late}
        order = {id(server): number for number, server in enumerate(self.servers)}
        candidates.sort(key=lambda each: (each.waiting + each.server.reserved, order[id(each.server)]))
        return candidates, silent, unable

    def _reserve(self, candidates: list[Candidate]) -> Candidate:
        """Return the candidate with the fewest jobs, those counted too that other threads are about to send."""
        with self._lock:
            chosen = min(candidates, key=lambda each: each.waiting + each.server.reserved)
            chosen.server.reserved += 1
        return chosen

    def _release(self, server: ComfyServer) -> None:
        with self._lock:
            server.reserved -= 1

    def _run_on(
        self, chosen: Candidate, job: RemoteJob, display: Display, check_cancelled: Callable[[], None]
    ) -> Fetched:
        server, is_reserved = chosen.server, True
        try:
            with sent(server, chosen.made, job.partial, display) as running:
                self._release(server)
                is_reserved = False
                queued = f", behind {chosen.waiting} in its queue" if chosen.waiting else ""
                display.message(f"Runs on {server}{queued}.", "INFO")
                for error in running.left_out:
                    display.message(f"left out: {error}", "WARNING")
                outputs = running.outputs(check_cancelled)
        finally:
            if is_reserved:
                self._release(server)
        files, problems = self._fetched(server, outputs, job.output, display=display, check_cancelled=check_cancelled)
        if problems:
            raise JobFailed(f"{server}: not all files could be fetched. " + " ".join(f"{each}." for each in problems))
        return Fetched(str(server), files, running.left_out)

    def _fetched(
        self,
        server: ComfyServer,
        outputs: dict[str, Any],
        folder: Path,
        *,
        display: Display,
        check_cancelled: Callable[[], None],
    ) -> tuple[list[Path], list[str]]:
        """Fetch the files of a job; return their paths, and what is wrong with those that did not come."""
        named = output_files(outputs)
        paths: list[Path] = []
        problems = [f"there are {len(named)}, and {MOST_FILES} are fetched"] if len(named) > MOST_FILES else []
        for file in named[:MOST_FILES]:
            check_cancelled()
            try:
                paths.append(server.fetch(file, folder))
                display.saved(paths[-1])
            except FileProblem as problem:
                problems.append(f"{clipped(str(file), 120)!r}: {problem}")
            except PiyingError as error:  # a disk that is full
                raise JobFailed(str(error)) from error
        return paths, problems

    def _failure(self, refused: dict[str, WorkflowError], lost: list[str]) -> WorkflowError | JobFailed:
        """Return the error where no server is left."""
        texts = {str(error) for error in refused.values()}
        if len(texts) == 1 and not lost:
            return next(iter(refused.values()))
        reasons = [*lost, *(f"{server}: {error}" for server, error in refused.items())]
        text = (
            reasons[0]
            if len(reasons) == 1
            else "\n".join(["No server could do it:", *(f"- {each}" for each in reasons)])
        )
        return WorkflowError(text) if refused and not lost else JobFailed(text)


def _next_answer(
    answers: queue.SimpleQueue[Answer], deadline: float, check_cancelled: Callable[[], None]
) -> Answer | None:
    """Return the next answer, None where there is none until the deadline, as `time.monotonic` counts."""
    while time.monotonic() < deadline:
        check_cancelled()
        try:
            return answers.get(timeout=timeouts.POLL)
        except queue.Empty:
            continue
    return None
