"""Execution of a graph as ComfyUI does it: order, lists, lazy inputs, expansion, async nodes, blockers, cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

from .cache import Cache, Key
from .calls import ExecutionBlocker, Lists, Returned, call, check_ranges, collect, merge
from .definitions import NodeTypes, is_async
from .errors import NodeFailed, NodeMisused, WorkflowError
from .graph import DynamicPrompt, Graph, Link, Node, Scope, is_link, parse_node
from .schedule import Schedule


class Events(Protocol):
    """Called with what the run is doing."""

    def node_started(self, node: Node) -> None:
        """A node begins to run."""

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """A node has its results; `ui` is what it shows, `cached` whether it did not have to run."""

    def node_blocked(self, node: Node, message: str) -> None:
        """A node does not run, because one before it says so; the rest of the graph goes on."""


@dataclass(frozen=True)
class Hidden:
    """The values of hidden inputs."""

    prompt: dict[str, Any] = field(default_factory=dict)
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """A node's outputs, a list of values per slot, and its ui: what it shows."""

    outputs: list[list[Any]]
    ui: dict[str, Any]


Results = dict[str, Result]
# Given a node and the number of the call, the context in which its function runs.
CallContext = Callable[[Node, int], AbstractContextManager[Any]]


class Executor:
    """Runs graphs over a set of node classes, with a cache of results between runs."""

    def __init__(
        self,
        classes: Mapping[str, type],
        events: Events,
        cache: Cache | None = None,
        around: CallContext | None = None,
    ) -> None:
        self._classes = classes
        self._events = events
        self._cache = cache or Cache()
        self._around = around

    def run(self, graph: Graph, roots: list[str], hidden: Hidden) -> Results:
        """Run the roots and what they need; return the results of all nodes that ran or need not run again.

        Raises:
            NodeFailed: a node raised; results from before it stay in the cache.
            WorkflowError: what nodes expanded into has a cycle.
        """
        run = Run(
            graph,
            classes=self._classes,
            events=self._events,
            cache=self._cache,
            hidden=hidden,
            around=self._around,
        ).all(roots)
        if not self._any_async:
            # Nothing ever waits, so one step runs it all, without the cost of an event loop.
            try:
                run.send(None)
            except StopIteration as done:
                results: Results = done.value
                return results
            raise RuntimeError("a run without async nodes waits")
        # A loop of our own: asyncio.run takes Ctrl-C away from the nodes until one of them awaits.
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(run)
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

    @cached_property
    def _any_async(self) -> bool:
        return any(is_async(node_class, "check_lazy_status") for node_class in self._classes.values())


class Run:
    """One run of one graph."""

    def __init__(
        self,
        graph: Graph,
        *,
        classes: Mapping[str, Any],
        events: Events,
        cache: Cache,
        hidden: Hidden,
        around: CallContext | None = None,
    ) -> None:
        self._around = around
        self._types, self._events, self._cache, self._hidden = NodeTypes(classes), events, cache, hidden
        self._nodes = dict(graph)
        self._scopes: dict[str, Scope] = {}  # of nodes that other nodes expanded into
        self._keys: dict[str, Key] = {}
        self._expanded: dict[str, list[tuple[dict[str, Any] | None, Any]]] = {}
        self._pending: dict[str, list[Any]] = {}  # results of async calls, some of them tasks
        self._released = asyncio.Event()
        self._schedule = Schedule(
            lambda node_id: self._types.of(self._nodes[node_id]).strong_links(self._nodes[node_id]),
            self._is_done,
            lambda node_id: self._types.of(self._nodes[node_id]).runs_first,
        )
        self._finished: Results = {}
        self._added: dict[str, Any] = {}
        self._dynamic = DynamicPrompt(hidden.prompt, self._added, self._scopes)

    async def all(self, roots: list[str]) -> Results:
        """Run the roots and what they need."""
        self._add_keys(list(self._nodes))
        self._cache.begin(self._nodes.values(), self._keys.values())
        for node in list(self._nodes.values()):
            self._finish_from_cache(node)
        for root in roots:
            if not self._is_done(root):
                self._schedule.add(root)
        while self._schedule:
            node_id = self._schedule.next()
            if node_id is None:
                if not self._pending:
                    # The validation refused cycles in the file, so this one comes from an expansion.
                    names = ", ".join(str(self._nodes[each]) for each in self._schedule.waiting()[:5])
                    raise WorkflowError(f"What the graph expanded into goes in a circle, among: {names}.")
                await self._released.wait()
                self._released.clear()
            # A node before it may have had the same key.
            elif self._finish_from_cache(self._nodes[node_id]) or await self._step(self._nodes[node_id]):
                self._schedule.finish(node_id)
            else:
                self._schedule.put_back(node_id)
        return self._finished

    # Keys and results

    def _add_keys(self, node_ids: list[str]) -> None:
        """Compute keys, parents first."""
        # With an explicit stack: graphs may be deeper than Python's recursion limit.
        stack = list(reversed(node_ids))
        opened: set[str] = set()
        while stack:
            node_id = stack[-1]
            if node_id in self._keys:
                stack.pop()
                continue
            node = self._nodes[node_id]
            missing = [
                link.source
                for _, link in node.links()
                if link.source in self._nodes and link.source not in self._keys and link.source not in opened
            ]
            if missing:
                opened.add(node_id)
                stack += missing
                continue
            stack.pop()
            node_type = self._types.of(node)
            changed = node_type.changed(node, self._hidden_values(node))
            self._keys[node_id] = self._cache.keys.of(node, self._keys, changed, node_type.key_has_id)

    def _scope(self, node_id: str) -> Scope:
        return self._scopes.get(node_id, ())

    def _result(self, node_id: str) -> Result | None:
        result: Result | None = self._cache.get(self._scope(node_id), self._keys[node_id])
        return result

    def _is_done(self, node_id: str) -> bool:
        return self._result(node_id) is not None

    def _finish_from_cache(self, node: Node) -> bool:
        result = self._result(node.id)
        if result is not None:
            self._finished[node.id] = result
            self._events.node_finished(node, result.ui, True)
        return result is not None

    # Running a node

    async def _step(self, node: Node) -> bool:
        """Bring a node one step on; return whether it has its result.

        Raises:
            NodeFailed: the node raised.
        """
        try:
            if node.id in self._expanded:
                returned = Returned(merge(self._expanded_rows(node), self._types.of(node).node_class))
            else:
                results = await self._call(node)
                if results is None:
                    return False
                returned = collect(results, self._types.of(node).node_class)
            if returned.expansions:
                self._expand(node, returned)
                return False
            before = self._finished.get(node.id)  # what it showed when it expanded
            result = Result(returned.outputs, returned.ui or (before.ui if before else {}))
            self._cache.put(self._scope(node.id), self._keys[node.id], result)
            self._finished[node.id] = result
            self._events.node_finished(node, result.ui, False)
            return True
        except (Exception, SystemExit) as error:  # a node's code is anybody's and may raise anything
            raise NodeFailed(str(node), node.id, error) from error

    async def _call(self, node: Node) -> list[Any] | None:
        """Return the result of each call of a node; None where it first waits for lazy inputs or async calls."""
        if node.id in self._pending:
            # It is scheduled again when all its tasks have ended.
            return [r.result() if isinstance(r, asyncio.Future) else r for r in self._pending.pop(node.id)]
        node_type = self._types.of(node)
        node_class = node_type.node_class
        lists, missing = self._input_lists(node)
        instance = self._cache.node_object(self._scope(node.id), node, node_class)
        as_lists = bool(getattr(node_class, "INPUT_IS_LIST", False))
        lazy_status = getattr(instance, "check_lazy_status", None)
        if lazy_status is not None:
            answers = await call(lazy_status, lists, as_lists=as_lists, on_block=lambda blocker: blocker)
            answers = [await answer if isinstance(answer, asyncio.Future) else answer for answer in answers]
            if self._require_lazy(node, lists, missing, answers):
                return None
        linked = {name: lists[name] for name, _ in node.links()}
        check_ranges(linked, {name: node_type.options(node, name) for name in linked})
        self._events.node_started(node)

        def on_block(blocker: Any) -> Any:
            if blocker.message is None:
                return blocker
            self._events.node_blocked(node, str(blocker.message))
            # Reported once: behind this node the blocker is silent.
            return ExecutionBlocker(None)

        around = None if self._around is None else partial(self._around, node)
        function = getattr(instance, node_class.FUNCTION)
        results = await call(function, lists, as_lists=as_lists, on_block=on_block, around=around)
        tasks = [result for result in results if isinstance(result, asyncio.Future)]
        if not tasks:
            return results
        self._pending[node.id] = results
        release = self._schedule.hold(node.id)

        def end(_: Any) -> None:
            release()
            self._released.set()

        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(end)
        return None

    def _require_lazy(self, node: Node, lists: Lists, missing: set[str], answers: list[Any]) -> bool:
        """Make the node wait for the lazy inputs that check_lazy_status names; return whether there are any."""
        names = {name for answer in answers if isinstance(answer, list) for name in answer}
        needed = [name for name in names if isinstance(name, str) and (name not in lists or name in missing)]
        for name in sorted(needed):  # a set has no order, and the schedule's must be the same in every run
            link = node.inputs.get(name)
            if not isinstance(link, Link):
                raise NodeMisused(f"check_lazy_status asks for the input {name!r}, which nothing is linked to.")
            self._schedule.require(link.source, node.id)
        return bool(needed)

    def _input_lists(self, node: Node) -> tuple[Lists, set[str]]:
        """Return the lists of values of a node's inputs, and the names of those that are not there yet."""
        lists: Lists = {}
        missing: set[str] = set()
        node_type = self._types.of(node)
        for name, value in node.inputs.items():
            options = node_type.options(node, name)
            if isinstance(value, Link) and not (options or {}).get("rawLink"):
                values = self._linked(value)
                if values is None:
                    missing.add(name)
                lists[name] = [None] if values is None else values
            elif options is not None:
                lists[name] = [[value.source, value.slot] if isinstance(value, Link) else value]
        lists |= {name: [value] for name, value in self._hidden_values(node).items()}
        return lists, missing

    def _linked(self, link: Link) -> list[Any] | None:
        """Return the values of an output, None where they are not there yet."""
        result = self._result(link.source)
        return result.outputs[link.slot] if result is not None and link.slot < len(result.outputs) else None

    def _hidden_values(self, node: Node) -> dict[str, Any]:
        kinds = self._types.of(node).hidden
        if not kinds:
            return {}
        known = {
            "PROMPT": self._hidden.prompt,
            "EXTRA_PNGINFO": self._hidden.extra_pnginfo,
            "UNIQUE_ID": node.id,
            "DYNPROMPT": self._dynamic,
            # ComfyUI's accounts; nobody is signed in here.
            "AUTH_TOKEN_COMFY_ORG": None,
            "API_KEY_COMFY_ORG": None,
        }
        return {name: known[kind] for name, kind in kinds.items() if kind in known}

    # Expansion

    def _expand(self, node: Node, returned: Returned) -> None:
        """Add the graphs a node expanded into; it waits for those of their outputs that it returns as its own."""
        if returned.ui:
            self._finished[node.id] = Result([], returned.ui)
        added = [
            self._add_node(node, node_id, inner)
            for graph, _ in returned.expansions
            for node_id, inner in (graph or {}).items()
        ]
        self._add_keys(added)
        scope = (*self._scope(node.id), node.id)
        self._cache.begin_scope(scope, [self._keys[node_id] for node_id in added])
        self._expanded[node.id] = returned.expansions
        for node_id in added:
            if self._types.of(self._nodes[node_id]).is_output:
                self._schedule.add(node_id)
        for graph, outputs in returned.expansions:
            # A call that returned plain values beside others that expanded has no links among its outputs.
            for value in outputs or () if graph is not None else ():
                if is_link(value):
                    self._schedule.require(str(value[0]), node.id)

    def _add_node(self, parent: Node, node_id: str, inner: dict[str, Any]) -> str:
        if node_id in self._nodes:
            raise NodeMisused(f"it expands into a second node of the id {node_id!r}.")
        if inner.get("class_type") not in self._types:
            raise NodeMisused(f"it expands into {inner.get('class_type')!r}, which is not known here.")
        self._nodes[node_id] = parse_node(node_id, inner, {})
        self._added[node_id] = inner
        self._scopes[node_id] = (*self._scope(parent.id), parent.id)
        return node_id

    def _expanded_rows(self, node: Node) -> list[Any]:
        """Return a row of outputs per call, links into the expanded graphs replaced by their values."""
        rows = []
        for graph, outputs in self._expanded.pop(node.id):
            if graph is None:
                rows.append(outputs)
                continue
            row: list[Any] = []
            for value in outputs or ():
                row += (self._linked(Link(str(value[0]), value[1])) or ()) if is_link(value) else [value]
            rows.append(tuple(row))
        return rows
