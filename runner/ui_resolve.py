"""What feeds an input, through reroutes, bypassed nodes and the borders of subgraphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import WorkflowError
from .ui_graph import BYPASS, INPUT_SIDE, NEVER, Slot, UILink
from .ui_live import REROUTE, VIRTUAL, LiveNode
from .ui_scopes import Scope
from .ui_widgets import MISSING

_Place = tuple[str, str, int, str | None, bool]


@dataclass(frozen=True)
class Source:
    """Output `slot` of the node with that full id, such as `4:2`."""

    id: str
    slot: int


@dataclass(frozen=True)
class Value:
    """A value that a widget of an instance hands inwards."""

    value: Any


@dataclass(frozen=True)
class _Input:
    scope: Scope
    node: LiveNode
    index: int
    # The type wanted at the end of the wire; None for the type of this input.
    kind: str | None = None

    def place(self) -> _Place:
        return self.scope.prefix, self.node.id, self.index, self.kind, True


@dataclass(frozen=True)
class _Output:
    scope: Scope
    node: LiveNode
    slot: int
    kind: str

    def place(self) -> _Place:
        return self.scope.prefix, self.node.id, self.slot, self.kind, False


class Resolver:
    """Follows wires; keeps what it found, for many inputs hang on the same long way."""

    def __init__(self) -> None:
        self._found: dict[_Place, Source | Value | None] = {}

    def resolve(self, scope: Scope, node: LiveNode, index: int) -> Source | Value | None:
        """Return what feeds an input of a node; None where its own widget speaks, or nothing.

        Raises:
            WorkflowError: the wires go in a circle of reroutes, bypassed nodes or subgraphs.
        """
        at: _Input | _Output | Source | Value | None = _Input(scope, node, index)
        way: dict[_Place, None] = {}
        while isinstance(at, _Input | _Output):
            place = at.place()
            if place in way:
                raise WorkflowError(
                    f"Node {scope.prefix}{node.id}, {node.inputs[index].name}: "
                    "the link goes in a circle of reroutes, bypassed nodes or subgraphs."
                )
            way[place] = None
            if place in self._found:
                at = self._found[place]
            else:
                at = _from_input(at) if isinstance(at, _Input) else _from_output(at)
        self._found.update(dict.fromkeys(way, at))
        return at


def _from_input(at: _Input) -> _Input | _Output | Value | None:
    if at.index >= len(at.node.inputs):
        return None
    slot = at.node.inputs[at.index]
    if (at.node.id, slot.name) in at.scope.overrides:
        return Value(at.scope.overrides[at.node.id, slot.name])
    link = at.scope.graph.links.get(slot.link) if slot.link is not None else None
    if link is None:
        return None
    kind = at.kind or slot.kind
    return _beyond(at.scope, link, kind)


def _beyond(scope: Scope, link: UILink, kind: str) -> _Input | _Output | Value | None:
    """Return where a wire begins: at a node of the same graph, or outside of the subgraph."""
    if link.origin == INPUT_SIDE and scope.parent is not None and scope.host is not None:
        return _outside(scope, scope.parent, scope.host, link.origin_slot)
    origin = scope.graph.nodes.get(link.origin)
    return None if origin is None else _Output(scope, origin, link.origin_slot, kind)


def _outside(scope: Scope, parent: Scope, host: LiveNode, index: int) -> _Input | Value | None:
    if index >= len(host.inputs):
        return None
    slot = host.inputs[index]
    linked = slot.link is not None and slot.link in parent.graph.links
    if linked or (host.id, slot.name) in parent.overrides:
        return _Input(parent, host, index)
    value = scope.values[index] if index < len(scope.values) else MISSING
    return None if value is MISSING else Value(value)


def _from_output(at: _Output) -> _Input | _Output | Source | Value | None:
    node = at.node
    if node.stored.mode == NEVER:
        return None
    if node.stored.mode == BYPASS:
        index = _passing(node, at.slot, at.kind)
        return None if index is None else _Input(at.scope, node, index)
    if node.subgraph:
        return _inside(at)
    if node.stored.kind in VIRTUAL:
        return _Input(at.scope, node, at.slot, at.kind) if node.stored.kind == REROUTE else None
    return Source(at.scope.prefix + node.id, at.slot)


def _inside(at: _Output) -> _Input | _Output | Value | None:
    """Return what feeds an output of an instance from within."""
    child = at.scope.children[at.node.id]
    link = child.graph.exits.get(at.slot)
    return None if link is None else _beyond(child, link, at.kind)


def _passing(node: LiveNode, slot: int, kind: str) -> int | None:
    """Return the input that a bypassed node passes on to an output, if any.

    The one in the output's position where the types agree, else the first of the very type, else the
    first that fits.
    """
    if kind in ("*", ""):
        return slot if slot < len(node.inputs) else 0
    given = node.stored.outputs[slot] if slot < len(node.stored.outputs) else "*"

    def fits(each: Slot) -> bool:
        return connects(each.kind, given) and connects(each.kind, kind)

    if slot < len(node.inputs) and fits(node.inputs[slot]):
        return slot
    exact = next((index for index, each in enumerate(node.inputs) if each.kind == kind), None)
    return exact if exact is not None else next((i for i, each in enumerate(node.inputs) if fits(each)), None)


def connects(first: str, second: str) -> bool:
    """Return whether the browser lets slots of two types be wired."""
    if first in ("*", "") or second in ("*", ""):
        return True
    one, other = first.lower().split(","), second.lower().split(",")
    return bool(set(one) & set(other)) or "*" in one or "*" in other
