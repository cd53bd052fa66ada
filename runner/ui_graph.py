"""UI graph: a file as the browser saves it, read once and checked, so that what follows need not doubt it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import WorkflowError
from .graph import MAX_NODES

MAX_SLOTS = 1000
NEVER, BYPASS = 2, 4  # node modes of LiteGraph, the canvas library
PRIMITIVE, REROUTE = "PrimitiveNode", "Reroute"  # of the browser alone, which no server knows
GROUP_PREFIX = "workflow>"  # of the classes of group nodes; once it was "workflow/"
INPUT_SIDE, OUTPUT_SIDE = "-10", "-20"  # the ids that stand for a subgraph's own inputs and outputs in its links
MAX_DEPTH = 100  # of subgraphs and group nodes inside each other
# The browser replaces these on loading, so files with the old names still open.
RENAMED = {
    "T2IAdapterLoader": "ControlNetLoader",
    "ConditioningAverage ": "ConditioningAverage",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
}


@dataclass(frozen=True)
class UILink:
    """A link between two slots, and the type of what it carries."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int
    type: str = "*"


@dataclass(frozen=True)
class Slot:
    """An input: its name, its type, the id of the link that feeds it, and whether a widget stands behind it."""

    name: str
    type: str
    link: str | None = None
    widget: bool = False


@dataclass(frozen=True)
class SubgraphInput:
    """An input of a subgraph, with the ids of the links inside that begin there."""

    name: str
    type: str
    links: list[str]


@dataclass(frozen=True)
class UINode:
    """A node as stored.

    Attributes:
        id, mode, title, properties: as in the file.
        type: its class, or the id of the subgraph that it is an instance of.
        inputs: its inputs.
        output_types: the types of its outputs.
        widgets_values: the values of its widgets, by position or by name.
        data: the JSON that was read.
    """

    id: str
    type: str
    mode: int
    title: str
    inputs: list[Slot]
    output_types: list[str]
    widgets_values: list[Any] | dict[str, Any]
    properties: dict[str, Any]
    data: dict[str, Any]

    @property
    def pack(self) -> str:
        """The pack that the file says it belongs to, empty where it does not."""
        return str(self.properties.get("cnr_id") or self.properties.get("aux_id") or "")

    @property
    def values(self) -> list[Any]:
        """The values of its widgets."""
        stored = self.widgets_values
        return stored if isinstance(stored, list) else list(stored.values())


@dataclass(frozen=True)
class UIGraph:
    """Nodes and links by id; `inputs` are those of a subgraph."""

    nodes: dict[str, UINode]
    links: dict[str, UILink]
    inputs: list[SubgraphInput] = field(default_factory=list)


@dataclass(frozen=True)
class UIFile:
    """A file.

    Attributes:
        root: the graph on the canvas.
        subgraphs: those it may hold instances of, by id.
        last_id: the last node id in use.
        boxes: the groups drawn around nodes, as stored, by subgraph; those of the canvas under "".
    """

    root: UIGraph
    subgraphs: dict[str, UIGraph]
    last_id: int
    boxes: dict[str, list[Any]] = field(default_factory=dict)


def read_ui(workflow: Any) -> UIFile:
    """Return the graphs of a decoded file, no id of a node in more than one of them.

    Raises:
        WorkflowError: it does not have the form the browser saves, or is absurdly large.
    """
    workflow = as_object(workflow, "JSON")
    state = as_object(workflow.get("state") or {}, "state")
    last = workflow.get("last_node_id", state.get("lastNodeId"))
    # A subgraph's definition may hold definitions in turn; the loop walks the list while it grows.
    defining = [workflow]
    for each in defining:
        definitions = as_object(each.get("definitions") or {}, "definitions")
        defining += as_objects(definitions.get("subgraphs"), "definitions.subgraphs")
    subgraphs: dict[str, UIGraph] = {}
    boxes = {"": as_list(workflow.get("groups"), "groups")}
    for each in defining[1:]:
        key = _key(each.get("id"), "subgraph id")
        subgraphs.setdefault(key, _read_graph(each))
        boxes.setdefault(key, as_list(each.get("groups"), "groups"))
    return _with_unique_ids(UIFile(_read_graph(workflow), subgraphs, last if isinstance(last, int) else 0, boxes))


def _read_graph(data: dict[str, Any]) -> UIGraph:
    stored = as_objects(data.get("nodes"), "nodes")
    if len(stored) > MAX_NODES:
        raise WorkflowError(f"The workflow has {len(stored)} nodes; at most {MAX_NODES} are allowed.")
    nodes: dict[str, UINode] = {}
    for node in map(read_node, stored):
        if nodes.setdefault(node.id, node) is not node:
            raise WorkflowError(
                f"Two nodes of the workflow have the id {node.id}: {nodes[node.id].type}, {node.type}."
            )
    # LiteGraph leaves null where some links were.
    links = [_read_link(link) for link in as_list(data.get("links"), "links") if link is not None]
    inputs = [
        SubgraphInput(
            str(each.get("name")),
            _slot_type(each),
            [_key(link, "link of a subgraph") for link in as_list(each.get("linkIds"), "linkIds")],
        )
        for each in as_objects(data.get("inputs"), "inputs")
    ]
    return UIGraph(nodes, dict(links), inputs)


def read_node(data: dict[str, Any]) -> UINode:
    """Return a node of a decoded file.

    Raises:
        WorkflowError: it has no type or id, or a part of it has another form.
    """
    node_type = data.get("type")
    if not isinstance(node_type, str):
        raise WorkflowError(f"Node {data.get('id')!r} of the workflow has no type.")
    node_id = _key(data.get("id"), f"id of a {node_type} node")
    slots = {}
    for side in ("inputs", "outputs"):
        slots[side] = as_objects(data.get(side), f"inputs or outputs of node {node_id}")
        if len(slots[side]) > MAX_SLOTS:
            raise WorkflowError(
                f"Node {node_id} has {len(slots[side])} inputs or outputs; at most {MAX_SLOTS} are allowed."
            )
    inputs = []
    for slot in slots["inputs"]:
        name, link = slot.get("name"), slot.get("link")
        inputs.append(
            Slot(
                name if isinstance(name, str) else "",
                _slot_type(slot),
                None if link is None else _key(link, "link of an input"),
                isinstance(slot.get("widget"), dict),
            )
        )
    values, mode, title = data.get("widgets_values"), data.get("mode"), data.get("title")
    return UINode(
        id=node_id,
        type=RENAMED.get(node_type, re.sub("^workflow/", GROUP_PREFIX, node_type)),
        mode=mode if isinstance(mode, int) else 0,
        title=title if isinstance(title, str) else "",
        inputs=inputs,
        output_types=[_slot_type(slot) for slot in slots["outputs"]],
        widgets_values=values if isinstance(values, list | dict) else [],
        properties=as_object(data.get("properties") or {}, f"properties of node {node_id}"),
        data=data,
    )


def _read_link(data: Any) -> tuple[str, UILink]:
    # Lists on the canvas of most files, objects in subgraphs and where a file follows the newer schema.
    if isinstance(data, list) and len(data) >= 5:
        fields, kind = data[:5], data[5] if len(data) > 5 else None
    elif isinstance(data, dict):
        fields = [data.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        kind = data.get("type")
    else:
        raise WorkflowError(f"The workflow has a link that is none: {str(data)[:80]}.")
    key, origin, origin_slot, target, target_slot = fields
    link = UILink(
        _key(origin, "origin of a link"),
        as_slot(origin_slot),
        _key(target, "target of a link"),
        as_slot(target_slot),
        _slot_type({"type": kind}),
    )
    return _key(key, "link id"), link


def _slot_type(slot: dict[str, Any]) -> str:
    slot_type = slot.get("type")
    # Old files hold a combo's choices in place of its type; 0 is LiteGraph's type that fits all.
    return "COMBO" if isinstance(slot_type, list) else "*" if slot_type in (None, 0, "") else str(slot_type)


def _key(value: Any, what: str) -> str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return str(value)
    raise WorkflowError(f"The {what} is neither a number nor a text in the workflow: {str(value)[:80]}.")


def as_slot(value: Any) -> int:
    """Return a value of a link as the position of a slot; WorkflowError where it is none."""
    # Some old files hold the slot as text.
    if isinstance(value, str) and value.isdecimal() and len(value) < 9:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise WorkflowError(f"A link of the workflow goes to or from the slot {str(value)[:80]}.")


def as_object(value: Any, what: str) -> dict[str, Any]:
    """Return a value that must be an object; WorkflowError, naming `what` it is, where it is none."""
    if isinstance(value, dict):
        return value
    raise WorkflowError(f"The {what} of the workflow should be an object, not {str(value)[:80]}.")


def as_list(value: Any, what: str) -> list[Any]:
    """Return a value that must be a list or null; WorkflowError, naming `what` it is, where it is none."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise WorkflowError(f"The {what} of the workflow should be a list, not {str(value)[:80]}.")


def as_objects(value: Any, what: str) -> list[dict[str, Any]]:
    """Return a value that must be a list of objects, or null; WorkflowError where it is none."""
    return [as_object(each, f"entries of {what}") for each in as_list(value, what)]


def _with_unique_ids(file: UIFile) -> UIFile:
    """Return the file with no id of a node in more than one graph, new ones as the browser gives them on loading.

    Ids of the API form are made of them, so other ids here would be other ids there.
    """
    taken, last = set(file.root.nodes), file.last_id
    renamed: dict[str, dict[str, str]] = {}
    for key, graph in file.subgraphs.items():
        renamed[key] = {}
        for node_id in graph.nodes:
            if node_id in taken:
                last += 1
                while str(last) in taken:
                    last += 1
                renamed[key][node_id] = str(last)
            # Above 15 digits, the numbers of JavaScript skip some.
            elif node_id.isdecimal() and len(node_id) < 16:
                last = max(last, int(node_id))
            taken.add(renamed[key].get(node_id, node_id))
    subgraphs = {key: _with_ids(graph, renamed[key], renamed) for key, graph in file.subgraphs.items()}
    return replace(file, root=_with_ids(file.root, {}, renamed), subgraphs=subgraphs, last_id=last)


def _with_ids(graph: UIGraph, ids: dict[str, str], inner_ids: dict[str, dict[str, str]]) -> UIGraph:
    """Return a graph with new ids of its nodes, and of those inside its instances of subgraphs."""
    nodes = {}
    for node in graph.nodes.values():
        inner, properties = inner_ids.get(node.type), node.properties
        if inner and isinstance(properties.get("proxyWidgets"), list):
            # Entries are [id of a node inside, name of its widget].
            proxies = [
                [inner.get(str(entry[0]), entry[0]), *entry[1:]] if isinstance(entry, list) and entry else entry
                for entry in properties["proxyWidgets"]
            ]
            properties = {**properties, "proxyWidgets": proxies}
        new_id = ids.get(node.id, node.id)
        nodes[new_id] = replace(node, id=new_id, properties=properties)
    links = {
        key: replace(link, origin=ids.get(link.origin, link.origin), target=ids.get(link.target, link.target))
        for key, link in graph.links.items()
    }
    return replace(graph, nodes=nodes, links=links)
