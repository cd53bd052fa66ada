"""Validation of a graph against node definitions, with ComfyUI's error types, before anything runs."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .definitions import (
    NodeType,
    ObjectInfo,
    combo_choices,
    declared_inputs,
    find_input,
    live_groups,
    replacements,
)
from .errors import NodeError, NodeMisused, UnknownClassesError, UnknownNode, WorkflowError
from .graph import Graph, Link, Node, ValueList, execution_order
from .known_values import KnownValues
from .ui_widgets import WIDGET_TYPES

log = logging.getLogger("piying")

NUMBERS = {"INT": int, "FLOAT": float}
# V3's second one is of the type of another input, which only the page keeps track of.
ANY_TYPE = ("*", "COMFY_MATCHTYPE_V3")
VALUED = frozenset({"default", "widgetType"})  # options of inputs that have a widget
MAX_INT = 2**64 - 1  # ComfyUI's largest seed
MAX_CHOICES_LISTED = 20
MAX_NAME = 200
MAX_STRANGE = 5  # inputs that a node does not have, each with a line of its own


class NumberTooLargeError(ValueError):
    """A number beyond MAX_INT, or below its negative where `negative`."""

    def __init__(self, negative: bool) -> None:
        super().__init__(f"beyond {MAX_INT} in size")
        self.negative = negative

    def remedy(self, options: dict[str, Any]) -> str:
        """Return what is allowed instead, by the options of the input."""
        if self.negative:
            return f"It must be at least {options.get('min', -MAX_INT)}."
        return f"It must be at most {options.get('max', MAX_INT)}."


@dataclass(frozen=True)
class Validation:
    """What the validation found.

    Attributes:
        roots: the output nodes with nothing wrong in all they depend on.
        errors: what is wrong, of all nodes that some output depends on.
    """

    roots: list[str]
    errors: list[NodeError]


def validate_graph(graph: Graph, info: ObjectInfo, classes: Mapping[str, type]) -> Validation:
    """Check all nodes that some output depends on, each once; literals are converted to their types in place.

    Raises:
        UnknownClassesError: node classes are not known.
        WorkflowError: there is no output node, or links form a cycle.
    """
    check_known([(node.class_type, str(node), node.pack, node.inputs.values()) for node in graph.values()], info)
    outputs = [node.id for node in graph.values() if info[node.class_type]["output_node"]]
    if not outputs:
        raise WorkflowError("The workflow has no output node, such as Save Video or Save Image, so nothing would run.")
    errors: list[NodeError] = []
    for node in _dependencies(graph, outputs):
        check = _OwnCheck.of(classes.get(node.class_type), info[node.class_type]["input"])
        found = list(_Declarations(graph, info, classes).errors(node, check))
        # The node's own check may rely on values of the right type, so it comes last and only then.
        errors += found or check.errors(node, graph, classes)
    roots = _without(errors, graph, outputs)
    # The search for cycles follows every link, so links to nowhere must have been ruled out.
    refused = list(_refused(KnownValues(graph, classes, info), execution_order(graph, roots)))
    return Validation(_without(refused, graph, roots), errors + refused)


def _without(errors: Iterable[NodeError], graph: Graph, roots: list[str]) -> list[str]:
    """Return the roots that depend on no node with an error."""
    wrong = {error.node_id for error in errors}
    return [root for root in roots if not wrong or not wrong & {node.id for node in _dependencies(graph, [root])}]


def _refused(values: KnownValues, nodes: Iterable[Node]) -> Iterator[NodeError]:
    """Yield what is wrong with what comes in by the wires of nodes, as far as it is known before a run."""
    for node in nodes:
        try:
            values.learn(node)
        except NodeMisused as error:
            yield _error("custom_validation_failed", node, None, str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - node code is anybody's and may raise anything
            yield _error("exception_during_validation", node, None, f"{type(error).__name__}: {error}")


def check_known(nodes: Iterable[tuple[str, str, str, Iterable[Any]]], info: ObjectInfo) -> None:
    """Check that the classes of nodes (class, "title (node id)", pack, values) are known.

    Raises:
        UnknownClassesError: some are not; all of them are named.
    """
    unknown = [node for node in nodes if node[0] not in info]
    if not unknown:
        return
    texts = [value[:MAX_NAME] for node in unknown for value in node[3] if isinstance(value, str)]
    instead = replacements((node[0] for node in unknown), texts, info)
    # To compare long names takes long, and no class has one.
    names = [name for name in {node[0] for node in unknown} if len(name) <= MAX_NAME]
    # Regardless of case: PiyingVaceSample is nearer to PiyingVACESample than to any other name.
    lower = {name.lower(): name for name in info}
    near = {
        name: [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=1)]
        for name in names[:MAX_CHOICES_LISTED]
    }
    raise UnknownClassesError(
        [
            UnknownNode(
                class_type,
                node,
                pack,
                "".join(() if instead.get(class_type) else near.get(class_type, ())),
                instead.get(class_type, ()),
            )
            for class_type, node, pack, _ in unknown
        ]
    )


def _dependencies(graph: Graph, roots: list[str]) -> list[Node]:
    """Return the roots and the nodes they depend on, roots first; links to nowhere are left to the checks."""
    seen: dict[str, Node] = {}
    stack = list(roots)
    while stack:
        node_id = stack.pop()
        if node_id in graph and node_id not in seen:
            seen[node_id] = graph[node_id]
            stack += [link.source for _, link in graph[node_id].links()]
    return list(seen.values())


def _error(kind: str, node: Node, name: str | None, message: str) -> NodeError:
    return NodeError(kind, str(node), message, node.id, name)


@dataclass(frozen=True)
class _Declarations:
    """What the classes of a graph declare, and what of its nodes does not agree with it."""

    graph: Graph
    info: ObjectInfo
    classes: Mapping[str, type]

    def errors(self, node: Node, check: _OwnCheck) -> Iterator[NodeError]:
        """Yield what is wrong with the inputs of a node."""
        try:
            groups = live_groups(check.node_class, check.groups, node)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - node code is anybody's and may raise anything
            yield _error("invalid_dynamic_input", node, None, f"{type(error).__name__}: {error}")
            return
        declared = declared_inputs({"input": groups})
        for name, (kind, options, required) in declared.items():
            if name not in node.inputs:
                if required:
                    literal = isinstance(kind, list) or kind in NUMBERS or kind == "COMBO"
                    wanted = "Give it a value." if literal else f"Connect a {kind} to it."
                    yield _error("required_input_missing", node, name, f"the input {name} is missing. {wanted}")
            elif isinstance(node.inputs[name], Link):
                yield from self._link_errors(node, name, None if check.takes_types else kind)
            elif self._is_socket(kind, options) and (required or node.inputs[name] is not None):
                message = f"{name} is {node.inputs[name]!r}, which is no {kind}. Connect a {kind} to it."
                yield _error("invalid_input_type", node, name, message)
            else:
                yield from _literal_errors(node, name, kind, options=options, own_check=check.covers(name))
        yield from self._undeclared_errors(node, check, groups, list(declared))

    def _is_socket(self, kind: Any, options: dict[str, Any]) -> bool:
        """Return whether values of a type come from other nodes alone.

        Extensions of the browser make widgets of types of their own; what such an input declares has a default.
        """
        # Of a plain str alone: packs make types that are equal to all.
        return type(kind) is str and kind in self._given and kind not in WIDGET_TYPES and not options.keys() & VALUED

    @cached_property
    def _given(self) -> frozenset[str]:
        """The types that nodes give which are known here, without those that fit any input."""
        given = (kind for each in self.info.values() for kind in each.get("output", ()) if type(kind) is str)
        return frozenset(given) - set(ANY_TYPE)

    def _undeclared_errors(
        self, node: Node, check: _OwnCheck, groups: Mapping[str, Any], declared: list[str]
    ) -> Iterator[NodeError]:
        """Yield what is wrong with the inputs that a node's class does not list."""
        strange = []
        for name in (name for name in node.inputs if name not in declared):
            if find_input(groups, name) is not None or check.accepts_all:
                yield from self._link_errors(node, name, None)
            else:
                strange.append(name)
        strange.sort(key=lambda name: not isinstance(node.inputs[name], Link))  # links are errors
        for name in strange[:MAX_STRANGE]:
            near = difflib.get_close_matches(name, declared, n=1) if len(name) <= MAX_NAME else []
            hint = f" Did you mean {near[0]}?" if near else ""
            text = f"has no input {name[:MAX_NAME]!r}.{hint} It has: {', '.join(declared)}."
            if isinstance(node.inputs[name], Link):
                yield _error("unknown_input", node, name, text)
            # The browser saves what it shows among the inputs: previews are objects, players empty texts, and the
            # button of a node that loads files is `upload`.
            elif name != "upload" and not isinstance(node.inputs[name], dict) and node.inputs[name] not in ("", None):
                log.warning("%s: %s The value is not used.", node, text)
        if len(strange) > MAX_STRANGE:
            log.warning("%s: %d more inputs that it does not have are not used.", node, len(strange) - MAX_STRANGE)

    def _link_errors(self, node: Node, name: str, kind: Any) -> Iterator[NodeError]:
        """Yield what is wrong with a link to an input of a type, or of None where it takes any."""
        link = node.inputs[name]
        if not isinstance(link, Link):
            return
        if link.source not in self.graph:
            yield _error(
                "bad_linked_input", node, name, f"{name} is linked to node {link.source}, which is not there."
            )
            return
        source = self.graph[link.source]
        given = output_type(source, link.slot, self.classes)
        if given is None:
            count = len(self.info[source.class_type].get("output", ()))
            message = f"{name} is linked to output {link.slot} of {source}, which has {count}."
            yield _error("bad_linked_input", node, name, message)
        elif kind is not None and not types_match(given, kind):
            given, wanted = ("a choice" if isinstance(each, list) else each for each in (given, kind))
            yield _error("return_type_mismatch", node, name, f"{name} takes {wanted}, but {source} gives {given}.")


def output_type(source: Node, slot: int, classes: Mapping[str, Any]) -> Any:
    """Return the type of an output slot, None where there is no such slot.

    The class's own sequence is asked, as ComfyUI does: packs have some that answer for every slot.
    """
    try:
        return classes[source.class_type].RETURN_TYPES[slot] if slot >= 0 else None
    except IndexError:
        return None


def types_match(given: Any, wanted: Any) -> bool:
    """Return whether an output of type `given` may feed an input of type `wanted`, as ComfyUI decides."""
    # Packs make types that fit all by a str whose `!=` is always false.
    if not given != wanted or given in ANY_TYPE or wanted in ANY_TYPE:  # noqa: SIM202
        return True
    if isinstance(given, list) and wanted == "COMBO":  # V1's choices and V3's
        return True
    if not isinstance(given, str) or not isinstance(wanted, str):
        return False
    # "INT,FLOAT" stands for either: one in common is enough.
    return bool({kind.strip() for kind in given.split(",")} & {kind.strip() for kind in wanted.split(",")})


def _literal_errors(
    node: Node, name: str, kind: Any, *, options: dict[str, Any], own_check: bool
) -> Iterator[NodeError]:
    """Convert a literal to its declared type, in place, and check its range unless the node does."""
    choices = combo_choices(kind, options)
    value = node.inputs[name]
    if choices is None:
        if value is None and kind == "STRING":
            log.warning("%s: %s is null, which becomes the text 'None', as in ComfyUI.", node, name)
        try:
            value = node.inputs[name] = converted(value, kind)
        except NumberTooLargeError as error:
            kind_of_error = "value_smaller_than_min" if error.negative else "value_bigger_than_max"
            yield _error(kind_of_error, node, name, f"{name} is {value}. {error.remedy(options)}")
            return
        except (ValueError, TypeError, OverflowError):
            wanted = {"INT": "a whole number", "FLOAT": "a finite number"}.get(str(kind), f"a {kind}")
            yield _error("invalid_input_type", node, name, f"{name} is {value!r}, which is not {wanted}.")
            return
    if own_check:
        return
    if choices is not None and value not in choices:
        rest = len(choices) - MAX_CHOICES_LISTED
        listed = ", ".join(map(str, choices[:MAX_CHOICES_LISTED])) + (f", … ({rest} more)" if rest > 0 else "")
        allowed = f"Choose one of: {listed}." if choices else "There is none to choose."
        yield _error("value_not_in_list", node, name, f"{name} is {value!r}. {allowed}")
    elif choices is None and kind in NUMBERS:
        low, high = (one if isinstance(one, (int, float)) else None for one in map(options.get, ("min", "max")))
        if low is not None and value < low:
            message = f"{name} is {value}. It must be at least {low}."
            yield _error("value_smaller_than_min", node, name, message)
        if high is not None and value > high:
            message = f"{name} is {value}. It must be at most {high}."
            yield _error("value_bigger_than_max", node, name, message)


def converted(value: Any, kind: Any) -> Any:
    """Return a literal as its declared type, with ComfyUI's conversions.

    Raises:
        ValueError, TypeError, OverflowError: it cannot be converted.
        NumberTooLargeError: a number is beyond what 64 bits hold.
    """
    if isinstance(kind, list):
        return value
    if kind in ("STRING", "BOOLEAN") and isinstance(value, list) and not isinstance(value, ValueList):
        raise TypeError(value)  # ComfyUI reads every other list as a link
    if kind in NUMBERS:
        number = NUMBERS[kind](value)
        # NaN passes every comparison with a range, and torch's integers end at 64 bits.
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(value)
        if abs(number) > MAX_INT:
            raise NumberTooLargeError(number < 0)
        return number
    if kind == "BOOLEAN":
        return value.lower() not in ("false", "0", "") if isinstance(value, str) else bool(value)
    return str(value) if kind == "STRING" else value


@dataclass(frozen=True)
class _OwnCheck:
    """A class's VALIDATE_INPUTS.

    Attributes:
        node_class, groups: the class and its input groups.
        names: the inputs it names: the node alone checks these, as in ComfyUI.
        takes_all: it takes every input, and so checks them all.
    """

    node_class: Any
    groups: dict[str, Any]
    names: frozenset[str] = frozenset()
    takes_all: bool = False

    @classmethod
    def of(cls, node_class: Any, groups: dict[str, Any]) -> _OwnCheck:
        """Return the check of a class, one of nothing where it has none."""
        check = getattr(node_class, "VALIDATE_INPUTS", None)
        if check is None:
            return cls(node_class, groups)
        parameters = inspect.signature(check).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return cls(
            node_class,
            groups,
            frozenset(each.name for each in parameters if each.kind in named),
            any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters),
        )

    @property
    def takes_types(self) -> bool:
        """Whether it checks the types of links itself."""
        return "input_types" in self.names

    @property
    def accepts_all(self) -> bool:
        """Whether the node's function takes links to inputs that nobody declared, such as the page adds to some."""
        function = getattr(self.node_class, getattr(self.node_class, "FUNCTION", None) or "", None)
        return bool(getattr(self.node_class, "ACCEPT_ALL_INPUTS", False)) or (
            # V3's own functions take anything and hand it on.
            callable(function)
            and not hasattr(self.node_class, "live_inputs")
            and any(
                each.kind is inspect.Parameter.VAR_KEYWORD for each in inspect.signature(function).parameters.values()
            )
        )

    def covers(self, name: str) -> bool:
        """Return whether an input is for the node alone to check."""
        return self.takes_all or name in self.names

    def errors(self, node: Node, graph: Graph, classes: Mapping[str, Any]) -> list[NodeError]:
        """Run it on the literal inputs."""
        if not self.names and not self.takes_all:
            return []
        node_type = NodeType(self.node_class, self.groups)
        known = {"UNIQUE_ID": node.id, "PROMPT": {}}
        given = node_type.literals(node) | {name: known.get(kind) for name, kind in node_type.hidden.items()}
        given = {name: value for name, value in given.items() if self.covers(name)}
        if self.takes_types:
            links = {name: link for name, link in node.links() if link.source in graph}
            given["input_types"] = {
                name: output_type(graph[link.source], link.slot, classes) for name, link in links.items()
            }
        if getattr(self.node_class, "INPUT_IS_LIST", False):
            given = {name: [value] for name, value in given.items()}
        try:
            result = self.node_class.VALIDATE_INPUTS(**given)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - node code is anybody's and may raise anything
            return [_error("exception_during_validation", node, None, f"{type(error).__name__}: {error}")]
        if result is True:
            return []
        message = result if isinstance(result, str) else "an input was refused by the node."
        return [_error("custom_validation_failed", node, None, message)]
