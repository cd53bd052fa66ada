"""Cache of results from one run to the next, under keys that stand for all that a result depends on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .graph import Link, Node, Scope

Key = int
PLAIN = (str, int, float, bool, type(None))


class _NeverEqual:
    """Stands for a value that equals no other, not even itself in the next run."""


NEVER_EQUAL = _NeverEqual()


def comparable(value: Any) -> Any:
    """Return a literal as something to compare by: itself, its JSON text, or NEVER_EQUAL.

    NaN differs from itself: IS_CHANGED returns it to say that the node must always run. Objects such
    as tensors are not compared.
    """
    if isinstance(value, PLAIN):
        # With the type: 1, 1.0 and True are equal in Python, and are not the same input to a node.
        return NEVER_EQUAL if value != value else (type(value).__name__, value)
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError):
        return NEVER_EQUAL


class Keys:
    """Numbers for all that results depend on: equal dependencies, equal number.

    A node's number stands for its class, its literals, and the numbers of the nodes it links to, not
    for their whole ancestry, so that numbering a graph costs time linear in it. ComfyUI's signatures
    hold the ancestry, which makes long chains quadratic.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, Key] = {}
        self._next = 0

    def of(self, node: Node, parents: Mapping[str, Key], changed: Any, with_id: bool) -> Key:
        """Return the number of a node's result.

        Args:
            node: the node, with literal inputs and links.
            parents: numbers of the nodes it links to; one that is missing makes the number a new one.
            changed: what its IS_CHANGED returned, if anything.
            with_id: whether the result depends on the node's id.
        """
        # Sorted: the order of inputs in the file means nothing.
        inputs = [
            (name, parents.get(value.source, NEVER_EQUAL), value.slot)
            if isinstance(value, Link)
            else (name, comparable(value))
            for name, value in sorted(node.inputs.items())
        ]
        parts = (node.class_type, *inputs, comparable(changed), node.id if with_id else None)
        if NEVER_EQUAL in parts or any(NEVER_EQUAL in part for part in parts if isinstance(part, tuple)):
            parts = (object(),)  # equal to nothing but itself
        number = self._numbers.get(parts)
        if number is None:
            number = self._numbers[parts] = self._next
            self._next += 1
        return number

    def forget_all_but(self, used: set[Key]) -> None:
        """Drop the numbers that nothing refers to any more."""
        self._numbers = {parts: number for parts, number in self._numbers.items() if number in used}


class Cache:
    """The results of the last run, by scope and key; a new run drops what it has no use for.

    So memory is bounded by one graph's results, as with ComfyUI's default cache.
    """

    def __init__(self) -> None:
        self.keys = Keys()
        self._scopes: dict[Scope, dict[Key, Any]] = {}
        self._objects: dict[tuple[Scope, str, str], Any] = {}

    def begin(self, nodes: Iterable[Node], keys: Iterable[Key]) -> None:
        """Drop all but what a graph with these nodes and keys can use."""
        ids, used = {(node.id, node.class_type) for node in nodes}, set(keys)
        names = {node_id for node_id, _ in ids}
        # Of expanded graphs, all are kept whose outermost node is there: only its next expansion will tell.
        self._scopes = {scope: results for scope, results in self._scopes.items() if not scope or scope[0] in names}
        self.begin_scope((), used)
        self.keys.forget_all_but(used.union(*self._scopes.values()))
        self._objects = {
            key: value
            for key, value in self._objects.items()
            if (key[1:] in ids if not key[0] else key[0][0] in names)
        }

    def begin_scope(self, scope: Scope, keys: Iterable[Key]) -> None:
        """Drop, of one scope, all but the results of these keys."""
        used, results = set(keys), self._scopes.get(scope, {})
        self._scopes[scope] = {key: result for key, result in results.items() if key in used}

    def get(self, scope: Scope, key: Key) -> Any:
        """Return the result of a key, or None."""
        return self._scopes.get(scope, {}).get(key)

    def put(self, scope: Scope, key: Key, result: Any) -> None:
        """Keep a result."""
        self._scopes.setdefault(scope, {})[key] = result

    def node_object(self, scope: Scope, node: Node, node_class: type) -> Any:
        """Return the node's object, the same from run to run: some nodes keep state in theirs."""
        key = (scope, node.id, node.class_type)
        if key not in self._objects:
            self._objects[key] = node_class()
        return self._objects[key]
