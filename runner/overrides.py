"""Values from the command line: --set NODE.INPUT=VALUE, --prompt, --seed."""

from __future__ import annotations

import difflib
from typing import Any

from .definitions import ObjectInfo, declared_inputs
from .errors import WorkflowError
from .graph import Graph, Link, Node

SEED_NAMES = ("seed", "noise_seed")
Assignment = tuple[str, str, Any]  # node id, input, value


def split_set(text: str) -> tuple[str, str]:
    """Return target and value of `NODE.INPUT=VALUE`.

    Raises:
        WorkflowError: the text has another form.
    """
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise WorkflowError(f"--set {text!r}: write it as NODE.INPUT=VALUE, such as 5.seed=7.")
    return target, value


def find_input(target: str, graph: Graph, info: ObjectInfo) -> tuple[str, str]:
    """Return node id and input that `NODE.INPUT` means; NODE is an id, a title or a class.

    Raises:
        WorkflowError: it names no node, several nodes, or no input.
    """
    name, _, input_name = target.rpartition(".")
    node = find_node(name, graph)
    if node.class_type in info and input_name not in (declared := declared_inputs(info[node.class_type])):
        near = difflib.get_close_matches(input_name, declared, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise WorkflowError(f"{target}: {node} has no input {input_name!r}.{hint} It has: {', '.join(declared)}.")
    return node.id, input_name


def find_node(name: str, graph: Graph) -> Node:
    """Return the node of that id, else of that title, else of that class.

    Raises:
        WorkflowError: there is none, or more than one; the candidates are listed.
    """
    if name in graph:
        return graph[name]
    for matches in (
        [node for node in graph.values() if node.title == name],
        [node for node in graph.values() if node.class_type == name],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(f"{node.id} ({node.title})" for node in matches)
            raise WorkflowError(f"{name!r} stands for several nodes: {listed}. Name one by its id.")
    listed = ", ".join(f"{node.id} ({node.title}, {node.class_type})" for node in graph.values())
    raise WorkflowError(f"No node {name!r} in the workflow. It has: {listed}.")


def prompt_assignment(text: str, graph: Graph) -> Assignment:
    """Return the assignment of --prompt: to the one input named `prompt` that is not linked.

    Raises:
        WorkflowError: there is no such input, or more than one.
    """
    found = [node for node in graph.values() if isinstance(node.inputs.get("prompt"), str)]
    if len(found) == 1:
        return found[0].id, "prompt", text
    if not found:
        raise WorkflowError("--prompt: no node of the workflow takes a prompt of its own. Use --set NODE.INPUT=TEXT.")
    listed = ", ".join(f'--set {node.id}.prompt="…" ({node.title})' for node in found)
    raise WorkflowError(f"--prompt: several nodes take a prompt. Say which: {listed}.")


def seed_assignments(seed: int | str, graph: Graph) -> list[Assignment]:
    """Return the assignments of --seed: to every seed that is not linked.

    Raises:
        WorkflowError: the workflow has no seed.
    """
    found = [
        (node.id, name, seed)
        for node in graph.values()
        for name in SEED_NAMES
        if name in node.inputs and not isinstance(node.inputs[name], Link)
    ]
    if not found:
        raise WorkflowError("--seed: no node of the workflow has a seed of its own.")
    return found
