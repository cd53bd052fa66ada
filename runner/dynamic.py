"""The graph as nodes see it that ask for DYNPROMPT: the file's, and what nodes expanded into so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Scope = tuple[str, ...]  # the nodes that expanded into the graph a node belongs to, outermost first


class DynamicPrompt:
    """Read access by ComfyUI's names; nodes are in API form."""

    def __init__(self, prompt: dict[str, Any], expanded: Mapping[str, Any], scopes: Mapping[str, Scope]) -> None:
        self._prompt, self._expanded, self._scopes = prompt, expanded, scopes

    def get_node(self, node_id: str) -> Any:
        """Return a node in API form; KeyError where there is none."""
        return self._expanded[node_id] if node_id in self._expanded else self._prompt[node_id]

    def has_node(self, node_id: str) -> bool:
        """Return whether there is such a node."""
        return node_id in self._expanded or node_id in self._prompt

    def get_original_prompt(self) -> dict[str, Any]:
        """Return the file's graph."""
        return self._prompt

    def all_node_ids(self) -> set[str]:
        """Return all ids."""
        return {*self._prompt, *self._expanded}

    def get_parent_node_id(self, node_id: str) -> str | None:
        """Return the node that expanded into this one."""
        return self._scopes[node_id][-1] if node_id in self._scopes else None

    def get_real_node_id(self, node_id: str) -> str:
        """Return the node of the file that this one came from."""
        return self._scopes[node_id][0] if node_id in self._scopes else node_id

    def get_display_node_id(self, node_id: str) -> str:
        """Return the node that shows this one's results."""
        override = self._expanded.get(node_id, {}).get("override_display_id")
        return str(override) if override else self.get_real_node_id(node_id)
