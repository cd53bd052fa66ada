"""Pool of ComfyUI servers: a job goes to the one with the shortest queue that can run it, and on where it is lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import PiyingError
from ..definitions import ObjectInfo
from ..display import Display
from ..errors import JobFailed, NodeError, WorkflowError
from .address import ServerAddress
from .follow import ServerLost, sent
from .job import RemoteJob, ServerJob
from .results import fetch_files, output_files
from .server import ComfyServer, ServerError

SOON = 0.2  # seconds between two looks whether a run is cancelled


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
        answers: queue.SimpleQueue[tuple[ComfyServer, int, ObjectInfo | ServerError]] = queue.SimpleQueue()

        def ask(server: ComfyServer) -> None:
            try:
                answers.put((server, server.waiting(), server.definitions()))
            except ServerError as error:
                answers.put((server, 0, error))

        for server in servers:
            threading.Thread(target=ask, args=(server,), name="piying-servers", daemon=True).start()
        candidates, silent, unable = [], {}, {}
        for _ in servers:
            server, waiting, answer = _next_answer(answers, check_cancelled)
            if isinstance(answer, ServerError):
                silent[str(server)] = str(answer)
                continue
            try:
                made = job.for_server(answer, str(server))
                made.check(is_strict)
                candidates.append(Candidate(server, made, waiting))
            except WorkflowError as error:
                unable[str(server)] = error
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
        files: list[Path] = []

        def on_saved(path: Path) -> None:
            check_cancelled()
            files.append(path)
            display.saved(path)

        try:
            problems = fetch_files(server, output_files(outputs), job.output, on_saved)
        except PiyingError as error:  # a disk that is full
            raise JobFailed(str(error)) from error
        if problems:
            raise JobFailed(f"{server}: not all files could be fetched. " + " ".join(f"{each}." for each in problems))
        return Fetched(str(server), files, running.left_out)

    def _failure(self, refused: dict[str, WorkflowError], lost: list[str]) -> WorkflowError | JobFailed:
        """Return the error where no server is left."""
        if len(refused) == 1 and not lost:
            return next(iter(refused.values()))
        reasons = [*lost, *(f"{server}: {error}" for server, error in refused.items())]
        text = (
            reasons[0]
            if len(reasons) == 1
            else "\n".join(["No server could do it:", *(f"- {each}" for each in reasons)])
        )
        return WorkflowError(text) if refused and not lost else JobFailed(text)


def _next_answer(
    answers: queue.SimpleQueue[tuple[ComfyServer, int, ObjectInfo | ServerError]], check_cancelled: Callable[[], None]
) -> tuple[ComfyServer, int, ObjectInfo | ServerError]:
    while True:
        check_cancelled()
        try:
            return answers.get(timeout=SOON)
        except queue.Empty:
            continue
