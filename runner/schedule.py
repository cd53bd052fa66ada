"""Schedule of a run: every node after what it needs, in the order ComfyUI would take them.

ComfyUI looks through all waiting nodes for each step; here a heap holds those that are ready, so that a
run costs n·log n. The order is the same: output nodes and async nodes first, then the nodes that feed
them, then those that feed these, each by the order they were added.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from .graph import Link


class Schedule:
    """The nodes that wait to run, and what each waits for."""

    def __init__(
        self,
        strong_links: Callable[[str], Iterator[Link]],
        is_done: Callable[[str], bool],
        runs_first: Callable[[str], bool],
    ) -> None:
        """Make an empty schedule.

        Args:
            strong_links: gives the links a node cannot run without.
            is_done: tells whether a node's result is there already.
            runs_first: tells whether a node should run as soon as it can.
        """
        self._strong_links, self._is_done, self._runs_first = strong_links, is_done, runs_first
        self._index: dict[str, int] = {}  # of all nodes ever added, by age
        self._waits_for: dict[str, int] = {}  # of pending nodes
        self._feeds: dict[str, dict[str, None]] = {}  # of pending nodes; a dict keeps the order
        self._ready: list[tuple[int, int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._waits_for)

    def add(self, root: str) -> None:
        """Add a node and all it needs that is not done."""
        stack, added, links = [root], [], []
        while stack:
            node_id = stack.pop()
            if node_id in self._waits_for:
                continue
            added.append(node_id)
            self._waits_for[node_id], self._feeds[node_id] = 0, {}
            self._index[node_id] = len(self._index)
            for link in self._strong_links(node_id):
                if not self._is_done(link.source):
                    stack.append(link.source)
                    links.append((link.source, node_id))
        # Connected when all are added: a source is found after the nodes that it feeds.
        for source, target in links:
            self._connect(source, target)
        for node_id in added:
            self._push_if_ready(node_id)

    def require(self, source: str, target: str) -> None:
        """Make a waiting node wait for one more result."""
        if not self._is_done(source):
            self.add(source)
            self._connect(source, target)
            # Again: what it feeds now may give it a better rank.
            self._push_if_ready(source)

    def hold(self, node_id: str) -> Callable[[], None]:
        """Make a node wait for something outside the graph, until the returned function is called."""
        self._waits_for[node_id] += 1
        return lambda: self._release(node_id)

    def next(self) -> str | None:
        """Return a node that can run now; None where all wait."""
        while self._ready:
            _, _, node_id = heapq.heappop(self._ready)
            # Entries are never removed from the heap: a node may have run, or wait again, since it was pushed.
            if self._waits_for.get(node_id) == 0:
                return node_id
        return None

    def put_back(self, node_id: str) -> None:
        """Let a node that `next` returned wait again."""
        self._push_if_ready(node_id)

    def finish(self, node_id: str) -> None:
        """Remove a node that has run, and release what waited for it."""
        del self._waits_for[node_id]
        for target in self._feeds.pop(node_id):
            self._release(target)

    def waiting(self) -> list[str]:
        """Return the nodes that have not run."""
        return list(self._waits_for)

    def _connect(self, source: str, target: str) -> None:
        if target not in self._feeds[source]:
            self._feeds[source][target] = None
            self._waits_for[target] += 1

    def _release(self, node_id: str) -> None:
        self._waits_for[node_id] -= 1
        self._push_if_ready(node_id)

    def _push_if_ready(self, node_id: str) -> None:
        if self._waits_for.get(node_id) != 0:
            return
        feeds = self._feeds[node_id]
        if self._runs_first(node_id):
            rank = 0
        elif any(map(self._runs_first, feeds)):
            rank = 1
        # Two steps and no further, as in ComfyUI: VAE loader → decoder → preview.
        elif any(self._runs_first(further) for target in feeds for further in self._feeds[target]):
            rank = 2
        else:
            rank = 3
        heapq.heappush(self._ready, (rank, self._index[node_id], node_id))
