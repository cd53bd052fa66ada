"""V3 node classes (`define_schema`, `execute`, `NodeOutput`) with the face of V1, which the engine runs."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from .calls import ExecutionBlocker
from .definitions import hidden_kinds

# Hidden values go into the class that V3 functions are called on, not among the arguments, whose names they may bear.
HIDDEN = "hidden."


def is_v3(node_class: Any) -> bool:
    """Return whether a class is a node of V3."""
    return isinstance(node_class, type) and hasattr(node_class, "GET_SCHEMA") and hasattr(node_class, "define_schema")


def as_v1(node: Any) -> type:
    """Return a class that the engine can run in place of a V3 node class; other classes as they are.

    Raises:
        Exception: whatever the class raises when it is asked for its schema.
    """
    if not is_v3(node):
        return node  # type: ignore[no-any-return]
    node.GET_SCHEMA()  # it fills in the class's V1 attributes
    members: dict[str, Any] = {
        name: getattr(node, name)
        for name in ("RETURN_TYPES", "RETURN_NAMES", "OUTPUT_IS_LIST", "INPUT_IS_LIST", "OUTPUT_NODE", "CATEGORY")
    }
    members |= {
        "node": node,
        "DESCRIPTION": node.DESCRIPTION or "",
        "NOT_IDEMPOTENT": getattr(node, "NOT_IDEMPOTENT", False),
        "ACCEPT_ALL_INPUTS": getattr(node, "ACCEPT_ALL_INPUTS", False),
        "FUNCTION": "execute_async" if inspect.iscoroutinefunction(node.execute) else "execute",
    }
    # What the class does not override stands for nothing: the base class has all three.
    for own, name in (("VALIDATE_INPUTS", "validate_inputs"), ("IS_CHANGED", "fingerprint_inputs")):
        if _overrides(node, name):
            members[own] = _class_method(node, name)
    if _overrides(node, "check_lazy_status"):
        members["check_lazy_status"] = _class_method(node, "check_lazy_status")
    return type(node.__name__, (V3Node,), members)


def _overrides(node: Any, name: str) -> bool:
    base = node.GET_BASE_CLASS()
    return any(name in vars(each) for each in itertools.takewhile(lambda each: each is not base, node.__mro__))


def _class_method(node: Any, name: str) -> Any:
    # Wrapped, so that the signature is that of the pack's method: the validation reads the names it takes.
    @functools.wraps(getattr(node, name))
    def method(**given: Any) -> Any:
        clone, values = _prepared(node, given)
        return getattr(clone, name)(**values)

    return staticmethod(method)


class V3Node:
    """The V1 face of one V3 node class, `node`."""

    node: ClassVar[Any]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the declared inputs; hidden ones under names of their own."""
        groups = cls.node.INPUT_TYPES()
        return {**groups, "hidden": {HIDDEN + kind: kind for kind in hidden_kinds(groups).values()}}

    @classmethod
    def live_inputs(cls, groups: Mapping[str, Any], inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the input groups of a node with these inputs: dynamic ones are resolved by their values."""
        finalize = getattr(_io(cls.node), "get_finalized_class_inputs", None)
        if finalize is None:
            return groups
        return {**finalize(dict(groups), dict(inputs))[0], "hidden": groups.get("hidden", {})}

    def execute(self, **given: Any) -> dict[str, Any]:
        """Run the node and return what it gives in V1's form."""
        clone, values = _prepared(self.node, given)
        return as_dict(clone.EXECUTE_NORMALIZED(**values))

    async def execute_async(self, **given: Any) -> dict[str, Any]:
        """Run an async node and return what it gives in V1's form."""
        clone, values = _prepared(self.node, given)
        return as_dict(await clone.EXECUTE_NORMALIZED_ASYNC(**values))


def _io(node: Any) -> ModuleType:
    """Return the module of ComfyUI that the class is built on; it differs from version to version."""
    return sys.modules[node.GET_BASE_CLASS().__module__]


def _prepared(node: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class to call, which holds the hidden values, and the arguments, dynamic ones nested."""
    hidden = {name.removeprefix(HIDDEN): value for name, value in given.items() if name.startswith(HIDDEN)}
    values = {name: value for name, value in given.items() if not name.startswith(HIDDEN)}
    io = _io(node)
    finalize = getattr(io, "get_finalized_class_inputs", None)
    if finalize is None:  # before ComfyUI had dynamic inputs
        return node.PREPARE_CLASS_CLONE(hidden), values
    as_lists = bool(node.INPUT_IS_LIST)
    live = {name: value[0] if as_lists and value else value for name, value in values.items()}
    data = {**finalize(node.INPUT_TYPES(), live)[2], "hidden_inputs": hidden}
    nested = io.build_nested_inputs
    newer = {"input_is_list": as_lists} if "input_is_list" in inspect.signature(nested).parameters else {}
    return node.PREPARE_CLASS_CLONE(data), nested(values, data, **newer)


def as_dict(output: Any) -> dict[str, Any]:
    """Return a NodeOutput as the dictionary that a V1 node returns."""
    parts: dict[str, Any] = {}
    if output.ui is not None:
        parts["ui"] = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
    result = output.result
    if output.block_execution is not None:
        result = ExecutionBlocker(output.block_execution)
    if output.expand is not None:
        parts["expand"] = output.expand
    if result is not None or "expand" in parts:
        parts["result"] = result
    return parts
