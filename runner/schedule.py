"""Which node runs next: every node after what it needs, in the order ComfyUI would take them.

ComfyUI looks through all waiting nodes for each step; here a heap keeps those that are ready, so that
a run costs n·log n. The order is the same: nodes that show something or wait for something outside
first, then those that feed them, then those that feed these, each by the order they were added.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from .graph import Link


class Schedule:
    """The nodes that wait to run, and what each waits for."""

    def __init__(
        self,
        needed: Callable[[str], Iterator[Link]],
        is_done: Callable[[str], bool],
        is_first: Callable[[str], bool],
    ) -> None:
        """Make an empty schedule.

        Args:
            needed: gives the links a node cannot run without.
            is_done: tells whether a node's result is there already.
            is_first: tells whether a node should run as soon as it can.
        """
        self._needed, self._is_done, self._is_first = needed, is_done, is_first
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
            for link in self._needed(node_id):
                if not self._is_done(link.source):
                    stack.append(link.source)
                    links.append((link.source, node_id))
        for source, target in links:
            self._connect(source, target)
        for node_id in added:
            self._offer(node_id)

    def require(self, source: str, target: str) -> None:
        """Make a waiting node wait for one more result."""
        if not self._is_done(source):
            self.add(source)
            self._connect(source, target)
            self._offer(source)

    def hold(self, node_id: str) -> Callable[[], None]:
        """Make a node wait for something outside the graph, until the returned function is called."""
        self._waits_for[node_id] += 1

        def release() -> None:
            self._release(node_id)

        return release

    def next(self) -> str | None:
        """Return a node that can run now; None where all wait."""
        while self._ready:
            _, _, node_id = heapq.heappop(self._ready)
            if self._waits_for.get(node_id) == 0:
                return node_id
        return None

    def put_back(self, node_id: str) -> None:
        """Let a node that `next` gave wait again."""
        self._offer(node_id)

    def finish(self, node_id: str) -> None:
        """Take a node that has run out, and let go on what waited for it."""
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
        self._offer(node_id)

    def _offer(self, node_id: str) -> None:
        """Put a node among the ready ones if it is; one that is there twice is given once."""
        if self._waits_for.get(node_id) == 0:
            heapq.heappush(self._ready, (self._rank(node_id), self._index[node_id], node_id))

    def _rank(self, node_id: str) -> int:
        if self._is_first(node_id):
            return 0
        feeds = self._feeds[node_id]
        if any(map(self._is_first, feeds)):
            return 1
        return 2 if any(self._is_first(further) for target in feeds for further in self._feeds[target]) else 3
