"""Edits of a UI workflow: values written into the widgets that stand for inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .graph import Assignment
from .ui_format import load_instances, unfilled, wrapped
from .ui_graph import INPUT_SIDE, SubgraphInput
from .ui_nodes import LoadedNode
from .ui_subgraphs import GraphInstance, inner_inputs
from .ui_widgets import MISSING


def with_values(workflow: Any, info: ObjectInfo, assignments: Iterable[Assignment]) -> dict[str, Any] | None:
    """Return a copy of a UI workflow with the values in the widgets that stand for the inputs.

    None where the browser's form cannot say the same as the API form, such as two instances of a
    subgraph that would have to differ inside.
    """
    changed: dict[str, Any] = copy.deepcopy(workflow)
    assignments = list(assignments)
    try:
        wanted, _ = unfilled(workflow, info)
        for node_id, name, value in assignments:
            wanted[node_id]["inputs"][name] = wrapped(value)
        set_widgets(changed, info, assignments)
        # Compared as a whole: a widget may feed more inputs than the one that was meant.
        return changed if unfilled(changed, info)[0] == wanted else None
    except (WorkflowError, KeyError):
        return None


def instance_inputs(workflow: Any, info: ObjectInfo) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return what the inputs of a workflow's subgraph instances stand for.

    Returns:
        {(the instance's id or title, its input): [(id of a node inside, its input), …]}. A title that several
        instances have stands for none.

    Raises:
        WorkflowError: the workflow is malformed.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    titles: dict[str, list[GraphInstance]] = {}
    instances = [one for one in load_instances(workflow, info) if one.host is not None]
    for instance in instances:
        assert instance.host is not None
        if instance.host.stored.title:
            titles.setdefault(instance.host.stored.title, []).append(instance)
        for port in instance.graph.inputs:
            found[instance.prefix.removesuffix(":"), port.name] = list(_inside(instance, port))
    for title, alike in titles.items():
        for port in alike[0].graph.inputs if len(alike) == 1 else ():
            found.setdefault((title, port.name), found[alike[0].prefix.removesuffix(":"), port.name])
    return found


def _inside(instance: GraphInstance, port: SubgraphInput) -> Iterator[tuple[str, str]]:
    """Yield the nodes and inputs that an instance's input feeds, those of instances within it in their place."""
    for node, at in inner_inputs(instance.graph, port):
        inner = instance.children.get(node.id)
        if inner is None:
            yield instance.prefix + node.id, node.inputs[at].name
        elif at < len(inner.graph.inputs):
            yield from _inside(inner, inner.graph.inputs[at])


def set_widgets(workflow: dict[str, Any], info: ObjectInfo, assignments: Iterable[Assignment]) -> None:
    """Write values into a UI workflow in place, and remove the links on the canvas that fed the inputs before.

    Inputs that have no widget to write to, and links inside of subgraphs, are left as they are.

    Raises:
        WorkflowError: the workflow is malformed.
    """
    instances = load_instances(workflow, info)
    places = {each.prefix + node.id: (each, node) for each in instances for node in each.graph.nodes.values()}
    for node_id, name, value in assignments:
        if node_id not in places:
            continue
        instance, node = places[node_id]
        index = node.index(name)
        if index is not None and _fed_from_outside(instance, node, index):
            _write_to_host(instance, node, index, value)
            continue
        if name in node.widgets:
            node.widgets[name].value = value
            _store_row(node)
        # Instances share the links of their subgraph, so those may be needed elsewhere.
        if instance.parent is None:
            for entry in node.stored.data.get("inputs") or []:
                if entry.get("name") == name and entry.get("link") is not None:
                    _remove_link(workflow, str(entry["link"]))
                    entry["link"] = None


def _store_row(node: LoadedNode) -> None:
    """Write the widgets' values into the JSON of a node, in the form that it has."""
    row = {widget.name: None if widget.value is MISSING else widget.value for widget in node.row if widget.stored}
    if isinstance(node.stored.widgets_values, dict):
        node.stored.data["widgets_values"] |= row
    else:
        node.stored.data["widgets_values"] = list(row.values())


def _fed_from_outside(instance: GraphInstance, node: LoadedNode, index: int) -> bool:
    slots = node.inputs[index : index + 1]
    link = instance.graph.links.get(slots[0].link or "") if slots else None
    return link is not None and link.origin == INPUT_SIDE and instance.parent is not None


def _write_to_host(instance: GraphInstance, node: LoadedNode, index: int, value: Any) -> None:
    """Write a value into the widget of the outermost instance that shows the input."""
    values: list[Any] = []
    while _fed_from_outside(instance, node, index) and instance.parent is not None and instance.host is not None:
        index = instance.graph.links[node.inputs[index].link or ""].origin_slot
        values, node = instance.values, instance.host
        instance = instance.parent
    if node.row and node.inputs[index].name in node.widgets:
        node.widgets[node.inputs[index].name].value = value
        _store_row(node)
    elif index < len(values):
        values[index] = value
        node.stored.data["widgets_values"] = [each for each in values if each is not MISSING]


def _remove_link(workflow: dict[str, Any], link_id: str) -> None:
    def id_of(link: Any) -> str:
        return str(link["id"] if isinstance(link, dict) else link[0])

    workflow["links"] = [link for link in workflow["links"] if link is None or id_of(link) != link_id]
    # Outputs list their links too, and the browser believes both lists.
    for node in workflow["nodes"]:
        for output in node.get("outputs") or []:
            links = output.get("links")
            if isinstance(links, list):
                output["links"] = [each for each in links if str(each) != link_id]
