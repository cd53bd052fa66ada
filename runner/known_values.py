"""Values known before a run: literals, and what nodes give that load nothing, such as loaders and primitives.

A node class says `RUNS_AT_ONCE` where it may be run to learn what it gives, and its `refusal(known, linked)` returns
why it would refuse the inputs that are known, "" where it would not; those named by `linked` only a run will know.

Where it has `sizes_before_run(known, sources)` beside that, it gives the inputs that a node before it sets in place of
its widgets, or what stands for an input that only the run has, such as the size of frames; None where only the run
knows. A source is the node of a wired input, with `node_class`, `known` and `sources` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from ..core.errors import PiyingError
from .calls import check_ranges
from .definitions import NodeType, ObjectInfo
from .errors import NodeMisused
from .graph import Graph, Link, Node

UNKNOWN = object()


class KnownValues:
    """What the inputs of a graph's nodes are, where it is known; each node is run once.

    Args:
        graph: without cycles.
        classes: of its nodes.
        info: what they declare, where they have been asked already.
    """

    def __init__(self, graph: Graph, classes: Mapping[str, type], info: ObjectInfo | None = None) -> None:
        self._graph, self._classes, self._info = graph, classes, info
        self._types: dict[str, NodeType] = {}
        self._outputs: dict[str, Any] = {}  # of the nodes that were run, by id
        self._refusing: set[str] = set()  # nodes that refuse their inputs, and those behind them, by id

    def inputs(self, node: Node) -> dict[str, Any]:
        """Return the inputs that a node is given, those that only the run will know as UNKNOWN.

        Files hold more than a class declares, such as previews and values of widgets that it had once.

        Raises:
            NodeMisused: a number that arrives by link is out of the range that the input declares, or a node before
                it refuses its inputs.
        """
        values = {name: self._value(value) for name, value in node.inputs.items()}
        options = {name: self._type(node).options(node, name) for name in values}
        linked = {name: [values[name]] for name, _ in node.links() if not (options[name] or {}).get("lazy")}
        check_ranges(linked, options)
        return {name: value for name, value in values.items() if options[name] is not None}

    def learn(self, node: Node) -> None:
        """Run a node whose class allows it and whose inputs are known; others are unknown, as those that raised.

        Raises:
            NodeMisused: it refuses its inputs; see `inputs`.
        """
        if node.id in self._outputs:
            return
        self._outputs[node.id] = UNKNOWN
        node_class: Any = self._classes[node.class_type]
        runs, refusal = getattr(node_class, "RUNS_AT_ONCE", False), getattr(node_class, "refusal", None)
        # By identity: inputs may be tensors, whose comparison is no truth value.
        if not (runs or refusal) and all(self._value(link) is UNKNOWN for _, link in node.links()):
            return
        asked = Source(node, self._graph, self._classes, self)
        inputs, all_are_known = dict(asked.known), not asked.unknown
        refuses_before = self._refusing.intersection(link.source for _, link in node.links())
        if refuses_before:
            self._refusing.add(node.id)
        try:
            why = ""
            if refusal is not None:
                # Sizes that a node before this one refuses are said of that one.
                if not refuses_before:
                    asked.take_sizes()
                why = refusal(asked.known, asked.unknown)
            if not why and runs and all_are_known:
                self._outputs[node.id] = getattr(node_class(), node_class.FUNCTION)(**inputs)
        except PiyingError as error:
            why = str(error)
        if why:
            self._refusing.add(node.id)
            raise NodeMisused(why)

    def _type(self, node: Node) -> NodeType:
        name = node.class_type
        if name not in self._types:
            declared = None if self._info is None else self._info[name]["input"]
            self._types[name] = NodeType(self._classes[name], declared)
        return self._types[name]

    def _value(self, value: Any) -> Any:
        if not isinstance(value, Link):
            return value
        self.learn(self._graph[value.source])
        found = self._outputs[value.source]
        return UNKNOWN if found is UNKNOWN else found[value.slot]


class Source:
    """A node of a graph as `sizes_before_run` is told of it.

    Attributes:
        node_class: its class.
        known: inputs whose values are known before a run.
        unknown: names of inputs that only the run will know.
        sources: {wired input: the node that the wire leads to}.
    """

    def __init__(self, node: Node, graph: Graph, classes: Mapping[str, type], values: KnownValues) -> None:
        self.node_class: Any = classes[node.class_type]
        inputs = values.inputs(node)
        self.known = {name: value for name, value in inputs.items() if value is not UNKNOWN}
        self.unknown = [name for name, value in inputs.items() if value is UNKNOWN]
        self._links = {name: graph[link.source] for name, link in node.links()}
        self._of = graph, classes, values

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The nodes that its wires lead to."""
        return {name: Source(node, *self._of) for name, node in self._links.items()}

    def take_sizes(self) -> None:
        """Put in the sizes that a wired node sets in place of the widgets."""
        sizes_before_run = getattr(self.node_class, "sizes_before_run", None)
        found = {} if sizes_before_run is None else sizes_before_run(self.known, self.sources)
        for name, value in found.items():
            if name in self.unknown:
                self.unknown.remove(name)
            if value is None:
                self.known.pop(name, None)
                self.unknown.append(name)
            else:
                self.known[name] = value


@contextmanager
def naming(node: Node) -> Iterator[None]:
    """Name a node in what is raised inside the `with` block for the person at the screen."""
    try:
        yield
    except PiyingError as error:
        raise PiyingError(f"{node}: {error}") from error
