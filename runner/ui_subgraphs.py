"""Subgraphs unfolded into instances, and what feeds an input through reroutes, bypasses and their borders."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import WorkflowError
from .graph import MAX_NODES
from .ui_graph import BYPASS, INPUT_SIDE, MAX_DEPTH, MAX_SLOTS, NEVER, PRIMITIVE, Slot, SubgraphInput, UILink
from .ui_nodes import GETTERS, SEED_BROADCASTER, VIRTUAL, LoadedFile, LoadedGraph, LoadedNode
from .ui_widgets import MISSING

log = logging.getLogger("piying")


@dataclass
class GraphInstance:
    """A graph in one of its places: the canvas, or an instance of a subgraph.

    Attributes:
        prefix: what stands before the ids of its nodes, such as `4:`.
        graph: the nodes and links, shared with other instances.
        parent: the graph that holds the instance; None on the canvas.
        host: the node that is the instance.
        runs: whether its nodes are exported.
        values: what the widgets of the host say, by input; MISSING for inputs without a widget.
        overrides: values of inner inputs that the host shows without an input of its own.
        children: the instances in this graph, by their ids.
    """

    prefix: str
    graph: LoadedGraph
    parent: GraphInstance | None = None
    host: LoadedNode | None = None
    runs: bool = True
    values: list[Any] = field(default_factory=list)
    overrides: dict[tuple[str, str], Any] = field(default_factory=dict)
    children: dict[str, GraphInstance] = field(default_factory=dict)


def unfold(file: LoadedFile) -> list[GraphInstance]:
    """Return the canvas and every instance of a subgraph, outermost first.

    Raises:
        WorkflowError: a subgraph holds itself, or the instances are absurdly deep or many.
    """
    promoted = PromotedWidgets(file)
    instances = [GraphInstance("", file.root)]
    total = len(file.root.nodes)
    # The loop walks the list while it grows.
    for parent in instances:
        for host in parent.graph.nodes.values():
            if not host.subgraph:
                continue
            # A mute or bypass on an instance within another leaves its inner nodes be: only the canvas' own count.
            runs = parent.runs and not (parent.parent is None and host.stored.mode in (NEVER, BYPASS))
            graph, values = file.subgraphs[host.stored.type], promoted.values(host)
            child = GraphInstance(f"{parent.prefix}{host.id}:", graph, parent, host, runs, values)
            # `proxyWidgets` lists the inner widgets that instances of some versions show.
            proxies, stored = host.stored.properties.get("proxyWidgets"), host.stored.widgets_values
            proxies = proxies if isinstance(proxies, list) else []
            if len(proxies) > MAX_SLOTS:
                raise WorkflowError(
                    f"Node {parent.prefix}{host.id} shows {len(proxies)} widgets of its subgraph; at most {MAX_SLOTS} "
                    "are allowed."
                )
            for index, entry in enumerate(proxies):
                if isinstance(entry, list) and len(entry) >= 2:
                    value = stored[index] if isinstance(stored, list) and index < len(stored) else MISSING
                    _apply_proxy(child, promoted, node_id=str(entry[0]), name=str(entry[1]), value=value)
            parent.children[host.id] = child
            instances.append(child)
            total += 1 + len(graph.nodes)
            # A small file may unfold without end: ten levels of ten instances each are 10**10 graphs.
            if total > MAX_NODES:
                raise WorkflowError(
                    f"The workflow's subgraphs unfold to more than the {MAX_NODES} nodes that are allowed."
                )
            if child.prefix.count(":") > MAX_DEPTH:
                raise WorkflowError(
                    f"Node {child.prefix[:40]}…: subgraphs are nested more than {MAX_DEPTH} deep, or one holds itself."
                )
    return instances


class PromotedWidgets:
    """What the widgets of instances say: the file's values, else those of the widgets inside."""

    def __init__(self, file: LoadedFile) -> None:
        self._file = file
        self._defaults: dict[tuple[str, int], Any] = {}
        self._shown: dict[str, dict[tuple[str, str], int]] = {}

    def values(self, host: LoadedNode) -> list[Any]:
        """Return an instance's value for each of its inputs; MISSING where there is no widget."""
        subgraph = host.stored.type
        if host.row:
            return [host.widget_value(port.name) for port in self._file.subgraphs[subgraph].inputs]
        defaults = [self._default(subgraph, index, 0) for index in range(len(self._file.subgraphs[subgraph].inputs))]
        stored = host.stored.widgets_values
        values = iter(stored if isinstance(stored, list) else ())
        return [value if value is MISSING else next(values, value) for value in defaults]

    def shown_by(self, host: LoadedNode, node_id: str, name: str) -> int | None:
        """Return the input of an instance that stands for a widget inside: the first that feeds it first."""
        subgraph = host.stored.type
        if subgraph not in self._shown:
            graph, found = self._file.subgraphs[subgraph], self._shown.setdefault(subgraph, {})
            for index, port in enumerate(graph.inputs):
                for node, at in inner_inputs(graph, port):
                    found.setdefault((node.id, node.inputs[at].name), index)
                    break
        return self._shown[subgraph].get((node_id, name))

    def _default(self, subgraph: str, index: int, depth: int) -> Any:
        """Return the value of the first widget inside that an input of a subgraph feeds."""
        if depth > MAX_DEPTH:
            raise WorkflowError(f"Subgraphs are nested more than {MAX_DEPTH} deep, or one holds itself.")
        if (subgraph, index) not in self._defaults:
            # Before the search, so that it ends where a subgraph holds itself.
            self._defaults[subgraph, index] = MISSING
            graph = self._file.subgraphs[subgraph]
            for node, inner in inner_inputs(graph, graph.inputs[index]):
                if node.subgraph:
                    value = self._default(node.stored.type, inner, depth + 1)
                else:
                    value = node.widget_value(node.inputs[inner].name)
                if value is not MISSING:
                    self._defaults[subgraph, index] = value
                    break
        return self._defaults[subgraph, index]


def inner_inputs(graph: LoadedGraph, port: SubgraphInput) -> Iterator[tuple[LoadedNode, int]]:
    """Yield the nodes and inputs inside a subgraph that one of its inputs feeds."""
    for key in port.links:
        if key in graph.fed and graph.links[key].origin == INPUT_SIDE:
            yield graph.fed[key]


def _apply_proxy(instance: GraphInstance, promoted: PromotedWidgets, *, node_id: str, name: str, value: Any) -> None:
    """Apply the value of one shown inner widget; MISSING stands for the value that the widget has inside."""
    graph = instance.graph
    node = graph.nodes.get(node_id)
    if node is not None and node.index(name) is None:
        # Some versions wrote the ids of the nodes on the way before the widget's name, such as "4: 7: seed".
        name = re.sub(r"^(\s*\d+\s*:\s*(?=\S))+", "", name)
    shown = None if instance.host is None else promoted.shown_by(instance.host, node_id, name)
    if shown is not None:
        instance.values[shown] = instance.values[shown] if value is MISSING else value
        return
    if node is not None and node.stored.type == PRIMITIVE:
        for target, at in graph.fed_by.get(node_id, ()):
            given = target.widget_value(target.inputs[at].name) if value is MISSING else value
            if given is not MISSING:
                instance.overrides[target.id, target.inputs[at].name] = given
        return
    position = None if node is None else node.index(name)
    if node is None or position is None:
        return
    if value is MISSING:
        value = promoted.values(node)[position] if node.subgraph else node.widget_value(name)
    if value is not MISSING and (node.subgraph or name in node.widgets):
        instance.overrides[node.id, name] = value


# What feeds an input


@dataclass(frozen=True)
class Source:
    """Output `slot` of the node with that full id, such as `4:2`."""

    id: str
    slot: int


@dataclass(frozen=True)
class Value:
    """A value that a widget of an instance hands inwards."""

    value: Any


_Place = tuple[str, str, int, str | None, bool]


@dataclass(frozen=True)
class _Input:
    instance: GraphInstance
    node: LoadedNode
    index: int
    # The type wanted at the end of the link; None for the type of this input.
    type: str | None = None

    def place(self) -> _Place:
        return self.instance.prefix, self.node.id, self.index, self.type, True


@dataclass(frozen=True)
class _Output:
    instance: GraphInstance
    node: LoadedNode
    slot: int
    type: str

    def place(self) -> _Place:
        return self.instance.prefix, self.node.id, self.slot, self.type, False


class LinkResolver:
    """Follows links to where they begin."""

    def __init__(self) -> None:
        # Many inputs may hang on one long chain of reroutes: without this, each would walk all of it.
        self._found: dict[_Place, Source | Value | None] = {}

    def resolve(self, instance: GraphInstance, node: LoadedNode, index: int) -> Source | Value | None:
        """Return what feeds an input of a node; None where nothing does, and its own widget counts.

        Raises:
            WorkflowError: the links form a cycle of reroutes, bypassed nodes or subgraphs.
        """
        at: _Input | _Output | Source | Value | None = _Input(instance, node, index)
        path: dict[_Place, None] = {}
        while isinstance(at, _Input | _Output):
            place = at.place()
            if place in path:
                raise WorkflowError(
                    f"Node {instance.prefix}{node.id}, {node.inputs[index].name}: "
                    "the link goes in a circle of reroutes, bypassed nodes or subgraphs."
                )
            path[place] = None
            if place in self._found:
                at = self._found[place]
            else:
                at = _before_input(at) if isinstance(at, _Input) else _before_output(at)
        self._found.update(dict.fromkeys(path, at))
        return at


def _before_input(at: _Input) -> _Input | _Output | Value | None:
    if at.index >= len(at.node.inputs):
        return None
    slot = at.node.inputs[at.index]
    if (at.node.id, slot.name) in at.instance.overrides:
        return Value(at.instance.overrides[at.node.id, slot.name])
    link = at.instance.graph.links.get(slot.link) if slot.link is not None else None
    return None if link is None else _before_link(at.instance, link, at.type or slot.type)


def _before_link(instance: GraphInstance, link: UILink, wanted: str) -> _Input | _Output | Value | None:
    """Return where a link begins: at a node of the same graph, or outside of the subgraph."""
    parent, host = instance.parent, instance.host
    if link.origin != INPUT_SIDE or parent is None or host is None:
        origin = instance.graph.nodes.get(link.origin)
        return None if origin is None else _Output(instance, origin, link.origin_slot, wanted)
    index = link.origin_slot
    if index >= len(host.inputs):
        return None
    slot = host.inputs[index]
    outer = parent.graph.links.get(slot.link) if slot.link is not None else None
    feeder = parent.graph.nodes.get(outer.origin) if outer is not None else None
    if feeder is not None and feeder.stored.type == PRIMITIVE and slot.name in host.widgets:
        return Value(host.widgets[slot.name].value)  # a group node's, into which the PrimitiveNode has written
    if outer is not None or (host.id, slot.name) in parent.overrides:
        return _Input(parent, host, index)
    value = instance.values[index] if index < len(instance.values) else MISSING
    return None if value is MISSING else Value(value)


def _before_output(at: _Output) -> _Input | _Output | Source | Value | None:
    node = at.node
    if node.stored.mode == NEVER:
        return None
    if node.stored.mode == BYPASS:
        index = _bypass_input(node, at.slot, at.type)
        return None if index is None else _Input(at.instance, node, index)
    if node.subgraph:
        child = at.instance.children[node.id]
        link = child.graph.output_links.get(at.slot)
        return None if link is None else _before_link(child, link, at.type)
    if node.stored.type == SEED_BROADCASTER and not node.known:
        values = node.stored.widgets_values
        return Value(values[0]) if isinstance(values, list) and values else None
    if node.stored.type in GETTERS:
        setter = _find_setter(at.instance, node)
        return None if setter is None else _Input(*setter, at.slot, at.type)
    if node.stored.type in VIRTUAL:
        return _Input(at.instance, node, at.slot, at.type)
    return Source(at.instance.prefix + node.id, at.slot)


def _find_setter(instance: GraphInstance, getter: LoadedNode) -> tuple[GraphInstance, LoadedNode] | None:
    """Return the node that sets what another gets, in the same graph, else in those around it.

    Around it no two may have the name: which is meant would be a guess, so the browser takes neither.
    """
    name = getter.constant
    if not name:
        return None
    found: list[tuple[GraphInstance, LoadedNode]] = []
    at: GraphInstance | None = instance
    while at is not None:
        node_class = GETTERS[getter.stored.type]
        found += [(at, setter) for setter in at.graph.setters.get((node_class, name), ())]
        if found and at is instance:
            return found[0]
        at = at.parent
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} nodes set" if found else "no node sets"
    log.warning("%s%s: %s %r, so what it feeds goes without.", instance.prefix, getter.id, problem, name[:80])
    return None


def _bypass_input(node: LoadedNode, slot: int, wanted: str) -> int | None:
    """Return the input that a bypassed node passes on to an output, if any.

    The one in the output's position where the types agree, else the first of the very type, else the
    first that fits.
    """
    if wanted in ("*", ""):
        return slot if slot < len(node.inputs) else 0
    given = node.stored.output_types[slot] if slot < len(node.stored.output_types) else "*"

    def fits(each: Slot) -> bool:
        return connects(each.type, given) and connects(each.type, wanted)

    if slot < len(node.inputs) and fits(node.inputs[slot]):
        return slot
    exact = next((index for index, each in enumerate(node.inputs) if each.type == wanted), None)
    return exact if exact is not None else next((i for i, each in enumerate(node.inputs) if fits(each)), None)


def connects(first: str, second: str) -> bool:
    """Return whether the browser lets slots of two types be linked."""
    if first in ("*", "") or second in ("*", ""):
        return True
    # Unlike the server, the browser compares without regard to case.
    one, other = first.lower().split(","), second.lower().split(",")
    return bool(set(one) & set(other)) or "*" in one or "*" in other
