"""Runs a graph as ComfyUI runs it: order, lists, lazy inputs, expansion, async nodes, blockers, caching."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from .cache import Cache, Key
from .calls import ExecutionBlocker, Lists, Returned, call, check_ranges, collect, merge
from .dynamic import DynamicPrompt, Scope
from .errors import NodeFailed, NodeMisused, WorkflowError
from .graph import Graph, Link, Node, is_link, parse_node
from .node_types import NodeTypes
from .schedule import Schedule


class Events(Protocol):
    """Who wants to know what the run is doing."""

    def node_started(self, node: Node) -> None:
        """A node begins to run."""

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """A node has its results; `ui` is what it shows, `cached` whether it did not have to run."""

    def node_blocked(self, node: Node, message: str) -> None:
        """A node does not run, because one before it says so; the rest of the graph goes on."""


@dataclass(frozen=True)
class Hidden:
    """What nodes may ask for by hidden inputs."""

    prompt: dict[str, Any] = field(default_factory=dict)
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """A node's outputs, a list of values per slot, and what it shows."""

    outputs: list[list[Any]]
    ui: dict[str, Any]


Results = dict[str, Result]


class Executor:
    """Runs graphs over a set of node classes, keeping results between runs."""

    def __init__(self, classes: Mapping[str, type], events: Events, cache: Cache | None = None) -> None:
        self._classes = classes
        self._events = events
        self._cache = cache or Cache()

    def run(self, graph: Graph, roots: list[str], hidden: Hidden) -> Results:
        """Run the roots and what they need; return the results of all nodes that ran or need not run again.

        Raises:
            NodeFailed: a node raised; results from before it stay in the cache.
            WorkflowError: what nodes expanded into goes in a circle.
        """
        run = Run(self._classes, self._events, self._cache, graph, hidden).all(roots)
        return _in_a_loop(run) if self._any_async else _at_once(run)

    @cached_property
    def _any_async(self) -> bool:
        return any(
            inspect.iscoroutinefunction(getattr(node_class, name, None))
            for node_class in self._classes.values()
            for name in (getattr(node_class, "FUNCTION", ""), "check_lazy_status")
        )


def _at_once(run: Coroutine[Any, Any, Results]) -> Results:
    """Run what never waits: with no async node there is nothing to wait for, and no need of a loop."""
    try:
        run.send(None)
    except StopIteration as done:
        results: Results = done.value
        return results
    raise RuntimeError("a run without async nodes waits")


def _in_a_loop(run: Coroutine[Any, Any, Results]) -> Results:
    # A loop of our own: asyncio.run takes Ctrl-C away from the nodes until one of them awaits.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(run)
    finally:
        _cancel_rest(loop)
        loop.close()


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


class Run:
    """One run of one graph."""

    def __init__(self, classes: Mapping[str, Any], events: Events, cache: Cache, graph: Graph, hidden: Hidden) -> None:
        self._types, self._events, self._cache, self._hidden = NodeTypes(classes), events, cache, hidden
        self._nodes = dict(graph)
        self._scopes: dict[str, Scope] = {}  # of nodes that other nodes expanded into
        self._keys: dict[str, Key] = {}
        self._expanded: dict[str, list[tuple[dict[str, Any] | None, Any]]] = {}
        self._waiting: dict[str, list[Any]] = {}  # results of async calls, some of them tasks
        self._released = asyncio.Event()
        self._schedule = Schedule(
            lambda node_id: self._types.needed(self._nodes[node_id]),
            self._is_done,
            lambda node_id: self._types.is_first(self._nodes[node_id]),
        )
        self._finished: dict[str, Result] = {}
        self._added: dict[str, Any] = {}
        self._dynamic = DynamicPrompt(hidden.prompt, self._added, self._scopes)

    async def all(self, roots: list[str]) -> Results:
        """Run the roots and what they need."""
        self._add_keys(list(self._nodes))
        self._cache.begin(self._nodes.values(), self._keys.values())
        for node_id in list(self._nodes):
            if self._is_done(node_id):
                self._finish(self._nodes[node_id], self._result(node_id), cached=True)
        for root in roots:
            if not self._is_done(root):
                self._schedule.add(root)
        while self._schedule:
            await self._advance()
        return self._finished

    async def _advance(self) -> None:
        """Run one node, or wait for one that waits for something outside."""
        node_id = self._schedule.next()
        if node_id is None:
            await self._wait_outside()
        elif self._is_done(node_id):  # another node just like it has run
            self._finish(self._nodes[node_id], self._result(node_id), cached=True)
            self._schedule.finish(node_id)
        elif await self._step(self._nodes[node_id]):
            self._schedule.finish(node_id)
        else:
            self._schedule.put_back(node_id)

    async def _wait_outside(self) -> None:
        if not self._waiting:
            names = ", ".join(str(self._nodes[node_id]) for node_id in self._schedule.waiting()[:5])
            raise WorkflowError(f"What the graph expanded into goes in a circle, among: {names}.")
        await self._released.wait()
        self._released.clear()

    # Keys and results

    def _add_keys(self, node_ids: list[str]) -> None:
        """Compute keys, parents first; with a stack of our own, since graphs may be deeper than Python's."""
        stack = list(reversed(node_ids))
        opened: set[str] = set()
        while stack:
            node_id = stack[-1]
            missing = [
                link.source
                for _, link in self._nodes[node_id].links()
                if link.source in self._nodes and link.source not in self._keys and link.source not in opened
            ]
            if node_id not in self._keys and missing:
                opened.add(node_id)
                stack += missing
                continue
            stack.pop()
            if node_id not in self._keys:
                self._keys[node_id] = self._key(self._nodes[node_id])

    def _key(self, node: Node) -> Key:
        changed = self._types.changed(node, self._hidden_values(node))
        return self._cache.keys.of(node, self._keys, changed, self._types.key_has_id(node))

    def _scope(self, node_id: str) -> Scope:
        return self._scopes.get(node_id, ())

    def _is_done(self, node_id: str) -> bool:
        return self._cache.get(self._scope(node_id), self._keys[node_id]) is not None

    def _result(self, node_id: str) -> Result:
        result: Result = self._cache.get(self._scope(node_id), self._keys[node_id])
        return result

    def _finish(self, node: Node, result: Result, cached: bool = False) -> None:
        self._finished[node.id] = result
        self._events.node_finished(node, result.ui, cached)

    # Running a node

    async def _step(self, node: Node) -> bool:
        """Bring a node one step on; return whether it has its result.

        Raises:
            NodeFailed: the node raised. Its code is anybody's and may raise anything.
        """
        try:
            returned = await self._returned(node)
            return returned is not None and self._keep(node, returned)
        except NodeFailed:
            raise
        except Exception as error:
            raise NodeFailed(str(node), node.id, error) from error

    async def _returned(self, node: Node) -> Returned | None:
        """Return what a node gave, None where it waits."""
        if node.id in self._expanded:
            return Returned(merge(self._expanded_outputs(node), self._types.of(node)))
        if node.id in self._waiting:
            results = [r.result() if isinstance(r, asyncio.Future) else r for r in self._waiting.pop(node.id)]
        else:
            started = await self._start(node)
            if started is None:
                return None
            results = started
        return collect(results, self._types.of(node))

    async def _start(self, node: Node) -> list[Any] | None:
        """Call a node; None where it first needs lazy inputs, or waits for something outside."""
        node_class = self._types.of(node)
        lists, missing = self._values(node)
        instance = self._cache.node_object(self._scope(node.id), node, node_class)
        as_lists = bool(getattr(node_class, "INPUT_IS_LIST", False))
        if await self._ask_for_lazy(node, instance, lists, missing, as_lists):
            return None
        check_ranges({name: lists[name] for name, _ in node.links()}, self._types.all_options(node))
        self._events.node_started(node)
        function = getattr(instance, node_class.FUNCTION)
        results = await call(
            function, lists, as_lists, lambda blocker: self._blocked(node, blocker), lambda index: _prefix(node, index)
        )
        tasks = [result for result in results if isinstance(result, asyncio.Future)]
        if not tasks:
            return results
        self._waiting[node.id] = results
        release = self._schedule.hold(node.id)

        def end(_: Any) -> None:
            release()
            self._released.set()

        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(end)
        return None

    async def _ask_for_lazy(self, node: Node, instance: Any, lists: Lists, missing: set[str], as_lists: bool) -> bool:
        """Make the node wait for the lazy inputs it says it needs; return whether there are any."""
        ask = getattr(instance, "check_lazy_status", None)
        if ask is None:
            return False
        answers = await call(ask, lists, as_lists, lambda blocker: blocker, lambda index: None)
        answers = [await answer if isinstance(answer, asyncio.Future) else answer for answer in answers]
        wanted = {name for answer in answers if isinstance(answer, list) for name in answer}
        needed = [name for name in wanted if isinstance(name, str) and (name not in lists or name in missing)]
        for name in sorted(needed):
            link = node.inputs.get(name)
            if not isinstance(link, Link):
                raise NodeMisused(f"check_lazy_status asks for the input {name!r}, which nothing is linked to.")
            self._schedule.require(link.source, node.id)
        return bool(needed)

    def _blocked(self, node: Node, blocker: Any) -> Any:
        """Report a blocker that has something to say, once; behind this node it is silent."""
        if blocker.message is None:
            return blocker
        self._events.node_blocked(node, str(blocker.message))
        return ExecutionBlocker(None)

    def _values(self, node: Node) -> tuple[Lists, set[str]]:
        """Return the lists of values of a node's inputs, and the names of those that are not there yet."""
        lists: Lists = {}
        missing: set[str] = set()
        declared = self._types.all_options(node)
        for name, value in node.inputs.items():
            options = declared.get(name)
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
        result = self._cache.get(self._scope(link.source), self._keys[link.source])
        return result.outputs[link.slot] if result is not None and link.slot < len(result.outputs) else None

    def _hidden_values(self, node: Node) -> dict[str, Any]:
        kinds = self._types.hidden(node)
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

    # What a node returned

    def _keep(self, node: Node, returned: Returned) -> bool:
        """Keep a node's result; return False where it expanded into nodes that have to run first."""
        if returned.expansions:
            self._expand(node, returned)
            return False
        result = Result(returned.outputs, returned.ui or self._ui_before(node))
        self._cache.put(self._scope(node.id), self._keys[node.id], result)
        self._finish(node, result)
        return True

    def _ui_before(self, node: Node) -> dict[str, Any]:
        return self._finished[node.id].ui if node.id in self._finished else {}

    def _expand(self, node: Node, returned: Returned) -> None:
        """Add the graphs a node expanded into; it waits for those of their outputs that it gives as its own."""
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
            if self._types.shows(self._nodes[node_id]):
                self._schedule.add(node_id)
        for graph, outputs in returned.expansions:
            for value in outputs or () if graph is not None else ():
                if is_link(value):
                    self._schedule.require(str(value[0]), node.id)

    def _add_node(self, parent: Node, node_id: str, inner: dict[str, Any]) -> str:
        if node_id in self._nodes:
            raise NodeFailed(
                str(parent), parent.id, NodeMisused(f"it expands into a second node of the id {node_id!r}.")
            )
        if inner.get("class_type") not in self._types:
            raise NodeFailed(
                str(parent),
                parent.id,
                NodeMisused(f"it expands into {inner.get('class_type')!r}, which is not known here."),
            )
        self._nodes[node_id] = parse_node(node_id, inner, {})
        self._added[node_id] = inner
        self._scopes[node_id] = (*self._scope(parent.id), parent.id)
        return node_id

    def _expanded_outputs(self, node: Node) -> list[Any]:
        """Return a row of outputs per call, links into the expanded graphs replaced by their values."""
        rows = []
        for graph, outputs in self._expanded.pop(node.id):
            rows.append(outputs if graph is None else tuple(self._resolved(outputs)))
        return rows

    def _resolved(self, outputs: Any) -> Iterator[Any]:
        for value in outputs or ():
            if is_link(value):
                yield from self._linked(Link(str(value[0]), value[1])) or ()
            else:
                yield value


def _prefix(node: Node, index: int) -> None:
    """Tell ComfyUI's GraphBuilder, where a pack has imported it, whose nodes it is about to name."""
    builder = sys.modules.get("comfy_execution.graph_utils")
    if builder is not None:
        builder.GraphBuilder.set_default_prefix(node.id, index, 0)
