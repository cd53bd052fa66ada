"""Results kept between runs, under keys that name all that a result depends on."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from .graph import Link, Node

MAX_ENTRIES = 64


def node_key(node: Node, parent_keys: Mapping[str, str], changed: Any, with_id: bool) -> str:
    """Return a key for a node's result.

    A node's key holds its parents' keys, not their whole ancestry, so that keys cost time linear in
    the graph.

    Args:
        node: the node, with literal inputs and links.
        parent_keys: keys of the nodes it links to.
        changed: what its IS_CHANGED gave, if anything.
        with_id: whether the node sees its own id, which then belongs to the key.
    """
    inputs = {
        name: ["link", parent_keys[value.source], value.slot] if isinstance(value, Link) else ["value", value]
        for name, value in sorted(node.inputs.items())
    }
    # NaN differs from itself: IS_CHANGED returns it to say that the node must always run.
    stamp = repr(changed) if changed == changed else secrets.token_hex(16)
    parts = [node.class_type, inputs, stamp, node.id if with_id else None]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


class Cache:
    """The most recently used results, by key."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._entries: OrderedDict[str, Any] = OrderedDict()
        self._max = max_entries

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Any:
        """Return the result of a key that is in the cache."""
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, result: Any) -> None:
        """Keep a result; the least recently used one goes where there are too many."""
        self._entries[key] = result
        self._entries.move_to_end(key)
        while len(self._entries) > self._max:
            self._entries.popitem(last=False)
