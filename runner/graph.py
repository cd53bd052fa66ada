"""Graph in ComfyUI's API form: {id: {class_type, inputs}}, where a link is [node id, output slot]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowError

# Far beyond what anybody draws: a larger file is a mistake or an attack, and reading it would take minutes.
MAX_NODES = 20_000

# The expanded graph that a node belongs to, named by the nodes that expanded into it, outermost first;
# empty for nodes of the file.
Scope = tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """The output `slot` of node `source`."""

    source: str
    slot: int


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        id, class_type: as in the file.
        inputs: values or `Link`s.
        title: what a person knows it by.
        pack: the pack that the file says it belongs to, empty where it does not.
    """

    id: str
    class_type: str
    inputs: dict[str, Any]
    title: str
    pack: str = ""

    def __str__(self) -> str:
        return f"{self.title} (node {self.id})"

    def links(self) -> Iterator[tuple[str, Link]]:
        """Yield (input name, link) for every linked input."""
        for name, value in self.inputs.items():
            if isinstance(value, Link):
                yield name, value


Graph = dict[str, Node]
Assignment = tuple[str, str, Any]  # node id, input, value


class ValueList(list[Any]):
    """A list that a workflow marks as a value."""


def is_link(value: Any) -> bool:
    """Return whether a JSON value has the form of a link."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str | int)
        and isinstance(value[1], int)
        # In Python, True is an int; a list of two switches is no link.
        and not isinstance(value[0], bool)
        and not isinstance(value[1], bool)
    )


def parse_graph(api: Any, titles: dict[str, str] | None = None) -> Graph:
    """Return the graph of an API-form workflow.

    Args:
        api: decoded JSON.
        titles: display names by class, for nodes without a title of their own.

    Raises:
        WorkflowError: the JSON does not have the API form, or is absurdly large.
    """
    if not isinstance(api, dict) or not api:
        raise WorkflowError("The workflow has no nodes.")
    if len(api) > MAX_NODES:
        raise WorkflowError(f"The workflow has {len(api)} nodes; at most {MAX_NODES} are allowed.")
    return {str(node_id): parse_node(str(node_id), node, titles or {}) for node_id, node in api.items()}


def parse_node(node_id: str, node: Any, titles: dict[str, str]) -> Node:
    """Return one node of the API form.

    Raises:
        WorkflowError: it has no class, or its inputs are no object.
    """
    if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
        raise WorkflowError(f"Node {node_id} has no class_type. Is this a workflow in ComfyUI's API or UI form?")
    class_type, meta = node["class_type"], node.get("_meta")
    inputs: dict[str, Any] = {}
    if not isinstance(node.get("inputs", {}), dict):
        raise WorkflowError(f"Node {node_id} ({class_type}): inputs is not an object.")
    for name, value in node.get("inputs", {}).items():
        if is_link(value):
            inputs[name] = Link(str(value[0]), value[1])
        elif isinstance(value, dict) and set(value) == {"__value__"}:
            # The browser wraps a list that is a value, since one of two items would pass for a link.
            wrapped = value["__value__"]
            inputs[name] = ValueList(wrapped) if isinstance(wrapped, list) else wrapped
        else:
            inputs[name] = value
    meta = meta if isinstance(meta, dict) else {}
    title = str(meta.get("title") or titles.get(class_type) or class_type)
    return Node(node_id, class_type, inputs, title, str(meta.get("cnr_id") or meta.get("aux_id") or ""))


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


def execution_order(graph: Graph, roots: list[str]) -> list[Node]:
    """Return the roots and all they depend on, each node after its sources.

    Raises:
        WorkflowError: the links form a cycle.
    """
    order: list[Node] = []
    opened: set[str] = set()
    done: set[str] = set()
    for root in roots:
        # Depth first with an explicit stack: graphs may be deeper than Python's recursion limit.
        stack = [root]
        while stack:
            node_id = stack[-1]
            if node_id in opened:
                stack.pop()
                if node_id not in done:
                    done.add(node_id)
                    order.append(graph[node_id])
                continue
            opened.add(node_id)
            sources = [link.source for _, link in graph[node_id].links() if link.source not in done]
            for source in sources:
                if source in opened:
                    raise WorkflowError(
                        f"{graph[node_id]} depends on itself, through {graph[source]}. Remove one link."
                    )
            stack += reversed(sources)
    return order


class DynamicPrompt:
    """The graph for nodes that ask for DYNPROMPT: the file's, and what nodes expanded into so far.

    The methods have ComfyUI's names, since packs call them; nodes are in API form.
    """

    def __init__(self, prompt: dict[str, Any], expanded: Mapping[str, Any], scopes: Mapping[str, Scope]) -> None:
        self._prompt, self._expanded, self._scopes = prompt, expanded, scopes

    def get_node(self, node_id: str) -> Any:
        """Return a node in API form; KeyError where there is none."""
        return self._expanded[node_id] if node_id in self._expanded else self._prompt[node_id]

    def has_node(self, node_id: str) -> bool:
        """Return whether there is such a node."""
        return node_id in self._expanded or node_id in self._prompt

    def get_original_prompt(self) -> dict[str, Any]:
        """Return the file's graph."""
        return self._prompt

    def all_node_ids(self) -> set[str]:
        """Return all ids."""
        return {*self._prompt, *self._expanded}

    def get_parent_node_id(self, node_id: str) -> str | None:
        """Return the node that expanded into this one."""
        return self._scopes[node_id][-1] if node_id in self._scopes else None

    def get_real_node_id(self, node_id: str) -> str:
        """Return the node of the file that this one came from."""
        return self._scopes[node_id][0] if node_id in self._scopes else node_id

    def get_display_node_id(self, node_id: str) -> str:
        """Return the node that shows this one's results."""
        override = self._expanded.get(node_id, {}).get("override_display_id")
        return str(override) if override else self.get_real_node_id(node_id)
