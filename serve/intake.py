"""Intake: what a client sends, made into jobs or refused with the sentences of the command line."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.http import same_origin
from ..core.process import WRONG
from ..runner.errors import WorkflowError
from ..runner.graph import Graph
from ..runner.session import Session
from ..runner.workflow_file import MAX_BYTES, decoded_file
from .job import Asked, Problem, problem, problems_of

SUFFIX = ".json"
ADDRESS = "url"  # the input by which a node names a server that it asks


class RefusedError(Exception):
    """A job that cannot be taken; `problems` say why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0]["message"])
        self.problems = list(problems)


@dataclass
class Intake:
    """Checks jobs as `--check` does, with the folders of the server.

    Attributes:
        session: of the server; it runs nothing.
        folders: where workflows that are given by name are.
        servers: addresses that nodes may ask, such as that of a language model.
    """

    session: Session
    folders: tuple[Path, ...] = ()
    servers: tuple[str, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        """Return the names of the workflows in the folders."""
        found = {
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in self.folders
            for path in folder.rglob(f"*{SUFFIX}")
            if self._inside(folder, path)
        }
        return sorted(found)

    def named(self, name: str) -> dict[str, Any]:
        """Return the workflow of a name.

        Raises:
            RefusedError: there is none, or it cannot be read.
        """
        # Looked up in the list, not put into a path: no name leads anywhere else.
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise RefusedError([problem(f"workflow {name!r} is not known here. There is: {known}.", exit_code=WRONG)])
        path = next(path for folder in self.folders if (path := folder / f"{name}{SUFFIX}").is_file())
        try:
            found = decoded_file(path)
        except WorkflowError as error:
            raise RefusedError(problems_of(error)) from error
        if not isinstance(found, dict):
            raise RefusedError([problem(f"workflow {name!r} is no JSON object.", exit_code=WRONG)])
        return found

    def check(self, asked: Sequence[Asked]) -> None:
        """Accept jobs that could run.

        Raises:
            RefusedError: one of them could not; where there are several its number is named.
        """
        # Jobs of a batch differ in few values: the lists of files are made once. A session is not made for threads.
        with self._lock, self.session.one_pass():
            info = self.session.definitions()
            for number, one in enumerate(asked, 1):
                try:
                    workflow = self.session.prepare(
                        one.workflow, set=one.set, prompt=one.prompt, seed=one.seed, info=info
                    )
                    graph, _, _ = self.session.check(workflow, one.partial, info)
                    problems = self._untrusted(graph)
                except WorkflowError as error:
                    problems = problems_of(error)
                if problems and len(asked) > 1:
                    problems = [{**each, "message": f"job {number}: {each['message']}"} for each in problems]
                if problems:
                    raise RefusedError(problems)

    def _untrusted(self, graph: Graph) -> list[Problem]:
        """Return what a workflow from anybody may not do: have the server's machines ask others."""
        found = []
        for node in graph.values():
            # By the input's name: packs that the owner has loaded may have nodes of this kind too.
            address = node.inputs.get(ADDRESS)
            if address is None or any(isinstance(address, str) and _same(address, known) for known in self.servers):
                continue
            allowed = f"Allowed are: {', '.join(self.servers)}." if self.servers else "No server is allowed here."
            text = f"{node}: {ADDRESS} is {address!r}. {allowed} Who runs the queue names more with --prompt-server."
            found.append(problem(text, node=node.id, input=ADDRESS, exit_code=WRONG))
        return found

    @staticmethod
    def _inside(folder: Path, path: Path) -> bool:
        """Return whether a path is a file inside a folder, links followed."""
        try:
            return (
                path.resolve().is_relative_to(folder.resolve()) and path.is_file() and path.stat().st_size <= MAX_BYTES
            )
        except (OSError, RuntimeError):
            return False


def _same(address: str, known: str) -> bool:
    try:
        return same_origin(address, known)
    except ValueError:
        return False
