"""What node classes say of themselves, asked once a run: INPUT_TYPES may list folders."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from .graph import Link, Node

log = logging.getLogger("piying")


class NodeTypes:
    """The node classes of a run, by name."""

    def __init__(self, classes: Mapping[str, Any]) -> None:
        self._classes = classes
        self._declared: dict[str, dict[str, Any]] = {}
        self._options: dict[str, dict[str, dict[str, Any]]] = {}
        self._hidden: dict[str, dict[str, str]] = {}
        self._first: dict[str, bool] = {}

    def __contains__(self, class_type: object) -> bool:
        return class_type in self._classes

    def of(self, node: Node) -> Any:
        """Return a node's class."""
        return self._classes[node.class_type]

    def declared(self, node: Node) -> dict[str, Any]:
        """Return the INPUT_TYPES of a node's class."""
        if node.class_type not in self._declared:
            self._declared[node.class_type] = self._classes[node.class_type].INPUT_TYPES()
        return self._declared[node.class_type]

    def options(self, node: Node, name: str) -> dict[str, Any] | None:
        """Return the options of a declared input, None for one that is not declared."""
        return self.all_options(node).get(name)

    def all_options(self, node: Node) -> dict[str, dict[str, Any]]:
        """Return {input: options} of a node's declared inputs."""
        if node.class_type not in self._options:
            declared = self.declared(node)
            inputs = {**declared.get("optional", {}), **declared.get("required", {})}
            self._options[node.class_type] = {
                name: given[1] if len(given) > 1 and isinstance(given[1], dict) else {}
                for name, given in inputs.items()
            }
        return self._options[node.class_type]

    def hidden(self, node: Node) -> dict[str, str]:
        """Return {input: kind} of a node's hidden inputs."""
        if node.class_type not in self._hidden:
            declared = self.declared(node).get("hidden", {})
            kinds = {name: kind if isinstance(kind, str) else kind[0] for name, kind in declared.items()}
            self._hidden[node.class_type] = kinds
        return self._hidden[node.class_type]

    def needed(self, node: Node) -> Iterator[Link]:
        """Yield the links a node cannot start without: all but lazy ones."""
        options = self.all_options(node)
        for name, link in node.links():
            if not options.get(name, {}).get("lazy"):
                yield link

    def shows(self, node: Node) -> bool:
        """Tell whether a node is an output node."""
        return getattr(self.of(node), "OUTPUT_NODE", False) is True

    def is_first(self, node: Node) -> bool:
        """Tell whether a node shows something, or is async: the sooner it begins, the sooner it ends."""
        if node.class_type not in self._first:
            function = getattr(self.of(node), self.of(node).FUNCTION, None)
            self._first[node.class_type] = self.shows(node) or inspect.iscoroutinefunction(function)
        return self._first[node.class_type]

    def key_has_id(self, node: Node) -> bool:
        """Tell whether a node's result depends on its id."""
        return bool(getattr(self.of(node), "NOT_IDEMPOTENT", False)) or "UNIQUE_ID" in self.hidden(node).values()

    def changed(self, node: Node, hidden: dict[str, Any]) -> Any:
        """Return what IS_CHANGED says of the literal inputs; linked ones are None to it."""
        node_class = self.of(node)
        if not hasattr(node_class, "IS_CHANGED"):
            return False
        given = {name: None if isinstance(value, Link) else value for name, value in node.inputs.items()}
        given = {name: value for name, value in given.items() if self.options(node, name) is not None}
        try:
            return [node_class.IS_CHANGED(**given, **hidden)]
        except Exception as error:  # noqa: BLE001 - node code is anybody's; ComfyUI then runs the node, and so do we
            log.warning("%s: IS_CHANGED failed (%s: %s); the node runs again.", node, type(error).__name__, error)
            return float("nan")
