"""Nodes of subgraphs that bear the id of another node get one of their own, as the browser gives them on loading."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .ui_graph import UIFile, UIGraph, UILink, UINode


def with_unique_ids(file: UIFile) -> UIFile:
    """Return the file with no id of a node in more than one graph: the full ids of the API form hold these."""
    ids = _Ids(set(file.root.nodes), file.last_id)
    renamed = {key: ids.renamed(graph) for key, graph in file.subgraphs.items()}
    subgraphs = {key: _with_proxies(_apply(file.subgraphs[key], new), renamed) for key, new in renamed.items()}
    return UIFile(_with_proxies(file.root, renamed), subgraphs, ids.last)


class _Ids:
    """Hands out ids: the next after the last, over those taken."""

    def __init__(self, taken: set[str], last: int) -> None:
        self._taken = taken
        self.last = last

    def renamed(self, graph: UIGraph) -> dict[str, str]:
        """Return {old id: new id} for the nodes whose id is taken, and take the ids of all."""
        found = {}
        for key in graph.nodes:
            if key in self._taken:
                found[key] = self._next()
            elif key.isdecimal() and len(key) < 16:
                self.last = max(self.last, int(key))
            self._taken.add(found.get(key, key))
        return found

    def _next(self) -> str:
        self.last += 1
        while str(self.last) in self._taken:
            self.last += 1
        return str(self.last)


def _apply(graph: UIGraph, renamed: dict[str, str]) -> UIGraph:
    if not renamed:
        return graph
    nodes = {renamed.get(key, key): replace(node, id=renamed.get(key, key)) for key, node in graph.nodes.items()}
    return replace(graph, nodes=nodes, links={key: _moved(link, renamed) for key, link in graph.links.items()})


def _moved(link: UILink, renamed: dict[str, str]) -> UILink:
    origin, target = renamed.get(link.origin, link.origin), renamed.get(link.target, link.target)
    return replace(link, origin=origin, target=target)


def _with_proxies(graph: UIGraph, renamed: dict[str, dict[str, str]]) -> UIGraph:
    nodes = {key: _proxied(node, renamed.get(node.kind) or {}) for key, node in graph.nodes.items()}
    return replace(graph, nodes=nodes)


def _proxied(node: UINode, renamed: dict[str, str]) -> UINode:
    """Return an instance whose list of shown inner widgets names the new ids."""
    proxies = node.properties.get("proxyWidgets")
    if not renamed or not isinstance(proxies, list):
        return node
    return replace(node, properties={**node.properties, "proxyWidgets": [_entry(each, renamed) for each in proxies]})


def _entry(entry: Any, renamed: dict[str, str]) -> Any:
    if not isinstance(entry, list) or not entry:
        return entry
    return [renamed.get(str(entry[0]), entry[0]), *entry[1:]]
