"""Node calls: a function over lists of values, and the merged results, as ComfyUI does both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any

from .errors import NodeMisused

Lists = dict[str, list[Any]]  # input → its values, one for each call


class ExecutionBlocker:
    """Given by a node in place of an output: nodes that use it do not run. `message` is shown, None is silent."""

    def __init__(self, message: str | None = None) -> None:
        self.message = message


def is_blocker(value: Any) -> bool:
    """Return whether a value is an ExecutionBlocker: ours, or ComfyUI's, which packs import where they can."""
    # By name, since the engine imports nothing of ComfyUI.
    return type(value).__name__ == "ExecutionBlocker"


@dataclass
class Returned:
    """What a node returned: outputs (a list of values per slot), ui, and graphs to run in its place.

    `expansions` holds one (graph or None, outputs) per call; it is empty where no call expanded.
    """

    outputs: list[list[Any]] = field(default_factory=list)
    ui: dict[str, list[Any]] = field(default_factory=dict)
    expansions: list[tuple[dict[str, Any] | None, Any]] = field(default_factory=list)


def arguments(lists: Lists, as_lists: bool) -> list[dict[str, Any]]:
    """Return the arguments of each call: shorter lists repeat their last value; no inputs make one call.

    Raises:
        NodeMisused: some inputs have values and others are empty lists.
    """
    if as_lists:
        return [lists]
    lengths = set(map(len, lists.values()))
    # Nearly every call; the general case below is slower.
    if lengths == {1}:
        return [{name: values[0] for name, values in lists.items()}]
    length = max(lengths, default=0)
    if empty := [name for name, values in lists.items() if not values and length]:
        raise NodeMisused(f"the input {empty[0]} is an empty list, so there is nothing to run the node on.")
    if not length:
        return [{}]
    return [{name: values[min(i, len(values) - 1)] for name, values in lists.items()} for i in range(length)]


def check_ranges(linked: Lists, options: Mapping[str, dict[str, Any] | None]) -> None:
    """Refuse numbers that arrive by link outside the range their input declares.

    The validation has seen the literals alone, and most nodes rely on what they declared.

    Raises:
        NodeMisused: the input, the number and the bound.
    """
    for name, values in linked.items():
        declared = options.get(name) or {}
        low, high = declared.get("min"), declared.get("max")
        for value in values if low is not None or high is not None else ():
            if not isinstance(value, int | float):
                continue
            if low is not None and value < low:
                raise NodeMisused(f"{name} is {value}, which arrives by link. It must be at least {low}.")
            if high is not None and value > high:
                raise NodeMisused(f"{name} is {value}, which arrives by link. It must be at most {high}.")


async def call(
    function: Callable[..., Any],
    lists: Lists,
    *,
    as_lists: bool,
    on_block: Callable[[Any], Any],
    around: Callable[[int], AbstractContextManager[Any]] | None = None,
) -> list[Any]:
    """Return the result of every call; of an async function, the task where it has not ended at once.

    Args:
        function: the node's bound method.
        lists: its inputs.
        as_lists: whether it takes whole lists in one call.
        on_block: called with a blocker found among the inputs; what it returns stands for the call's result.
        around: given the number of a call, the context it runs in.
    """
    results: list[Any] = []
    for index, given in enumerate(arguments(lists, as_lists)):
        values = (each for value in given.values() for each in (value if as_lists else (value,)))
        blocker = next(filter(is_blocker, values), None)
        if blocker is not None:
            results.append(on_block(blocker))
            continue
        with around(index) if around is not None else nullcontext():
            result = function(**given)
            # Inside: a task takes over the context variables of the moment it is made.
            task = asyncio.ensure_future(result) if isinstance(result, CoroutineType) else None
        if task is not None:
            # One turn of the loop: many async nodes end without ever waiting, and their results are there then.
            await asyncio.sleep(0)
            result = task.result() if task.done() else task
        results.append(result)
    return results


def collect(results: list[Any], node_class: Any) -> Returned:
    """Merge what the calls returned: a tuple, {"ui", "result", "expand"}, or a blocker each."""
    rows, uis, expansions = [], [], []
    expands = False
    for result in results:
        parts = result if isinstance(result, dict) else {"result": result}
        if parts.get("ui"):
            uis.append(parts["ui"])
        if "expand" in parts or "result" in parts:
            outputs = parts.get("result")
            if is_blocker(outputs):
                outputs = (outputs,) * len(node_class.RETURN_TYPES)
            rows.append(outputs)
            # Where one call expands, the others wait with it: their outputs are merged when all are known.
            expansions.append((parts.get("expand"), outputs))
            expands = expands or "expand" in parts
    names = dict.fromkeys(name for each in uis for name in each)
    ui = {name: [item for each in uis for item in each.get(name, ())] for name in names}
    if expands:
        return Returned(ui=ui, expansions=expansions)
    return Returned(merge(rows, node_class), ui)


def merge(rows: list[Any], node_class: Any) -> list[list[Any]]:
    """Return, per output slot, the values of all calls; outputs that are lists are concatenated."""
    if not rows or rows[0] is None:
        return []
    is_list = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(rows[0])
    columns: list[list[Any]] = []
    # strict=False: ComfyUI ignores outputs beyond those the class declares.
    for slot, spread in zip(range(len(rows[0])), is_list, strict=False):
        column: list[Any] = []
        for row in rows:
            # A blocker stands for the whole list, whose length nobody knows.
            column.extend(row[slot] if spread and not is_blocker(row[slot]) else [row[slot]])
        columns.append(column)
    return columns
