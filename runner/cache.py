"""Results kept from one run to the next, under keys that name all that a result depends on."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from .dynamic import Scope
from .graph import Link, Node


def node_key(node: Node, parent_keys: Mapping[str, str], changed: Any, with_id: bool) -> str:
    """Return a key for a node's result.

    A node's key holds its parents' keys, not their whole ancestry, so that keys cost time linear in
    the graph.

    Args:
        node: the node, with literal inputs and links.
        parent_keys: keys of the nodes it links to; one that is missing makes the key unique.
        changed: what its IS_CHANGED gave, if anything.
        with_id: whether the node sees its own id, which then belongs to the key.
    """
    inputs = {
        name: ["link", parent_keys.get(value.source) or _unique(None), value.slot]
        if isinstance(value, Link)
        else ["value", value]
        for name, value in node.inputs.items()
    }
    parts = [node.class_type, inputs, changed, node.id if with_id else None]
    try:
        text = json.dumps(parts, sort_keys=True, allow_nan=False, default=_unique)
    except (ValueError, TypeError):
        # NaN differs from itself: IS_CHANGED returns it to say that the node must always run.
        text = _unique(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _unique(value: Any) -> str:
    """Return a text for a value that cannot be compared: no other is like it."""
    del value
    return secrets.token_hex(16)


class Cache:
    """The results of the last run, by scope and key; a new run drops what it has no use for.

    So memory is bounded by one graph's results, as with ComfyUI's default cache.
    """

    def __init__(self) -> None:
        self._scopes: dict[Scope, dict[str, Any]] = {}
        self._objects: dict[tuple[Scope, str, str], Any] = {}

    def begin(self, nodes: Iterable[Node], keys: Iterable[str]) -> None:
        """Keep what a graph with these nodes and keys can use."""
        ids, used = {(node.id, node.class_type) for node in nodes}, set(keys)
        names = {node_id for node_id, _ in ids}
        self._scopes = {scope: kept for scope, kept in self._scopes.items() if not scope or scope[0] in names}
        self._keep((), used)
        self._objects = {
            key: value
            for key, value in self._objects.items()
            if (key[1:] in ids if not key[0] else key[0][0] in names)
        }

    def begin_scope(self, scope: Scope, keys: Iterable[str]) -> None:
        """Keep, of an expanded graph, what its new expansion can use."""
        self._keep(scope, set(keys))

    def _keep(self, scope: Scope, used: set[str]) -> None:
        results = self._scopes.get(scope, {})
        self._scopes[scope] = {key: result for key, result in results.items() if key in used}

    def get(self, scope: Scope, key: str) -> Any:
        """Return the result of a key, or None."""
        return self._scopes.get(scope, {}).get(key)

    def put(self, scope: Scope, key: str, result: Any) -> None:
        """Keep a result."""
        self._scopes.setdefault(scope, {})[key] = result

    def node_object(self, scope: Scope, node: Node, node_class: type) -> Any:
        """Return the node's object, the same from run to run: some nodes keep state in theirs."""
        key = (scope, node.id, node.class_type)
        if key not in self._objects:
            self._objects[key] = node_class()
        return self._objects[key]
