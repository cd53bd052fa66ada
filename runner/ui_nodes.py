"""Nodes as the browser holds them once a file is loaded: inputs and widgets by definition, values by file."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

from .definitions import ObjectInfo
from .errors import WorkflowError
from .ui_graph import OUTPUT_SIDE, PRIMITIVE, REROUTE, Slot, SubgraphInput, UIFile, UILink, UINode
from .ui_groups import GroupNode
from .ui_widgets import (
    CUSTOM_COMBO,
    MISSING,
    Spec,
    Widget,
    aligned,
    custom_combo,
    declared_specs,
    lay_out,
    migrated_settings,
)

log = logging.getLogger("piying")

# KJNodes' and Easy-Use's nodes that hand on a value by its name: class of the reader → class of the writer.
GETTERS = {"GetNode": "SetNode", "easy getNode": "easy setNode"}
# Use Everywhere's nodes, which hand on values without links: exported where their pack is there, never needed to run.
SEED_BROADCASTER = "Seed Everywhere"
BROADCASTERS = {
    *("Anything Everywhere", "Anything Everywhere?", "Anything Everywhere3", "Prompts Everywhere"),
    SEED_BROADCASTER,
}
# Nodes of the browser alone, which no server knows: its own, and those of packs. Output n of one is its input n.
VIRTUAL = {
    *("Note", "MarkdownNote", REROUTE, PRIMITIVE),
    *(*GETTERS, *GETTERS.values()),
    *("Reroute (rgthree)", "Label (rgthree)", "Bookmark (rgthree)", "Node Collector (rgthree)"),
    *("Fast Muter (rgthree)", "Fast Bypasser (rgthree)", "Fast Groups Muter (rgthree)"),
    *("Fast Groups Bypasser (rgthree)", "Fast Actions Button (rgthree)", "Random Unmuter (rgthree)"),
    *("Mute / Bypass Relay (rgthree)", "Mute / Bypass Repeater (rgthree)"),
}
NUMBERS = ("INT", "FLOAT")


@dataclass
class LoadedNode:
    """A node with the inputs and widgets its class has.

    Attributes:
        stored: what the file holds.
        inputs: those of the definition in its order, then those only the file has.
        widgets: those that the API form has, by name.
        row: all widgets, in the browser's order.
        known: whether its class is defined, or is one of the browser's own.
        subgraph: whether it is an instance of a subgraph, or a group node: that has widgets of its own.
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
        return self._positions.get(name)

    @cached_property
    def _positions(self) -> dict[str, int]:
        # The first counts where two have one name.
        return {slot.name: index for index, slot in reversed(list(enumerate(self.inputs)))}

    @property
    def constant(self) -> str:
        """The name under which a node of `GETTERS` sets or gets a value; empty where it has none."""
        values = self.stored.widgets_values
        return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else ""

    def widget_value(self, name: str) -> Any:
        """Return the value of a widget; MISSING where there is no such widget, or no value."""
        return self.widgets[name].value if name in self.widgets else MISSING


@dataclass
class LoadedGraph:
    """The nodes and links of one graph, the inputs of a subgraph, and the link that feeds each of its outputs."""

    nodes: dict[str, LoadedNode]
    links: dict[str, UILink]
    inputs: list[SubgraphInput]
    output_links: dict[int, UILink]

    @cached_property
    def setters(self) -> dict[tuple[str, str], list[LoadedNode]]:
        """The nodes that set a value for others to get, by class and name."""
        found: dict[tuple[str, str], list[LoadedNode]] = {}
        for node in self.nodes.values():
            if node.stored.type in GETTERS.values():
                found.setdefault((node.stored.type, node.constant), []).append(node)
        return found

    @cached_property
    def fed(self) -> dict[str, tuple[LoadedNode, int]]:
        """The node and the input that each link feeds, by the id of the link; not those that end nowhere.

        By the input that names the link, not by its position, which changes between versions of a node.
        """
        found: dict[str, tuple[LoadedNode, int]] = {}
        for node in self.nodes.values():
            for index, slot in enumerate(node.inputs):
                link = self.links.get(slot.link) if slot.link is not None else None
                if slot.link is not None and link is not None and link.target == node.id:
                    found.setdefault(slot.link, (node, index))
        return found

    @cached_property
    def fed_by(self) -> dict[str, list[tuple[LoadedNode, int]]]:
        """The nodes and inputs that each node feeds, by its id."""
        found: dict[str, list[tuple[LoadedNode, int]]] = {}
        for key, end in self.fed.items():
            found.setdefault(self.links[key].origin, []).append(end)
        return found


@dataclass
class LoadedFile:
    """The graph on the canvas and the subgraphs."""

    root: LoadedGraph
    subgraphs: dict[str, LoadedGraph]


def load(file: UIFile, info: ObjectInfo, groups: dict[str, GroupNode]) -> LoadedFile:
    """Return the graphs with their widgets, as after loading the file in the browser; group nodes are subgraphs.

    Raises:
        WorkflowError: a definition is malformed.
    """
    specs: dict[str, list[Spec] | None] = {}
    graphs = []
    # Behind those with unique ids: the nodes in a group node are called by their positions.
    file = replace(file, subgraphs=file.subgraphs | {name: group.graph for name, group in groups.items()})
    for graph in (file.root, *file.subgraphs.values()):
        nodes = {key: _load_node(node, file, info, specs=specs, groups=groups) for key, node in graph.nodes.items()}
        # Where a file has two links to one output, the browser keeps the first.
        ends = [link for link in reversed(graph.links.values()) if link.target == OUTPUT_SIDE]
        graphs.append(LoadedGraph(nodes, graph.links, graph.inputs, {link.target_slot: link for link in ends}))
    return LoadedFile(graphs[0], dict(zip(file.subgraphs, graphs[1:], strict=True)))


def _load_node(
    node: UINode,
    file: UIFile,
    info: ObjectInfo,
    *,
    specs: dict[str, list[Spec] | None],
    groups: dict[str, GroupNode],
) -> LoadedNode:
    if node.type in file.subgraphs:
        slots = [Slot(each.name, each.type) for each in file.subgraphs[node.type].inputs]
        loaded = LoadedNode(node, _with_links(slots, node.inputs), subgraph=True)
        if node.type in groups:
            loaded.row = lay_out(
                groups[node.type].specs, aligned(groups[node.type].specs, node.widgets_values)
            ).widgets
            loaded.widgets = {widget.name: widget for widget in loaded.row if widget.exported}
        return loaded
    if node.type in VIRTUAL:
        return LoadedNode(node, node.inputs)
    if node.type not in specs:
        definition = info.get(node.type)
        if definition is not None and not isinstance(definition, dict):
            raise WorkflowError(f"The definition of {node.type!r} is not one of ComfyUI's /object_info.")
        specs[node.type] = None if definition is None else declared_specs(node.type, definition)
    declared = specs[node.type]
    if declared is None:
        return LoadedNode(node, node.inputs, known=False)
    values = aligned(declared, migrated_settings(node.type, node.widgets_values))
    if node.type == CUSTOM_COMBO and isinstance(node.widgets_values, list):
        declared, values = custom_combo(declared, node.widgets_values)
    layout = lay_out(declared, values)
    saved = node.data.get("widgets_values", [])
    if not isinstance(saved, list | dict) and any(widget.stored for widget in layout.widgets):
        log.warning(
            "%s (node %s): the file holds no values for its widgets (widgets_values is %s): defaults are used.",
            node.title or node.type,
            node.id,
            str(saved)[:40],
        )
    # The browser puts inputs without a widget first. Of growing lists of inputs (COMFY_AUTOGROW_V3 and the
    # like) the file alone knows how long they are.
    slots = [
        Slot(spec.name, spec.type)
        for spec in layout.specs
        if not spec.is_widget and not (spec.type.startswith("COMFY_") and spec.type.endswith("_V3"))
    ]
    slots += [Slot(spec.name, spec.type, widget=True) for spec in layout.specs if spec.is_widget]
    names = {slot.name for slot in slots}
    slots = _with_links(slots, node.inputs) + [slot for slot in node.inputs if slot.name not in names]
    inputs, stepped_over, widgets = [], False, {widget.name for widget in layout.widgets}
    for slot in slots:
        # Inputs whose widget is gone are gone too. The browser removes them while it walks the list, and so
        # steps over the one that follows each.
        gone = slot.widget and slot.name not in widgets and not stepped_over
        inputs += [] if gone else [slot]
        stepped_over = gone
    return LoadedNode(node, inputs, {w.name: w for w in layout.widgets if w.exported}, layout.widgets)


def _with_links(declared: list[Slot], stored: list[Slot]) -> list[Slot]:
    """Return the declared inputs with the links stored for them, by name and in turn."""
    waiting: dict[str, deque[Slot]] = {}
    for slot in stored:
        waiting.setdefault(slot.name, deque()).append(slot)
    found = []
    for slot in declared:
        match = waiting[slot.name].popleft() if waiting.get(slot.name) else None
        found.append(Slot(slot.name, slot.type, match.link if match else None, slot.widget))
    return found


# PrimitiveNodes: at export, the browser writes their value into the widgets they feed


def apply_primitives(graph: LoadedGraph) -> None:
    """Write the values of the PrimitiveNodes of a graph into the widgets they feed."""
    fed: dict[str, list[Widget]] = {}
    for key, link in graph.links.items():
        source = graph.nodes.get(link.origin)
        if source is not None and source.stored.type == PRIMITIVE and key in graph.fed:
            target, index = graph.fed[key]
            if target.inputs[index].name in target.widgets:
                fed.setdefault(link.origin, []).append(target.widgets[target.inputs[index].name])
    for node_id, widgets in fed.items():
        values = graph.nodes[node_id].stored.widgets_values
        value = values[0] if isinstance(values, list) and values else widgets[0].value
        common = _common_spec([widget.spec for widget in widgets])
        if _is_number(value) and common.type in NUMBERS:
            low, high = _range(common.options)
            value = rounded(min(max(value, low), high), common)
        for widget in widgets:
            widget.value = rounded(value, widget.spec)


def _common_spec(specs: list[Spec]) -> Spec:
    """Return the widget that a PrimitiveNode shows: the first it feeds, within the ranges of all."""
    first = specs[0]
    options = first.options
    # The first is merged with itself, as in the browser: that gives it a range and a step where it declares none.
    for spec in specs:
        if spec.widget_type != first.widget_type:
            continue
        (low, high), (least, most) = _range(options), _range(spec.options)
        if spec is first or (low <= most and high >= least):
            steps = [step if _is_number(step := each.get("step")) else 1 for each in (options, spec.options)]
            whole = [step for step in steps if isinstance(step, int)]
            # A value must be a multiple of both steps; of fractions the browser takes the coarser one.
            step = math.lcm(*whole) if len(whole) == len(steps) else max(steps)
            options = {**options, "min": max(low, least), "max": min(high, most), "step": step}
    return Spec(first.name, first.widget_type, options)


def _range(options: dict[str, Any]) -> tuple[float, float]:
    low, high = options.get("min"), options.get("max")
    return low if _is_number(low) else -math.inf, high if _is_number(high) else math.inf


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded(value: Any, spec: Spec) -> Any:
    """Return a value as a widget rounds it when something else sets it."""
    if not _is_number(value):
        return value
    if spec.widget_type == "INT":
        return _to_step(value, spec.options)
    return _to_precision(value, spec.options) if spec.widget_type == "FLOAT" else value


def _to_step(value: float, options: dict[str, Any]) -> float:
    step, least = options.get("step") or 1, options.get("min") or 0
    # Halves are rounded up, as JavaScript does; Python's round takes the even neighbour.
    if not isinstance(step, int) or step == 1:
        return value if isinstance(value, int) else math.floor(value + 0.5)
    offset = least % step if isinstance(least, int) else 0
    if isinstance(value, int):
        # In whole numbers: seeds have more digits than a float.
        return (2 * (value - offset) + step) // (2 * step) * step + offset
    return math.floor((value - offset) / step + 0.5) * step + offset


def _to_precision(value: float, options: dict[str, Any]) -> float:
    step = options.get("step")
    digits = max(0, -math.floor(math.log10(step))) if _is_number(step) and step > 0 else 1
    unit = options.get("round") or (10.0**-digits if digits else 0)
    # Beyond 2**53 neighbouring floats are more than 1 apart, so there is nothing to round.
    if not _is_number(unit) or unit <= 0 or abs(value) > 2**53:
        return value
    # The browser's bounds of a FLOAT widget that declares none.
    low, high = _range({"min": 0, "max": 2048, **options})
    return min(max(round(math.floor(value / unit + 0.5) * unit, min(digits, 100)), low), high)
