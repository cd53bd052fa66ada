"""Group nodes, which subgraphs have replaced: read as subgraphs, from what files hold under `extra.groupNodes`.

A group node's inputs, widgets and outputs are no part of the file: they follow from the nodes inside and their
definitions. Rules: ComfyUI_frontend up to 1.27, `GroupNodeConfig`; later frontends convert group nodes to subgraphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .graph import MAX_NODES
from .ui_graph import (
    GROUP_PREFIX,
    INPUT_SIDE,
    MAX_DEPTH,
    OUTPUT_SIDE,
    PRIMITIVE,
    REROUTE,
    Slot,
    SubgraphInput,
    UIGraph,
    UILink,
    UINode,
    as_list,
    as_object,
    as_objects,
    as_slot,
    read_node,
)
from .ui_widgets import Spec, declared_specs


@dataclass(frozen=True)
class GroupNode:
    """What the group nodes of one name are.

    Attributes:
        graph: the nodes inside.
        specs: the inputs outside, those of `graph.inputs`.
        output_types: of the outputs outside.
    """

    graph: UIGraph
    specs: list[Spec]
    output_types: list[str]


def read_groups(workflow: dict[str, Any], info: ObjectInfo) -> dict[str, GroupNode]:
    """Return the group nodes that a decoded file defines, by class.

    Raises:
        WorkflowError: a definition is malformed.
    """
    extra = workflow.get("extra")
    stored = extra.get("groupNodes") if isinstance(extra, dict) else None
    return _Groups(as_object(stored or {}, "extra.groupNodes"), info).all()


class _Groups:
    """The group nodes of a file, of which some may be inside others."""

    def __init__(self, stored: dict[str, Any], info: ObjectInfo) -> None:
        self._stored = {GROUP_PREFIX + name: data for name, data in stored.items()}
        self._info = info
        self._built: dict[str, GroupNode] = {}
        self._being_built: list[str] = []

    def all(self) -> dict[str, GroupNode]:
        """Return them all, by class."""
        for kind in self._stored:
            self.declared(kind)
        return self._built

    def declared(self, kind: str) -> tuple[list[Spec], list[str]]:
        """Return inputs and types of outputs of a class, of a group or of another node; none where it is not known.

        Raises:
            WorkflowError: a group node is inside itself, or they are nested absurdly deep.
        """
        if kind in self._being_built or len(self._being_built) > MAX_DEPTH:
            name = kind.removeprefix(GROUP_PREFIX)
            raise WorkflowError(f"The group node {name!r} is inside itself, or nested more than {MAX_DEPTH} deep.")
        if kind in self._stored:
            if kind not in self._built:
                self._being_built.append(kind)
                self._built[kind] = _Group(kind.removeprefix(GROUP_PREFIX), self._stored[kind], self).build()
                self._being_built.pop()
            return self._built[kind].specs, self._built[kind].output_types
        definition = self._info.get(kind)
        if not isinstance(definition, dict):
            return [], []
        outputs = definition.get("output")
        returned = outputs if isinstance(outputs, list) else []
        types = ["COMBO" if isinstance(each, list) else str(each) for each in returned]
        return declared_specs(kind, definition), types


@dataclass
class _Inner:
    """A node inside: as stored, what it declares, and which of its slots are linked inside."""

    node: UINode
    specs: list[Spec]
    output_types: list[str]
    # By slot: where the link begins, and where links end.
    origins: dict[int, tuple[int, int]] = field(default_factory=dict)
    targets: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    external: set[int] = field(default_factory=set)  # outputs that are linked outside too

    def slot_names(self) -> list[str]:
        """Return the names of the inputs that links inside count by."""
        stored = [slot.name for slot in self.node.inputs]
        return stored or [spec.name for spec in self.specs if not spec.is_widget]


class _Group:
    def __init__(self, name: str, data: Any, groups: _Groups) -> None:
        self._what = f"group node {name!r}"
        self._data, self._groups = as_object(data, self._what), groups
        self._config = self._data.get("config") if isinstance(self._data.get("config"), dict) else {}
        stored = as_objects(self._data.get("nodes"), f"nodes of the {self._what}")
        if len(stored) > MAX_NODES:
            raise WorkflowError(f"The {self._what} has {len(stored)} nodes; at most {MAX_NODES} are allowed.")
        self._inner = [self._read_inner(index, each) for index, each in enumerate(stored)]
        self._links: list[UILink] = []
        self._output_types: list[str] = []
        self._ports: dict[str, tuple[Spec, list[tuple[int, str]]]] = {}
        self._seen: dict[str, int] = {}

    def _read_inner(self, index: int, data: dict[str, Any]) -> _Inner:
        node = read_node({**data, "id": index})
        specs, output_types = self._groups.declared(node.type)
        return _Inner(node, specs, list(output_types))

    def build(self) -> GroupNode:
        """Return what the group is."""
        self._read_links()
        later: list[tuple[int, _Inner, dict[int, Spec]]] = []
        for index, inner in enumerate(self._inner):
            if inner.node.type == PRIMITIVE:
                self._add_primitive(index, inner)
                continue
            if inner.node.type == REROUTE and not self._declare_reroute(inner):
                continue
            converted = self._add_inputs(index, inner)
            later.append((index, inner, converted))
            for slot in range(len(inner.output_types)):
                hidden = slot in inner.targets and slot not in inner.external
                if self._custom(index, "output", str(slot)).get("visible", not hidden):
                    end = OUTPUT_SIDE, len(self._output_types)
                    self._links.append(UILink(str(index), slot, *end, inner.output_types[slot]))
                    self._output_types.append(inner.output_types[slot])
        # Inputs that were made of widgets follow those of all nodes.
        for index, inner, converted in later:
            # The frontends that saved group nodes sort slots as texts: 10 comes before 2.
            for slot in sorted(converted, key=str):
                if slot not in inner.origins:
                    self._add_port(index, inner, converted[slot], [(index, converted[slot].name)])
        return self._finished()

    def _read_links(self) -> None:
        for link in as_list(self._data.get("links"), f"links of the {self._what}"):
            if not isinstance(link, list) or len(link) < 4:
                raise WorkflowError(f"The {self._what} has a link that is none: {str(link)[:80]}.")
            if link[0] is None:
                continue  # from outside
            source, slot, target, target_slot = map(as_slot, link[:4])
            if max(source, target) >= len(self._inner):
                raise WorkflowError(f"The {self._what} has a link to or from a node that it does not have.")
            self._inner[source].targets.setdefault(slot, []).append((target, target_slot))
            self._inner[target].origins[target_slot] = source, slot
        for entry in as_list(self._data.get("external"), f"external links of the {self._what}"):
            if isinstance(entry, list) and len(entry) >= 2 and as_slot(entry[0]) < len(self._inner):
                self._inner[as_slot(entry[0])].external.add(as_slot(entry[1]))

    def _custom(self, index: int, side: str, name: str) -> dict[str, Any]:
        """Return what a person chose for an input or output: `name`, `visible`."""
        found: Any = self._config
        for key in (str(index), side, name):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def _add_port(self, index: int, inner: _Inner, spec: Spec, targets: list[tuple[int, str]]) -> None:
        """Add an input of the outside, under a name that no other has."""
        node = inner.node
        stored = zip(node.inputs, node.data.get("inputs") or (), strict=True)
        labels = {slot.name: each.get("label") for slot, each in stored}
        name = str(self._custom(index, "input", spec.name).get("name") or labels.get(spec.name) or spec.name)
        key, prefix = name, ""
        if (node.type == PRIMITIVE and node.title) or name in self._seen:
            prefix = f"{node.title or node.type} "
            key = name = prefix + spec.name
            if name in self._seen:
                name = f"{prefix}{self._seen[name]} {spec.name}"
        self._seen[key] = self._seen.get(key, 1) + 1
        options = spec.options
        if spec.name in ("seed", "noise_seed"):
            options = {**options, "control_after_generate": True}
        if not spec.is_widget and self._custom(index, "input", spec.name).get("visible") is False:
            return
        self._ports[name] = Spec(name, spec.type, options), targets

    def _add_inputs(self, index: int, inner: _Inner) -> dict[int, Spec]:
        """Add the widgets and sockets of a node; return its inputs that were made of widgets, by slot."""
        converted: dict[int, Spec] = {}
        sockets = []
        with_widget = {slot.name: at for at, slot in reversed(list(enumerate(inner.node.inputs))) if slot.widget}
        for spec in inner.specs:
            if not spec.is_widget:
                sockets.append(spec)
            elif spec.name in with_widget:
                converted[with_widget[spec.name]] = spec
            else:
                self._add_port(index, inner, spec, [(index, spec.name)])
        slots = {name: at for at, name in reversed(list(enumerate(inner.slot_names())))}
        for at, spec in enumerate(sockets):
            # A Reroute's slot has no name.
            if slots.get(spec.name, at) not in inner.origins:
                self._add_port(index, inner, spec, [(index, spec.name)])
        return converted

    def _add_primitive(self, index: int, inner: _Inner) -> None:
        """Add the widget of a PrimitiveNode, whose value goes to the widgets that it feeds."""
        fed = []
        for target, slot in inner.targets.get(0, ()):
            names = self._inner[target].slot_names()
            if slot < len(names):
                fed.append((target, names[slot]))
            self._inner[target].origins[slot] = index, 0
        found = [spec for target, name in fed[:1] for spec in self._inner[target].specs if spec.name == name]
        if found:
            options = {**found[0].options, "control_after_generate": True}
            self._add_port(index, inner, Spec("value", found[0].type, options), fed)

    def _declare_reroute(self, inner: _Inner) -> bool:
        """Declare what passes through a Reroute; return whether it has an end at the border of the group."""
        if inner.origins and inner.targets and 0 not in inner.external:
            return False
        kind = next(iter(inner.node.output_types), "*")
        for target, slot in inner.targets.get(0, ()):
            slots = self._inner[target].node.inputs
            kind = slots[slot].type if kind == "*" and slot < len(slots) else kind
        inner.specs, inner.output_types = [Spec(kind, kind, {"forceInput": True})], [kind]
        return True

    def _finished(self) -> GroupNode:
        links = list(self._links)
        for index, inner in enumerate(self._inner):
            for slot, (source, source_slot) in inner.origins.items():
                if self._inner[source].node.type != PRIMITIVE:
                    links.append(UILink(str(source), source_slot, str(index), slot))
        names = [inner.slot_names() for inner in self._inner]
        fed: list[dict[str, str]] = [{} for _ in self._inner]  # of each node, the link of an input
        for key, link in enumerate(links):
            if link.target != OUTPUT_SIDE and link.target_slot < len(names[int(link.target)]):
                fed[int(link.target)][names[int(link.target)][link.target_slot]] = str(key)
        ports: list[SubgraphInput] = []
        for spec, targets in self._ports.values():
            keys = []
            for index, name in targets:
                # The one input of a Reroute has no name.
                name = "" if self._inner[index].node.type == REROUTE else name
                keys.append(str(len(links)))
                fed[index][name] = keys[-1]
                links.append(UILink(INPUT_SIDE, len(ports), str(index), 0, spec.type))
            ports.append(SubgraphInput(spec.name, spec.type, keys))
        nodes = {}
        for index, inner in enumerate(self._inner):
            waiting = fed[index]
            slots = [replace(slot, link=waiting.pop(slot.name, None)) for slot in inner.node.inputs]
            slots += [Slot(name, "*", key) for name, key in waiting.items()]
            nodes[str(index)] = replace(inner.node, inputs=slots)
        graph = UIGraph(nodes, {str(key): link for key, link in enumerate(links)}, ports)
        return GroupNode(graph, [spec for spec, _ in self._ports.values()], self._output_types)
