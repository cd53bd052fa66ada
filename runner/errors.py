"""Errors of a workflow, each with the exit code and the sentence that a person gets."""

from __future__ import annotations

from dataclasses import dataclass

PACKS = {"comfy-core": "ComfyUI itself"}
MAX_LISTED, MAX_NAMED = 40, 5  # classes, and nodes of each, that one message lists


class WorkflowError(Exception):
    """The workflow or the options cannot be used as they stand; the text says why. Exit code 2."""


@dataclass(frozen=True)
class UnknownNode:
    """A node whose class is not known here.

    Attributes:
        class_type: its class.
        node: "title (node id)".
        pack: the pack that the file says it belongs to, empty where it does not.
        near: a class with nearly the same name, empty where there is none.
        instead: titles of the nodes here that do its job.
    """

    class_type: str
    node: str
    pack: str = ""
    near: str = ""
    instead: tuple[str, ...] = ()


class UnknownClassesError(WorkflowError):
    """Classes of the workflow are not known here; `nodes` are all of theirs, and the text lists them by class.

    Args:
        server: the ComfyUI server that does not know them, None for this runner.
    """

    def __init__(self, nodes: list[UnknownNode], server: str | None = None) -> None:
        by_class: dict[str, list[UnknownNode]] = {}
        for node in nodes:
            by_class.setdefault(node.class_type, []).append(node)
        lines = []
        where = "here" if server is None else f"to {server}"
        for class_type, found in list(by_class.items())[:MAX_LISTED]:
            more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            named = ", ".join(node.node for node in found[:MAX_NAMED]) + more
            first = found[0]
            name = next((node.pack for node in found if node.pack), "")
            pack = f" It belongs to {PACKS.get(name, f'the pack {name!r}')}." if name else ""
            near = f" Did you mean {first.near}?" if first.near else ""
            instead = f" Here that is done by {' or '.join(first.instead)}." if first.instead else ""
            lines.append(f"{named}: the node class {class_type!r} is not known {where}.{pack}{near}{instead}")
        if len(by_class) > MAX_LISTED:
            lines.append(f"and {len(by_class) - MAX_LISTED} more classes")
        text = (
            "Known are Piying's nodes, the ComfyUI core nodes that its workflows use, the packs of --custom-nodes "
            "DIR, and all core nodes of the ComfyUI checkout of --comfyui DIR, which packs may need."
        )
        if server is not None:
            text = "Install the packs that it lacks there, and start it again."
        elif any(node.instead for node in nodes):
            text += " --convert-to-piying FILE writes a workflow of the nodes named above, where it can."
        if len(by_class) > 1:
            listed = [f"- {line}" for line in lines]
            super().__init__("\n".join([f"{len(by_class)} node classes are not known {where}:", *listed, text]))
        else:
            super().__init__(f"{lines[0]} {text}")
        self.nodes = nodes


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
    """The validation failed; `errors` are all that it found, of which the text has the first ones."""

    def __init__(self, errors: list[NodeError]) -> None:
        lines = [str(error) for error in errors[:MAX_LISTED]]
        lines += [f"… and {len(errors) - MAX_LISTED} more like these."] if len(errors) > MAX_LISTED else []
        super().__init__("\n".join(lines))
        self.errors = errors


class NodeMisused(Exception):
    """A node was given, or asks for, what the engine cannot do; the text is for the person."""


class NodeFailed(Exception):
    """A node raised while running; the original exception is the cause. Exit code 1."""

    def __init__(self, node: str, node_id: str, cause: BaseException) -> None:
        super().__init__(f"{node}: {str(cause) or type(cause).__name__}")
        self.node = node
        self.node_id = node_id
        self.cause = cause


class ServerNodeError(Exception):
    """What a node raised on a ComfyUI server; the text begins with the type.

    Attributes:
        traceback: as the server sent it.
    """

    def __init__(self, text: str, traceback: str) -> None:
        super().__init__(text)
        self.traceback = traceback


class JobFailed(Exception):
    """No server finished the job, or not all of its files could be fetched; the text says why. Exit code 1."""
