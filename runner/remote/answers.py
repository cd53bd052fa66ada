"""Answers of a ComfyUI server: how far a job is, what is wrong with it, and which files it made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from ...core.errors import clipped

REASON = 300  # characters of what a server says that are repeated
# Names as ComfyUI's savers give them: what comes before the number, and the ending.
NUMBERED = re.compile(r"(?P<stem>.+)_[0-9]{5,}_?(?P<suffix>\.[^.]{1,20})")

State = Literal["pending", "running", "done", "failed", "stopped", "absent"]
JOB_STATES: dict[str, State] = {  # of /api/jobs
    "pending": "pending",
    "in_progress": "running",
    "completed": "done",
    "failed": "failed",
    "cancelled": "stopped",
}


@dataclass(frozen=True)
class JobState:
    """How far a job is.

    Attributes:
        state: absent where the server knows no such job.
        outputs: what its nodes showed, {node id: {key: entries}}, once it is over.
        error: of a failed job, the data of ComfyUI's `execution_error`.
    """

    state: State
    outputs: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """What a server has against a job, or against some of its outputs.

    Attributes:
        message: of the whole.
        nodes: ComfyUI's errors, {node id: [error]}.
    """

    message: str
    nodes: dict[str, list[dict[str, Any]]]


class JobRefused(Exception):
    """A server does not take a job; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def read_refusal(found: Any) -> Refusal:
    """Return what an answer to /prompt has against nodes, whatever form it has."""
    answer = table(found)
    error = answer.get("error")
    texts = [error.get("message"), error.get("details")] if isinstance(error, dict) else [error]
    message = ": ".join(dict.fromkeys(str(text) for text in texts if text))
    nodes = {
        node: [each for each in listed(table(entry).get("errors")) if isinstance(each, dict)]
        for node, entry in table(answer.get("node_errors")).items()
    }
    return Refusal(clipped(message, REASON), nodes)


def ended_state(entry: dict[str, Any]) -> JobState:
    """Return the state of an entry of /history."""
    status, outputs = table(entry.get("status")), table(entry.get("outputs"))
    if status.get("status_str") != "error":
        return JobState("done", outputs)
    messages = [each for each in map(listed, listed(status.get("messages"))) if len(each) == 2]
    told = {str(kind): table(data) for kind, data in messages}
    if "execution_interrupted" in told:
        return JobState("stopped", outputs)
    return JobState("failed", outputs, told.get("execution_error", {}))


def table(value: Any) -> dict[str, Any]:
    """Return an object of an answer, an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """Return a list of an answer, an empty one in place of anything else."""
    return value if isinstance(value, list) else []


class FileProblem(Exception):
    """A file of a job cannot be fetched; the text says why."""


@dataclass(frozen=True)
class OutputFile:
    """A file that a node saved, as the server names it."""

    filename: str
    subfolder: str

    def __str__(self) -> str:
        return f"{self.subfolder}/{self.filename}" if self.subfolder else self.filename

    def place(self) -> tuple[str, str]:
        """Return prefix and ending that the file is saved under, for `naming.writing`.

        Raises:
            FileProblem: the name leads out of the folder, or is none.
        """
        parts = self.subfolder.replace("\\", "/").split("/") if self.subfolder else []
        bad = re.search(r"[\x00-\x1f\x7f]", str(self)) or re.match(r"[/\\]|[A-Za-z]:", str(self))
        if bad or ".." in parts or self.filename in ("", ".", "..") or re.search(r"[/\\]", self.filename):
            raise FileProblem("its name leads out of the output folder, or is no name of a file")
        found = NUMBERED.fullmatch(self.filename)
        plain = PurePosixPath(self.filename)
        stem, suffix = (found["stem"], found["suffix"]) if found else (plain.stem, plain.suffix)
        # A percent sign would begin a token, and the name here is final.
        return "/".join([*parts, stem.replace("%", "_")]), suffix


def output_files(outputs: dict[str, Any]) -> list[OutputFile]:
    """Return the files that nodes report, under whatever key: packs have keys of their own; previews are left out."""
    entries = [table(each) for node in outputs.values() for shown in table(node).values() for each in listed(shown)]
    saved = [entry for entry in entries if entry.get("type") == "output" and entry.get("filename")]
    files = (OutputFile(str(entry["filename"]), str(entry.get("subfolder") or "")) for entry in saved)
    return list(dict.fromkeys(files))
