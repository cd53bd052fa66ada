"""Runs a graph: each node once, after its sources, results handed on as ComfyUI hands them on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .cache import Cache, node_key
from .errors import NodeFailed
from .graph import Graph, Link, Node, execution_order


class Events(Protocol):
    """Who wants to know what the run is doing."""

    def node_started(self, node: Node) -> None:
        """A node begins to run."""

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """A node has its results; `ui` is what it shows, `cached` whether it did not have to run."""


@dataclass(frozen=True)
class Hidden:
    """What nodes may ask for by hidden inputs."""

    prompt: dict[str, Any] = field(default_factory=dict)
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)

    def value(self, kind: str, node: Node) -> Any:
        """Return the value of a hidden input of type `kind`, None for kinds that are not known."""
        return {"PROMPT": self.prompt, "EXTRA_PNGINFO": self.extra_pnginfo, "UNIQUE_ID": node.id}.get(kind)


@dataclass(frozen=True)
class Result:
    """A node's outputs, a list of values per slot, and what it shows."""

    outputs: list[list[Any]]
    ui: dict[str, Any]


class Executor:
    """Runs graphs over a set of node classes, keeping results between runs."""

    def __init__(self, classes: Mapping[str, type], events: Events, cache: Cache | None = None) -> None:
        self._classes = classes
        self._events = events
        self._cache = cache or Cache()

    def run(self, graph: Graph, roots: list[str], hidden: Hidden) -> dict[str, Result]:
        """Run the roots and what they need; return the results of the roots.

        Raises:
            NodeFailed: a node raised; results from before it stay in the cache.
            WorkflowError: the links go in a circle.
        """
        keys: dict[str, str] = {}
        results: dict[str, Result] = {}
        for node in execution_order(graph, roots):
            keys[node.id] = node_key(node, keys, self._changed(node), self._sees_its_id(node))
            results[node.id] = self._result(node, keys[node.id], results, hidden)
        return {root: results[root] for root in roots}

    def _result(self, node: Node, key: str, results: dict[str, Result], hidden: Hidden) -> Result:
        if cached := key in self._cache:
            result: Result = self._cache.get(key)
        else:
            self._events.node_started(node)
            with _named(node):
                result = self._execute(node, results, hidden)
            self._cache.put(key, result)
        self._events.node_finished(node, result.ui, cached)
        return result

    def _execute(self, node: Node, results: dict[str, Result], hidden: Hidden) -> Result:
        node_class = self._classes[node.class_type]
        declared = node_class.INPUT_TYPES()  # type: ignore[attr-defined]
        inputs = {name: _values(value, results) for name, value in node.inputs.items() if _is_declared(name, declared)}
        for name, kind in declared.get("hidden", {}).items():
            inputs[name] = [hidden.value(kind if isinstance(kind, str) else kind[0], node)]
        return _collect(node_class, _call(node_class, inputs))

    def _changed(self, node: Node) -> Any:
        """Return what IS_CHANGED says of the literal inputs; linked ones are not known yet."""
        is_changed = getattr(self._classes[node.class_type], "IS_CHANGED", None)
        if is_changed is None:
            return None
        with _named(node):
            return is_changed(**{name: None if isinstance(v, Link) else v for name, v in node.inputs.items()})

    def _sees_its_id(self, node: Node) -> bool:
        hidden = self._classes[node.class_type].INPUT_TYPES().get("hidden", {})  # type: ignore[attr-defined]
        return "UNIQUE_ID" in [kind if isinstance(kind, str) else kind[0] for kind in hidden.values()]


@contextmanager
def _named(node: Node) -> Iterator[None]:
    """Put the node's name on whatever its code raises: node code is anybody's and may raise anything."""
    try:
        yield
    except Exception as error:
        raise NodeFailed(str(node), node.id, error) from error


def _is_declared(name: str, declared: dict[str, Any]) -> bool:
    return name in declared.get("required", {}) or name in declared.get("optional", {})


def _values(value: Any, results: dict[str, Result]) -> list[Any]:
    """Return an input as the list of values it stands for."""
    return results[value.source].outputs[value.slot] if isinstance(value, Link) else [value]


def _call(node_class: type, inputs: dict[str, list[Any]]) -> list[Any]:
    """Call the node once per list element; shorter lists repeat their last value."""
    function = getattr(node_class(), node_class.FUNCTION)  # type: ignore[attr-defined]
    if getattr(node_class, "INPUT_IS_LIST", False):
        return [function(**inputs)]
    if not inputs:
        return [function()]
    length = max(len(values) for values in inputs.values())
    if length and not all(inputs.values()):
        length = 0  # an empty list leaves nothing to call the node with
    return [function(**{name: v[min(index, len(v) - 1)] for name, v in inputs.items()}) for index in range(length)]


def _collect(node_class: type, returned: list[Any]) -> Result:
    """Merge what the calls returned: values per output slot, and lists of shown things."""
    ui: dict[str, Any] = {}
    rows = []
    for value in returned:
        if isinstance(value, dict):
            for name, shown in value.get("ui", {}).items():
                ui.setdefault(name, []).extend(shown)
            value = value.get("result", ())
        rows.append(value or ())
    is_list = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(node_class.RETURN_TYPES)  # type: ignore[attr-defined]
    outputs: list[list[Any]] = []
    for slot, spread in enumerate(is_list):
        column = [row[slot] for row in rows]
        outputs.append([item for values in column for item in values] if spread else column)
    return Result(outputs, ui)
