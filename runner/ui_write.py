"""UI form of an API form: a workflow file that the browser opens, its nodes laid out in columns."""

from __future__ import annotations

import uuid
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .graph import Link, Node, execution_order, parse_graph
from .ui_widgets import MISSING, declared_specs, lay_out
from .validate import check_known

WIDTH, GAP = 320, 60
LINE, TEXT_HEIGHT = 26, 120  # of a slot or a widget, and of a text of several lines


def to_ui(api: dict[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Return the UI form of a workflow, with new ids; inputs that it leaves open get their defaults.

    Raises:
        WorkflowError: the API form is malformed, its links form a cycle, or a class is not in `info`.
    """
    graph = parse_graph(api)
    order = execution_order(graph, list(graph))
    check_known([(node.class_type, str(node), node.pack, ()) for node in order], info)
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    columns: dict[str, int] = {}
    bottoms: dict[int, int] = {}
    for number, node in enumerate(order, 1):
        made = nodes[node.id] = _node(number, node, info[node.class_type])
        for index, slot in enumerate(made["inputs"]):
            link = node.inputs.get(slot["name"])
            if isinstance(link, Link):
                slot["link"] = len(links) + 1
                source = nodes[link.source]
                if not 0 <= link.slot < len(source["outputs"]):
                    raise WorkflowError(
                        f"{node}: {slot['name']} is linked to an output that {source['type']} does not have."
                    )
                links.append([slot["link"], source["id"], link.slot, number, index, slot["type"]])
                source["outputs"][link.slot]["links"].append(slot["link"])
        # Each node stands right of all that it is made from.
        column = columns[node.id] = max((columns[link.source] + 1 for _, link in node.links()), default=0)
        made["pos"] = [column * (WIDTH + GAP), bottoms.get(column, 0)]
        bottoms[column] = bottoms.get(column, 0) + made["size"][1] + GAP
    return {
        "id": str(uuid.uuid4()),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(number: int, node: Node, definition: dict[str, Any]) -> dict[str, Any]:
    """Return a node as the browser stores it, not linked yet."""
    values = {name: value for name, value in node.inputs.items() if not isinstance(value, Link)}
    layout = lay_out(declared_specs(node.class_type, definition), values)
    for widget in layout.widgets:
        if widget.name == "control_after_generate":
            widget.value = "fixed"  # so that the file gives the same result twice
    # Inputs without a widget first, as the browser has them.
    specs = sorted(layout.specs, key=lambda spec: spec.is_widget)
    inputs = [
        {"name": spec.name, "type": spec.type, "link": None}
        | ({"widget": {"name": spec.name}} if spec.is_widget else {})
        for spec in specs
    ]
    names = definition.get("output_name") or definition["output"]
    outputs: list[dict[str, Any]] = [
        {"name": str(name), "type": "COMBO" if isinstance(kind, list) else kind, "links": []}
        for name, kind in zip(names, definition["output"], strict=False)
    ]
    texts = sum(bool(widget.spec.options.get("multiline")) for widget in layout.widgets)
    height = LINE * (2 + max(len(inputs), len(outputs)) + len(layout.widgets)) + TEXT_HEIGHT * texts
    return {
        "id": number,
        "type": node.class_type,
        "pos": [0, 0],
        "size": [WIDTH, height],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.class_type},
        "widgets_values": [None if w.value is MISSING else w.value for w in layout.widgets if w.stored],
    } | ({} if node.title in (node.class_type, definition.get("display_name")) else {"title": node.title})
