"""The graph in a file as the browser saves it, read once and checked: what follows need not doubt it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import WorkflowError
from .graph import MAX_NODES

MAX_SLOTS = 1000
NEVER, BYPASS = 2, 4  # node modes
INPUT_SIDE, OUTPUT_SIDE = "-10", "-20"  # the ids that stand for a subgraph's own inputs and outputs in its links
RENAMED = {
    "T2IAdapterLoader": "ControlNetLoader",
    "ConditioningAverage ": "ConditioningAverage",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
}


@dataclass(frozen=True)
class UILink:
    """A wire between two slots."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class Slot:
    """An input: its name, its type, the wire that feeds it, and whether a widget stands behind it."""

    name: str
    kind: str
    link: str | None = None
    widget: bool = False


@dataclass(frozen=True)
class Port:
    """An input of a subgraph, with the wires inside that begin there."""

    name: str
    kind: str
    links: list[str]


@dataclass(frozen=True)
class UINode:
    """A node as stored.

    Attributes:
        id, kind, mode, title, properties: as in the file.
        inputs: its inputs.
        outputs: the types of its outputs.
        stored: its `widgets_values`.
        data: what was read.
    """

    id: str
    kind: str
    mode: int
    title: str
    inputs: list[Slot]
    outputs: list[str]
    stored: list[Any] | dict[str, Any]
    properties: dict[str, Any]
    data: dict[str, Any]


@dataclass(frozen=True)
class UIGraph:
    """Nodes and wires by id; `inputs` are those of a subgraph."""

    nodes: dict[str, UINode]
    links: dict[str, UILink]
    inputs: list[Port] = field(default_factory=list)


@dataclass(frozen=True)
class UIFile:
    """The graph on the canvas, the subgraphs it may hold instances of, by id, and the last node id given."""

    root: UIGraph
    subgraphs: dict[str, UIGraph]
    last_id: int


def read_ui(workflow: Any) -> UIFile:
    """Return the graphs of a decoded file.

    Raises:
        WorkflowError: it does not have the form the browser saves, or is absurdly large.
    """
    workflow = _object(workflow, "JSON")
    state = _object(workflow.get("state") or {}, "state")
    last = workflow.get("last_node_id", state.get("lastNodeId"))
    subgraphs = [(_key(each.get("id"), "subgraph id"), _graph(each)) for each in _definitions(workflow)]
    return UIFile(_graph(workflow), _first(subgraphs), last if isinstance(last, int) else 0)


def _first(graphs: list[tuple[str, UIGraph]]) -> dict[str, UIGraph]:
    found: dict[str, UIGraph] = {}
    for key, graph in graphs:
        found.setdefault(key, graph)
    return found


def _definitions(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the subgraphs, those too that stand within another's definition."""
    found = [workflow]
    for each in found:
        definitions = _object(each.get("definitions") or {}, "definitions")
        found += _objects(definitions.get("subgraphs"), "definitions.subgraphs")
    return found[1:]


def _graph(data: dict[str, Any]) -> UIGraph:
    nodes = _objects(data.get("nodes"), "nodes")
    if len(nodes) > MAX_NODES:
        raise WorkflowError(f"The workflow has {len(nodes)} nodes; at most {MAX_NODES} are allowed.")
    links = [link for link in _list(data.get("links"), "links") if link is not None]
    return UIGraph(
        _by_id([_node(node) for node in nodes]),
        dict(_link(link) for link in links),
        [_port(port) for port in _objects(data.get("inputs"), "inputs")],
    )


def _by_id(nodes: list[UINode]) -> dict[str, UINode]:
    found: dict[str, UINode] = {}
    for node in nodes:
        if found.setdefault(node.id, node) is not node:
            raise WorkflowError(
                f"Two nodes of the workflow have the id {node.id}: {found[node.id].kind}, {node.kind}."
            )
    return found


def _node(data: dict[str, Any]) -> UINode:
    kind = data.get("type")
    if not isinstance(kind, str):
        raise WorkflowError(f"Node {data.get('id')!r} of the workflow has no type.")
    stored, mode, title = data.get("widgets_values"), data.get("mode"), data.get("title")
    return UINode(
        id=_key(data.get("id"), f"id of a {kind} node"),
        kind=RENAMED.get(kind, kind),
        mode=mode if isinstance(mode, int) else 0,
        title=title if isinstance(title, str) else "",
        inputs=[_slot(slot) for slot in _slots(data.get("inputs"), data["id"])],
        outputs=[_kind(slot) for slot in _slots(data.get("outputs"), data["id"])],
        stored=stored if isinstance(stored, list | dict) else [],
        properties=_object(data.get("properties") or {}, f"properties of node {data['id']}"),
        data=data,
    )


def _slot(data: dict[str, Any]) -> Slot:
    link = data.get("link")
    name = data.get("name")
    return Slot(
        name if isinstance(name, str) else "",
        _kind(data),
        None if link is None else _key(link, "link of an input"),
        isinstance(data.get("widget"), dict),
    )


def _port(data: dict[str, Any]) -> Port:
    links = [_key(link, "link of a subgraph") for link in _list(data.get("linkIds"), "linkIds")]
    return Port(str(data.get("name")), _kind(data), links)


def _kind(slot: dict[str, Any]) -> str:
    kind = slot.get("type")
    return "COMBO" if isinstance(kind, list) else "*" if kind in (None, 0, "") else str(kind)


def _link(data: Any) -> tuple[str, UILink]:
    if isinstance(data, list) and len(data) >= 5:
        found = data[:5]
    elif isinstance(data, dict):
        found = [data.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        raise WorkflowError(f"The workflow has a link that is none: {str(data)[:80]}.")
    key, origin, origin_slot, target, target_slot = found
    ends = _key(origin, "origin of a link"), _index(origin_slot), _key(target, "target of a link"), _index(target_slot)
    return _key(key, "link id"), UILink(*ends)


def _key(value: Any, what: str) -> str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return str(value)
    raise WorkflowError(f"The {what} is neither a number nor a text in the workflow: {str(value)[:80]}.")


def _index(value: Any) -> int:
    """Return the slot a link names; some old files hold it as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 9:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise WorkflowError(f"A link of the workflow goes to or from the slot {str(value)[:80]}.")


def _slots(value: Any, node_id: Any) -> list[dict[str, Any]]:
    found = _objects(value, f"inputs or outputs of node {node_id}")
    if len(found) > MAX_SLOTS:
        raise WorkflowError(f"Node {node_id} has {len(found)} inputs or outputs; at most {MAX_SLOTS} are allowed.")
    return found


def _object(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise WorkflowError(f"The {what} of the workflow should be an object, not {str(value)[:80]}.")


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise WorkflowError(f"The {what} of the workflow should be a list, not {str(value)[:80]}.")


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    return [_object(each, f"entries of {what}") for each in _list(value, what)]
