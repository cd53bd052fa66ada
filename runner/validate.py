"""Checks a graph against node definitions, with ComfyUI's error types, before anything runs."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .definitions import ObjectInfo, choices, declared_inputs
from .errors import InvalidGraph, NodeError, WorkflowError
from .graph import Graph, Link, Node, execution_order

log = logging.getLogger("piying")

NUMBERS = {"INT": int, "FLOAT": float}
MAX_INT = 2**64 - 1


@dataclass(frozen=True)
class Verdict:
    """What the validation found.

    Attributes:
        roots: the output nodes with nothing wrong in all they depend on.
        errors: what is wrong, of all nodes that some output depends on.
    """

    roots: list[str]
    errors: list[NodeError]


def validate(graph: Graph, info: ObjectInfo, classes: Mapping[str, type]) -> list[str]:
    """Return the ids of the output nodes, the roots of a run.

    Raises:
        WorkflowError: as `examine` does.
        InvalidGraph: inputs are missing or wrong; every finding is named.
    """
    verdict = examine(graph, info, classes)
    if verdict.errors:
        raise InvalidGraph(verdict.errors)
    return verdict.roots


def examine(graph: Graph, info: ObjectInfo, classes: Mapping[str, type]) -> Verdict:
    """Check all nodes that some output depends on, each once.

    Raises:
        WorkflowError: a node class is not known, there is no output node, or links go in a circle.
    """
    _check_classes(graph, info)
    outputs = [node.id for node in graph.values() if info[node.class_type]["output_node"]]
    if not outputs:
        raise WorkflowError("The workflow has no output node, such as Save Video or Save Image, so nothing would run.")
    needed = _needed(graph, outputs)
    errors = [error for node in needed for error in node_errors(node, graph, info, classes)]
    wrong = {error.node_id for error in errors}
    roots = [root for root in outputs if not wrong or not wrong & {node.id for node in _needed(graph, [root])}]
    if len(roots) == len(outputs):
        execution_order(graph, roots)  # refuses circles
    return Verdict(roots, errors)


def _check_classes(graph: Graph, info: ObjectInfo) -> None:
    for node in graph.values():
        if node.class_type not in info:
            near = difflib.get_close_matches(node.class_type, info, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise WorkflowError(
                f"{node}: the node class {node.class_type!r} is not known here. {hint}"
                "The runner knows Piying's nodes and the ComfyUI core nodes that its workflows use."
            )


def _needed(graph: Graph, roots: list[str]) -> list[Node]:
    """Return the nodes the roots depend on, roots first; links to nowhere are left to the checks."""
    seen: dict[str, Node] = {}
    stack = list(roots)
    while stack:
        node_id = stack.pop()
        if node_id in graph and node_id not in seen:
            seen[node_id] = graph[node_id]
            stack += [link.source for _, link in graph[node_id].links()]
    return list(seen.values())


def node_errors(node: Node, graph: Graph, info: ObjectInfo, classes: Mapping[str, type]) -> list[NodeError]:
    """Return what is wrong with a node's inputs; literals are converted to their declared types in place."""
    own_checks = _own_check_names(classes.get(node.class_type))
    errors = list(_declared_errors(node, graph, info, own_checks))
    # The node's own check may rely on values of the right type, so it comes last and only then.
    return errors or _own_errors(node, classes.get(node.class_type), own_checks)


def _declared_errors(node: Node, graph: Graph, info: ObjectInfo, own_checks: set[str]) -> Iterator[NodeError]:
    declared = declared_inputs(info[node.class_type])
    for name, (kind, options, required) in declared.items():
        if name not in node.inputs:
            if required:
                yield _error("required_input_missing", node, name, f"the input {name} is missing. {_wanted(kind)}")
        elif isinstance(value := node.inputs[name], Link):
            yield from _link_errors(node, name, value, kind, graph, info)
        else:
            yield from _value_errors(node, name, kind, options, name in own_checks)
    yield from _undeclared_errors(node, list(declared))


def _undeclared_errors(node: Node, declared: list[str]) -> Iterator[NodeError]:
    """Refuse a link to an input that is not there; let a value pass, since the browser adds some of its own."""
    for name in set(node.inputs) - set(declared):
        text = f"has no input {name!r}. It has: {', '.join(declared)}."
        if isinstance(node.inputs[name], Link):
            yield _error("unknown_input", node, name, text)
        elif difflib.get_close_matches(name, declared, n=1, cutoff=0.75):
            log.warning("%s: %s The value is not used.", node, text)


def _error(kind: str, node: Node, name: str | None, message: str) -> NodeError:
    return NodeError(kind, str(node), message, node.id, name)


def _wanted(kind: Any) -> str:
    return "Give it a value." if isinstance(kind, list) or kind in NUMBERS else f"Connect a {kind} to it."


def _link_errors(node: Node, name: str, link: Link, kind: Any, graph: Graph, info: ObjectInfo) -> Iterator[NodeError]:
    if link.source not in graph:
        yield _error("bad_linked_input", node, name, f"{name} is linked to node {link.source}, which is not there.")
        return
    outputs = info[graph[link.source].class_type]["output"]
    if not 0 <= link.slot < len(outputs):
        source = graph[link.source]
        yield _error(
            "bad_linked_input",
            node,
            name,
            f"{name} is linked to output {link.slot} of {source}, which has {len(outputs)}.",
        )
    elif not types_match(outputs[link.slot], kind):
        yield _error(
            "return_type_mismatch",
            node,
            name,
            f"{name} takes {_shown(kind)}, but {graph[link.source]} gives {_shown(outputs[link.slot])}.",
        )


def _shown(kind: Any) -> str:
    return "a choice" if isinstance(kind, list) else str(kind)


def types_match(given: Any, wanted: Any) -> bool:
    """Return whether an output of type `given` may feed an input of type `wanted`, as ComfyUI decides.

    Types of several kinds are written "INT,FLOAT"; one in common is enough. Packs make types that
    fit all by a str whose `!=` is always false.
    """
    if not given != wanted or "*" in (given, wanted):  # noqa: SIM202
        return True
    if not isinstance(given, str) or not isinstance(wanted, str):
        return False
    return bool({kind.strip() for kind in given.split(",")} & {kind.strip() for kind in wanted.split(",")})


def _value_errors(node: Node, name: str, kind: Any, options: dict[str, Any], own_check: bool) -> Iterator[NodeError]:
    """Convert a literal to its declared type, in place, and check its range unless the node does."""
    offered = choices(kind, options)
    value = node.inputs[name]
    if offered is None:
        try:
            value = node.inputs[name] = converted(value, kind)
        except (ValueError, TypeError, OverflowError):
            yield _error("invalid_input_type", node, name, f"{name} is {value!r}, which is not {_article(kind)}.")
            return
    if own_check:
        return
    if offered is not None and value not in offered:
        yield _error("value_not_in_list", node, name, f"{name} is {value!r}. Choose one of: {_listed(offered)}.")
    elif offered is None and kind in NUMBERS:
        yield from _range_errors(node, name, value, options)


def converted(value: Any, kind: Any) -> Any:
    """Return a literal as its declared type, with ComfyUI's conversions.

    Raises:
        ValueError, TypeError, OverflowError: it cannot be converted.
    """
    if isinstance(kind, list):
        return value
    if kind in NUMBERS:
        number = NUMBERS[kind](value)
        if (isinstance(number, float) and not math.isfinite(number)) or abs(number) > MAX_INT:
            raise ValueError(value)
        return number
    if kind == "BOOLEAN":
        return value.lower() not in ("false", "0", "") if isinstance(value, str) else bool(value)
    return str(value) if kind == "STRING" else value


def _article(kind: Any) -> str:
    return {"INT": "a whole number", "FLOAT": "a finite number"}.get(str(kind), f"a {kind}")


def _listed(offered: list[Any], most: int = 20) -> str:
    rest = f", … ({len(offered) - most} more)" if len(offered) > most else ""
    return ", ".join(map(str, offered[:most])) + rest


def _range_errors(node: Node, name: str, value: float, options: dict[str, Any]) -> Iterator[NodeError]:
    low, high = options.get("min"), options.get("max")
    if low is not None and value < low:
        yield _error("value_smaller_than_min", node, name, f"{name} is {value}. It must be at least {low}.")
    if high is not None and value > high:
        yield _error("value_bigger_than_max", node, name, f"{name} is {value}. It must be at most {high}.")


def _own_check_names(node_class: Any) -> set[str]:
    """Return the inputs that the class's VALIDATE_INPUTS names, which it then checks alone."""
    check = getattr(node_class, "VALIDATE_INPUTS", None)
    if check is None:
        return set()
    code = check.__func__.__code__
    return set(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


def _own_errors(node: Node, node_class: Any, names: set[str]) -> list[NodeError]:
    """Run VALIDATE_INPUTS on the literal inputs; linked ones are None to it, as in ComfyUI."""
    if not names:
        return []
    values = {name: None if isinstance(node.inputs.get(name), Link) else node.inputs.get(name) for name in names}
    try:
        result = node_class.VALIDATE_INPUTS(**values)
    except Exception as error:  # noqa: BLE001 - node code is anybody's and may raise anything
        return [_error("exception_during_validation", node, None, f"{type(error).__name__}: {error}")]
    if result is True:
        return []
    message = result if isinstance(result, str) else "an input was refused by the node."
    return [_error("custom_validation_failed", node, None, message)]
