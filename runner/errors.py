"""Errors of a workflow, each with the exit code and the sentence that a person gets."""

from __future__ import annotations

from dataclasses import dataclass


class WorkflowError(Exception):
    """The workflow or the options cannot be used as they stand; the text says why. Exit code 2."""


@dataclass(frozen=True)
class NodeError:
    """One error that the validation found, with ComfyUI's error type.

    Attributes:
        type: such as `value_not_in_list`; the names are ComfyUI's.
        node: "title (node id)".
        message: the sentence for the person.
        node_id, input: where it was found.
    """

    type: str
    node: str
    message: str
    node_id: str
    input: str | None = None

    def __str__(self) -> str:
        return f"{self.node}: {self.message}"


class InvalidGraph(WorkflowError):
    """The validation failed; `errors` are all that it found."""

    def __init__(self, errors: list[NodeError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = errors


class NodeMisused(Exception):
    """A node was given, or asks for, what the engine cannot do; the text is for the person."""


class NodeFailed(Exception):
    """A node raised while running; the original exception is the cause. Exit code 1."""

    def __init__(self, node: str, node_id: str, cause: BaseException) -> None:
        super().__init__(f"{node}: {cause}")
        self.node = node
        self.node_id = node_id
        self.cause = cause
