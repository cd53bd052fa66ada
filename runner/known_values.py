"""Values known before a run: literals, and what nodes give that load nothing, such as loaders and primitives.

A node class says `RUNS_AT_ONCE` where it may be run to learn what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import PiyingError
from .graph import Graph, Link, Node

UNKNOWN = object()


class KnownValues:
    """What the inputs of a graph's nodes are, where it is known; each node is run once."""

    def __init__(self, graph: Graph, classes: Mapping[str, type]) -> None:
        self._graph, self._classes = graph, classes
        self._outputs: dict[str, Any] = {}  # of the nodes that were run, by id

    def inputs(self, node: Node) -> dict[str, Any]:
        """Return the inputs of a node, those that only the run will know as UNKNOWN.

        Raises:
            PiyingError: a node before it refuses its inputs.
        """
        return {name: self._value(value) for name, value in node.inputs.items()}

    def learn(self, node: Node) -> None:
        """Run a node whose class allows it and whose inputs are known; others are unknown, as those that raised.

        Raises:
            PiyingError: it, or a node before it, refuses its inputs.
        """
        if node.id in self._outputs:
            return
        self._outputs[node.id] = UNKNOWN
        node_class: Any = self._classes[node.class_type]
        if getattr(node_class, "RUNS_AT_ONCE", False):
            inputs = self.inputs(node)
            # By identity: inputs may be tensors, whose comparison is no truth value.
            if all(each is not UNKNOWN for each in inputs.values()):
                self._outputs[node.id] = getattr(node_class(), node_class.FUNCTION)(**inputs)

    def refusal(self, node: Node) -> str | None:
        """Return what a node says against its inputs where it can be run to learn that; None where nothing."""
        try:
            self.learn(node)
        except PiyingError as error:
            return str(error)
        return None

    def _value(self, value: Any) -> Any:
        if not isinstance(value, Link):
            return value
        self.learn(self._graph[value.source])
        found = self._outputs[value.source]
        return UNKNOWN if found is UNKNOWN else found[value.slot]
