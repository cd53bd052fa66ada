"""Job: one workflow to run, the states it goes through, and how an attempt at it ended."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict

from ..core.process import CANCELLED, FAILED, WRONG
from ..runner.errors import InvalidGraph, WorkflowError

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
OVER: tuple[State, ...] = ("done", "failed", "cancelled")
JOB_ID = re.compile(r"[0-9a-f]{32}")


class Problem(TypedDict):
    """What was wrong, in the words of the command line.

    Attributes:
        message: a sentence for people.
        node, input: ids of where it is, None where it is nowhere in the graph.
        exit_code: what the command line would end with.
    """

    message: str
    node: str | None
    input: str | None
    exit_code: int


class ResultFile(TypedDict):
    """A file that a job made: its name inside the job's results, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


def problem(message: str, *, node: str | None = None, input: str | None = None, exit_code: int = FAILED) -> Problem:
    """Return a problem."""
    return {"message": message, "node": node, "input": input, "exit_code": exit_code}


def problems_of(error: WorkflowError) -> list[Problem]:
    """Return what an error of a workflow says, each of several problems by itself."""
    if isinstance(error, InvalidGraph):
        return [problem(str(one), node=one.node_id, input=one.input, exit_code=WRONG) for one in error.errors]
    return [problem(str(error), exit_code=WRONG)]


@dataclass(frozen=True)
class Asked:
    """What a client asks to run.

    Attributes:
        workflow: decoded JSON of either form.
        set: {"NODE.INPUT": value}, as `--set` has them.
        prompt, seed, partial: as the options of the command line.
    """

    workflow: dict[str, Any]
    set: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    seed: int | None = None
    partial: bool = False

    def to_json(self) -> str:
        """Return it as JSON, in the order that it has: nodes run in that of the workflow."""
        return json.dumps(self._values(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Asked:
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))

    def checksum(self) -> str:
        """Return the SHA-256 of all that it says."""
        canonical = json.dumps(self._values(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def costs_like(self) -> str:
        """Return a checksum that jobs share whose seed and prompt alone differ: their plans are the same."""
        return replace(self, prompt=None, seed=None).checksum()

    def _values(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Job:
    """A job without its workflow, which may be large and stays in the journal.

    Attributes:
        id: 32 hexadecimal digits.
        owner: name of the token that it came with.
        batch: what it was submitted together with, else empty.
        checksum, costs_like: of what was asked; see `Asked`.
        submitted, started, ended: seconds since 1970; `started` is that of the last attempt.
        attempt: how often it was given to a worker.
        lost: how often its worker was lost.
        worker: the last one.
        is_cancelling: its owner has cancelled it, and its worker has not stopped yet.
        problem: why it failed.
        files: what it made.
        measured: how the run went; see `job_runner.Measured`.
    """

    id: str
    owner: str
    checksum: str
    costs_like: str
    submitted: float
    batch: str = ""
    state: State = "queued"
    attempt: int = 0
    lost: int = 0
    worker: str = ""
    started: float | None = None
    ended: float | None = None
    is_cancelling: bool = False
    problem: Problem | None = None
    files: tuple[ResultFile, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in OVER

    @classmethod
    def new(cls, job_id: str, owner: str, asked: Asked, now: float, *, batch: str = "") -> Job:
        """Return a job that waits."""
        return cls(job_id, owner, asked.checksum(), asked.costs_like(), now, batch)

    def to_json(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def begun(self, worker: str, now: float) -> Job:
        """Return the job given to a worker."""
        return replace(self, state="running", attempt=self.attempt + 1, worker=worker, started=now)

    def waiting_again(self, *, lost: bool) -> Job:
        """Return the job back in the queue."""
        return replace(self, state="queued", worker="", started=None, lost=self.lost + lost)

    def over(self, outcome: Outcome, now: float) -> Job:
        """Return the job with the outcome of its attempt."""
        return replace(
            self,
            state=outcome.state,
            ended=now,
            is_cancelling=False,
            problem=outcome.problem,
            files=outcome.files,
            measured=outcome.measured,
        )


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a job ended.

    Attributes:
        loaded: names of the models that its worker has in memory now.
    """

    state: Literal["done", "failed", "cancelled"]
    problem: Problem | None = None
    files: tuple[ResultFile, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()


STOPPED = Outcome("cancelled", problem("stopped; no unfinished file is left.", exit_code=CANCELLED))
