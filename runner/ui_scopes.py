"""Instances of subgraphs, unfolded: one scope for each, and the values that its widgets hand inwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import WorkflowError
from .graph import MAX_NODES
from .ui_graph import BYPASS, INPUT_SIDE, NEVER, Port
from .ui_live import PRIMITIVE, LiveFile, LiveGraph, LiveNode, fed_input, value_of
from .ui_widgets import MISSING

MAX_DEPTH = 100


@dataclass
class Scope:
    """A graph in one of its places: the canvas, or an instance of a subgraph.

    Attributes:
        prefix: what stands before the ids of its nodes, such as `4:`.
        graph: the nodes and wires, shared with other instances.
        parent: the scope that holds the instance; None on the canvas.
        host: the node that is the instance.
        runs: whether its nodes are exported.
        values: what the instance's widgets say, by input; MISSING for inputs without a widget.
        overrides: values of inner inputs that the instance shows without an input of its own.
        children: the scopes of the instances in this graph, by their ids.
    """

    prefix: str
    graph: LiveGraph
    parent: Scope | None = None
    host: LiveNode | None = None
    runs: bool = True
    values: list[Any] = field(default_factory=list)
    overrides: dict[tuple[str, str], Any] = field(default_factory=dict)
    children: dict[str, Scope] = field(default_factory=dict)


def unfold(file: LiveFile) -> list[Scope]:
    """Return the canvas and every instance of a subgraph, outermost first.

    Raises:
        WorkflowError: a subgraph holds itself, or the instances are absurdly deep or many.
    """
    promoted = Promoted(file)
    scopes = [Scope("", file.root)]
    total = len(file.root.nodes)
    for scope in scopes:
        for node in scope.graph.nodes.values():
            if node.subgraph:
                child = _instance(scope, node, file, promoted)
                scope.children[node.id] = child
                scopes.append(child)
                total += 1 + len(child.graph.nodes)
                _check(child, total)
    return scopes


def _check(scope: Scope, total: int) -> None:
    assert scope.host is not None
    if total > MAX_NODES:
        raise WorkflowError(f"The workflow's subgraphs unfold to more than the {MAX_NODES} nodes that are allowed.")
    if scope.prefix.count(":") > MAX_DEPTH:
        raise WorkflowError(
            f"Node {scope.prefix[:40]}…: subgraphs are nested more than {MAX_DEPTH} deep, or one holds itself."
        )


def _instance(scope: Scope, node: LiveNode, file: LiveFile, promoted: Promoted) -> Scope:
    graph = file.subgraphs[node.stored.kind]
    # A mute or bypass on an instance within another leaves its inner nodes be: only the canvas' own count.
    runs = scope.runs and not (scope.parent is None and node.stored.mode in (NEVER, BYPASS))
    values = promoted.values(node)
    child = Scope(f"{scope.prefix}{node.id}:", graph, scope, node, runs, values)
    _apply_proxies(child, node, promoted)
    return child


class Promoted:
    """What the widgets of instances say: the file's values, else those of the widgets inside."""

    def __init__(self, file: LiveFile) -> None:
        self._file = file
        self._inner: dict[tuple[str, int], Any] = {}

    def values(self, node: LiveNode) -> list[Any]:
        """Return an instance's value for each of its inputs; MISSING where there is no widget."""
        graph = self._file.subgraphs[node.stored.kind]
        found = [self._default(node.stored.kind, index, 0) for index in range(len(graph.inputs))]
        stored = node.stored.stored
        values = iter(stored if isinstance(stored, list) else ())
        return [value if value is MISSING else next(values, value) for value in found]

    def _default(self, kind: str, index: int, depth: int) -> Any:
        """Return what an instance's widget says by itself, which is what the widget inside says."""
        if depth > MAX_DEPTH:
            raise WorkflowError(f"Subgraphs are nested more than {MAX_DEPTH} deep, or one holds itself.")
        if (kind, index) not in self._inner:
            self._inner[kind, index] = MISSING
            self._inner[kind, index] = self._look_inside(kind, index, depth)
        return self._inner[kind, index]

    def _look_inside(self, kind: str, index: int, depth: int) -> Any:
        graph = self._file.subgraphs[kind]
        for node, inner in targets(graph, graph.inputs[index]):
            name = node.inputs[inner].name
            value = value_of(node.widgets.get(name))
            if node.subgraph:
                value = self._default(node.stored.kind, inner, depth + 1)
            if value is not MISSING:
                return value
        return MISSING


def targets(graph: LiveGraph, port: Port) -> Iterator[tuple[LiveNode, int]]:
    """Yield the nodes and inputs inside a subgraph that one of its inputs feeds."""
    for key in port.links:
        link = graph.links.get(key)
        node = graph.nodes.get(link.target) if link and link.origin == INPUT_SIDE else None
        index = fed_input(graph, link, node) if link and node else None
        if node is not None and index is not None:
            yield node, index


def _apply_proxies(scope: Scope, host: LiveNode, promoted: Promoted) -> None:
    """Apply `proxyWidgets`, the list of inner widgets that instances of some versions show."""
    proxies, stored = host.stored.properties.get("proxyWidgets"), host.stored.stored
    for index, entry in enumerate(proxies if isinstance(proxies, list) else ()):
        if isinstance(entry, list) and len(entry) >= 2:
            given = stored[index] if isinstance(stored, list) and index < len(stored) else MISSING
            _apply_proxy(scope, str(entry[0]), str(entry[1]), given, promoted)


def _apply_proxy(scope: Scope, node_id: str, name: str, given: Any, promoted: Promoted) -> None:
    node = scope.graph.nodes.get(node_id)
    name = _known_name(node, name)
    for index, port in enumerate(scope.graph.inputs):
        if next(((n.id, n.inputs[at].name) for n, at in targets(scope.graph, port)), None) == (node_id, name):
            scope.values[index] = scope.values[index] if given is MISSING else given
            return
    if node is None:
        return
    if node.stored.kind == PRIMITIVE:
        scope.overrides.update(_fed_by_primitive(scope.graph, node, given))
    elif node.subgraph:
        inner = node.index(name)
        value = promoted.values(node)[inner] if inner is not None and given is MISSING else given
        _override(scope, node, name, value if inner is not None else MISSING)
    else:
        _override(scope, node, name, value_of(node.widgets.get(name)) if given is MISSING else given)


def _override(scope: Scope, node: LiveNode, name: str, value: Any) -> None:
    index = node.index(name)
    if index is not None and value is not MISSING and (node.subgraph or name in node.widgets):
        scope.overrides[node.id, name] = value


def _known_name(node: LiveNode | None, name: str) -> str:
    """Return the widget's name without the node ids that some versions wrote before it."""
    while node is not None and node.index(name) is None and (found := re.match(r"\s*\d+\s*:\s*(?=\S)", name)):
        name = name[found.end() :]
    return name


def _fed_by_primitive(graph: LiveGraph, node: LiveNode, given: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield the inputs that a PrimitiveNode feeds: the instance's value takes its place, else their own do."""
    for link in graph.links.values():
        target = graph.nodes.get(link.target)
        index = fed_input(graph, link, target) if link.origin == node.id and target is not None else None
        if target is not None and index is not None:
            name = target.inputs[index].name
            value = value_of(target.widgets.get(name)) if given is MISSING else given
            if value is not MISSING:
                yield (target.id, name), value
