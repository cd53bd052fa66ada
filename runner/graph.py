"""The graph in ComfyUI's API form: {id: {class_type, inputs}}, where a link is [id, output slot]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowError

MAX_NODES = 20_000


@dataclass(frozen=True)
class Link:
    """The output `slot` of node `source`."""

    source: str
    slot: int


@dataclass(frozen=True)
class Node:
    """One node: its class, its inputs (values or `Link`s), and the title a person knows it by."""

    id: str
    class_type: str
    inputs: dict[str, Any]
    title: str

    def __str__(self) -> str:
        return f"{self.title} (node {self.id})"

    def links(self) -> Iterator[tuple[str, Link]]:
        """Yield (input name, link) for every linked input."""
        for name, value in self.inputs.items():
            if isinstance(value, Link):
                yield name, value


Graph = dict[str, Node]


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
    inputs = node.get("inputs", {})
    if not isinstance(inputs, dict):
        raise WorkflowError(f"Node {node_id} ({node['class_type']}): inputs is not an object.")
    values = {name: _parse_value(value) for name, value in inputs.items()}
    return Node(node_id, node["class_type"], values, _title(node, titles))


def _title(node: dict[str, Any], titles: dict[str, str]) -> str:
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, dict) else None
    return str(given or titles.get(node["class_type"]) or node["class_type"])


def _parse_value(value: Any) -> Any:
    """Return a Link for [id, slot]; unwrap {"__value__": list}, which says that a list is no link."""
    if is_link(value):
        return Link(str(value[0]), value[1])
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]
    return value


def is_link(value: Any) -> bool:
    """Return whether a JSON value has the form of a link."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str | int)
        and isinstance(value[1], int)
        and not isinstance(value[0], bool)
        and not isinstance(value[1], bool)
    )


def execution_order(graph: Graph, roots: list[str]) -> list[Node]:
    """Return the roots and all they depend on, each node after its sources.

    Raises:
        WorkflowError: the links go in a circle.
    """
    order: list[Node] = []
    state: dict[str, str] = {}
    for root in roots:
        _visit(graph, root, state, order)
    return order


def _visit(graph: Graph, root: str, state: dict[str, str], order: list[Node]) -> None:
    """Depth first with a stack of our own: graphs may be deeper than Python's."""
    stack = [root]
    while stack:
        node_id = stack[-1]
        if state.get(node_id) == "done":
            stack.pop()
        elif state.get(node_id) == "open":
            state[node_id] = "done"
            order.append(graph[stack.pop()])
        else:
            state[node_id] = "open"
            stack += _unfinished_sources(graph, node_id, state)


def _unfinished_sources(graph: Graph, node_id: str, state: dict[str, str]) -> list[str]:
    sources = [link.source for _, link in graph[node_id].links() if state.get(link.source) != "done"]
    for source in sources:
        if state.get(source) == "open":
            raise WorkflowError(f"{graph[node_id]} depends on itself, through {graph[source]}. Remove one link.")
    return list(reversed(sources))
