"""The nodes of a graph as the browser holds them once loaded: inputs and widgets by definition, values by file."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .definitions import ObjectInfo
from .ui_graph import OUTPUT_SIDE, Port, Slot, UIFile, UIGraph, UILink, UINode
from .ui_specs import CUSTOM_COMBO, Spec, custom_combo, declared_specs, definition_of
from .ui_widgets import MISSING, Layout, Widget, aligned, lay_out

NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
VIRTUAL = (*NOTES, REROUTE, PRIMITIVE)


@dataclass
class LiveNode:
    """A node with the inputs and widgets its class has.

    Attributes:
        stored: what the file holds.
        inputs: those of the definition in its order, then those only the file has.
        widgets: those that the API form has, by name.
        row: all widgets, in the browser's order.
        known: whether its class is defined, or is one of the browser's own.
        subgraph: whether it is an instance of a subgraph.
    """

    stored: UINode
    inputs: list[Slot]
    widgets: dict[str, Widget] = field(default_factory=dict)
    row: list[Widget] = field(default_factory=list)
    known: bool = True
    subgraph: bool = False

    @property
    def id(self) -> str:
        """The id within its graph."""
        return self.stored.id

    def index(self, name: str) -> int | None:
        """Return the position of the input of that name."""
        return next((index for index, slot in enumerate(self.inputs) if slot.name == name), None)


@dataclass
class LiveGraph:
    """The nodes and wires of one graph, the inputs of a subgraph, and the wire that feeds each of its outputs."""

    nodes: dict[str, LiveNode]
    links: dict[str, UILink]
    inputs: list[Port]
    exits: dict[int, UILink]


@dataclass
class LiveFile:
    """The graph on the canvas and the subgraphs."""

    root: LiveGraph
    subgraphs: dict[str, LiveGraph]


def load(file: UIFile, info: ObjectInfo) -> LiveFile:
    """Return the graphs with their widgets, as after loading the file in the browser.

    Raises:
        WorkflowError: a definition is malformed.
    """
    specs: dict[str, list[Spec] | None] = {}
    graphs = [_load(graph, file, info, specs) for graph in (file.root, *file.subgraphs.values())]
    return LiveFile(graphs[0], dict(zip(file.subgraphs, graphs[1:], strict=True)))


def _load(graph: UIGraph, file: UIFile, info: ObjectInfo, specs: dict[str, list[Spec] | None]) -> LiveGraph:
    nodes = {key: _live(node, file, info, specs) for key, node in graph.nodes.items()}
    # Where a file has two wires to one output, the browser keeps the first.
    exits = {link.target_slot: link for link in reversed(graph.links.values()) if link.target == OUTPUT_SIDE}
    return LiveGraph(nodes, graph.links, graph.inputs, exits)


def _live(node: UINode, file: UIFile, info: ObjectInfo, specs: dict[str, list[Spec] | None]) -> LiveNode:
    if node.kind in file.subgraphs:
        ports = [Slot(port.name, port.kind) for port in file.subgraphs[node.kind].inputs]
        return LiveNode(node, _merged(ports, node.inputs, extra=False), subgraph=True)
    if node.kind in VIRTUAL:
        return LiveNode(node, node.inputs)
    if node.kind not in specs:
        definition = definition_of(info, node.kind)
        specs[node.kind] = None if definition is None else declared_specs(node.kind, definition)
    declared = specs[node.kind]
    if declared is None:
        return LiveNode(node, node.inputs, known=False)
    values = aligned(declared, node.stored)
    if node.kind == CUSTOM_COMBO and isinstance(node.stored, list):
        declared, values = custom_combo(declared, node.stored)
    layout = lay_out(declared, values)
    inputs = _without_orphans(_merged(_slots(layout), node.inputs), {widget.name for widget in layout.widgets})
    return LiveNode(node, inputs, {w.name: w for w in layout.widgets if w.exported}, layout.widgets)


def _without_orphans(slots: list[Slot], widgets: set[str]) -> list[Slot]:
    """Return the inputs without those that stood for a widget which is gone.

    The browser removes them while it walks the list, and so steps over the one that follows each.
    """
    kept, stepped_over = [], False
    for slot in slots:
        gone = slot.widget and slot.name not in widgets and not stepped_over
        kept += [] if gone else [slot]
        stepped_over = gone
    return kept


def _slots(layout: Layout) -> list[Slot]:
    """Return the inputs of a definition: the browser puts those without a widget first."""
    sockets = [Slot(s.name, s.kind) for s in layout.specs if not s.is_widget and not _open_ended(s)]
    return sockets + [Slot(s.name, s.kind, widget=True) for s in layout.specs if s.is_widget]


def _open_ended(spec: Spec) -> bool:
    """Return whether the file alone knows the inputs, or their types, that the declaration stands for."""
    return spec.kind.startswith("COMFY_") and spec.kind.endswith("_V3")


def _merged(declared: list[Slot], stored: list[Slot], extra: bool = True) -> list[Slot]:
    """Return the declared inputs with the wires stored for them, by name and in turn, then those only stored."""
    waiting: dict[str, deque[Slot]] = {}
    for slot in stored:
        waiting.setdefault(slot.name, deque()).append(slot)
    found = []
    for slot in declared:
        match = waiting[slot.name].popleft() if waiting.get(slot.name) else None
        found.append(Slot(slot.name, slot.kind, match.link if match else None, slot.widget))
    names = {slot.name for slot in declared}
    return found + [slot for slot in stored if extra and slot.name not in names]


def fed_input(graph: LiveGraph, link: UILink, target: LiveNode) -> int | None:
    """Return which input a wire feeds: the one that names it, for positions change between versions."""
    found = (i for i, slot in enumerate(target.inputs) if slot.link is not None and graph.links.get(slot.link) is link)
    return next(found, None)


def value_of(widget: Widget | None) -> Any:
    """Return a widget's value; MISSING where there is no widget or value."""
    return MISSING if widget is None else widget.value
