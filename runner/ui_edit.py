"""Values written into a workflow as the browser saves it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .ui_format import scopes_of, to_api
from .ui_graph import INPUT_SIDE
from .ui_live import LiveNode
from .ui_scopes import Scope
from .ui_widgets import MISSING

Assignment = tuple[str, str, Any]  # node id, input, value


def with_values(workflow: Any, info: ObjectInfo, assignments: Iterable[Assignment]) -> dict[str, Any] | None:
    """Return a copy of a UI workflow with the values in the widgets that stand for the inputs.

    None where the browser's form cannot say the same as the API form, such as two instances of a
    subgraph that would have to differ inside.
    """
    changed: dict[str, Any] = copy.deepcopy(workflow)
    assignments = list(assignments)
    try:
        wanted = to_api(workflow, info)
        for node_id, name, value in assignments:
            wanted[node_id]["inputs"][name] = {"__value__": value} if isinstance(value, list) else value
        set_widgets(changed, info, assignments)
        return changed if to_api(changed, info) == wanted else None
    except (WorkflowError, KeyError):
        return None


def set_widgets(workflow: dict[str, Any], info: ObjectInfo, assignments: Iterable[Assignment]) -> None:
    """Write values into a UI workflow in place, cutting the wires on the canvas that fed the inputs before.

    Inputs that have no widget to write to, and wires inside of subgraphs, are left as they are.

    Raises:
        WorkflowError: the workflow is malformed.
    """
    scopes = scopes_of(workflow, info)
    places = {scope.prefix + node.id: (scope, node) for scope in scopes for node in scope.graph.nodes.values()}
    for node_id, name, value in assignments:
        if node_id in places:
            scope, node = places[node_id]
            index = node.index(name)
            if index is not None and _fed_from_outside(scope, node, index):
                _write_to_instance(scope, node, index, value)
            else:
                _write(node, name, value)
                if scope.parent is None:
                    _cut(workflow, node, name)


def _fed_from_outside(scope: Scope, node: LiveNode, index: int) -> bool:
    slots = node.inputs[index : index + 1]
    link = scope.graph.links.get(slots[0].link or "") if slots else None
    return link is not None and link.origin == INPUT_SIDE and scope.parent is not None


def _write_to_instance(scope: Scope, node: LiveNode, index: int, value: Any) -> None:
    """Write a value into the widget of the outermost instance that shows the input."""
    while _fed_from_outside(scope, node, index) and scope.parent is not None and scope.host is not None:
        index = scope.graph.links[node.inputs[index].link or ""].origin_slot
        host, values = scope.host, scope.values
        scope, node = scope.parent, host
    if index < len(values):
        values[index] = value
        node.stored.data["widgets_values"] = [each for each in values if each is not MISSING]


def _write(node: LiveNode, name: str, value: Any) -> None:
    if name not in node.widgets:
        return
    node.widgets[name].value = value
    if isinstance(node.stored.stored, dict):
        node.stored.data["widgets_values"][name] = value
    else:
        row = [widget for widget in node.row if widget.stored]
        node.stored.data["widgets_values"] = [None if w.value is MISSING else w.value for w in row]


def _cut(workflow: dict[str, Any], node: LiveNode, name: str) -> None:
    for entry in node.stored.data.get("inputs") or []:
        if entry.get("name") == name and entry.get("link") is not None:
            _remove(workflow, str(entry["link"]))
            entry["link"] = None


def _remove(workflow: dict[str, Any], link_id: str) -> None:
    workflow["links"] = [link for link in workflow["links"] if link is None or _id(link) != link_id]
    for node in workflow["nodes"]:
        for output in node.get("outputs") or []:
            links = output.get("links")
            if isinstance(links, list):
                output["links"] = [each for each in links if str(each) != link_id]


def _id(link: Any) -> str:
    return str(link["id"] if isinstance(link, dict) else link[0])
