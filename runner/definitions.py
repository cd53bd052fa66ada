"""Node definitions: what node classes declare, in the shape of ComfyUI's /object_info and for the engine."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import WorkflowError
from .graph import Link, Node

log = logging.getLogger("piying")

ObjectInfo = dict[str, dict[str, Any]]


def object_info(
    classes: Mapping[str, Any], titles: Mapping[str, str], unusable: dict[str, str] | None = None
) -> ObjectInfo:
    """Return {class name: definition} for node classes.

    Classes that fail when they are asked what they declare are left out, and `unusable` gets
    {class name: reason}.
    """
    info = {}
    for name, node_class in classes.items():
        try:
            info[name] = _definition(name, node_class, titles)
        # A pack's code is anybody's; one bad class must not cost the others, nor the process where it ends that.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            if unusable is not None:
                unusable[name] = f"it cannot say what inputs it has ({type(error).__name__}: {error})"
    return info


def _definition(name: str, node_class: Any, titles: Mapping[str, str]) -> dict[str, Any]:
    inputs = node_class.INPUT_TYPES()
    returned = list(node_class.RETURN_TYPES)
    definition = {
        "name": name,
        "display_name": titles.get(name, name),
        "input": inputs,
        # JSON promises no order of an object's entries, and widgets are stored by position.
        "input_order": {group: list(entries) for group, entries in inputs.items()},
        "output": returned,
        "output_name": list(getattr(node_class, "RETURN_NAMES", None) or returned),
        "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(returned)),
        "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
        "category": getattr(node_class, "CATEGORY", ""),
        "description": getattr(node_class, "DESCRIPTION", ""),
        # Beyond ComfyUI's: classes of others whose job the node does; those among them that serve models of all
        # kinds, for the workflows of its own; and what the files of these models are called.
        "replaces": list(getattr(node_class, "REPLACES", ())),
        "replaces_generic": list(getattr(node_class, "REPLACES_GENERIC", ())),
        "model_names": list(getattr(node_class, "MODEL_NAMES", ())),
    }
    declared_inputs(definition)  # here rather than in the middle of a validation, where it is malformed
    return definition


def replacements(classes: Iterable[str], texts: Iterable[str], info: ObjectInfo) -> dict[str, tuple[str, ...]]:
    """Return {class that is not known: titles of the nodes that do its job}.

    A loader or a sampler may serve any model, so what does its job follows from the rest of the workflow.

    Args:
        classes: those that are not known.
        texts: what is written in the nodes of these classes, file names among them.
        info: definitions of the nodes that are known.
    """
    wanted, written = set(classes), " ".join(texts).lower()
    own = {name: each for name, each in info.items() if each.get("replaces") or each.get("replaces_generic")}
    meant = {
        each["category"]
        for each in own.values()
        if wanted.intersection(each["replaces"]) or any(name in written for name in each["model_names"])
    }
    result: dict[str, tuple[str, ...]] = {}
    for each in own.values():
        generic = each["replaces_generic"] if each["category"] in meant else ()
        for name in wanted.intersection([*each["replaces"], *generic]):
            result[name] = (*result.get(name, ()), str(each["display_name"]))
    return result


def read_object_info(path: Path) -> ObjectInfo:
    """Return the node definitions saved from a ComfyUI server's /object_info.

    Raises:
        WorkflowError: the file cannot be read, or holds something else.
    """
    try:
        # Bytes, so that their encoding is found: PowerShell saves UTF-16.
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise WorkflowError(f"--object-info {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"--object-info {path}: not valid JSON ({error}).") from error
    return checked_object_info(found, f"--object-info {path}")


def checked_object_info(found: Any, origin: str) -> ObjectInfo:
    """Return the node definitions of an /object_info response; `origin` names it in messages.

    Classes whose declarations have another form are left out, and named.

    Raises:
        WorkflowError: it is no such response.
    """
    definitions = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(each, dict) and isinstance(each.get("input"), dict) for each in definitions):
        raise WorkflowError(f"{origin}: is no /object_info response of a ComfyUI server.")
    wrong = [name for name, each in found.items() if not _is_declared(each)]
    if wrong:
        log.warning("%s: left out, since their declarations cannot be read: %s.", origin, ", ".join(sorted(wrong)))
    return {name: {"output_node": False} | each for name, each in found.items() if name not in wrong}


def _is_declared(definition: dict[str, Any]) -> bool:
    """Return whether inputs and outputs from outside have the form that the functions below rely on."""
    groups = [definition["input"].get(group, {}) for group in ("required", "optional")]
    if not isinstance(definition.get("output", []), list) or not all(isinstance(group, dict) for group in groups):
        return False
    declared = [each for group in groups for each in group.values()]
    return all(isinstance(each, list) and each for each in declared) and all(
        isinstance(input_options(each).get("options", []), list) for each in declared
    )


def declared_inputs(definition: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Return {input: (type, options, required)} in the order the node declares them."""
    return {
        name: (declared[0], input_options(declared), group == "required")
        for group in ("required", "optional")
        for name, declared in definition["input"].get(group, {}).items()
    }


def find_input(groups: Mapping[str, Any], name: str) -> tuple[str, Any] | None:
    """Return (group, declaration) of an input, None where the node takes none of that name.

    The groups themselves are asked, as ComfyUI does: packs have dicts that answer yes to every name.
    """
    for group in ("required", "optional", "hidden"):
        inputs = groups.get(group)
        if inputs is not None and name in inputs:
            return group, inputs[name]
    return None


def hidden_kinds(groups: Mapping[str, Any]) -> dict[str, str]:
    """Return {input: kind} of the hidden inputs, such as PROMPT or UNIQUE_ID."""
    declared = groups.get("hidden") or {}
    # Some packs declare a hidden input as they declare others: (kind,).
    return {name: kind if isinstance(kind, str) else kind[0] for name, kind in declared.items()}


def live_groups(node_class: Any, groups: Mapping[str, Any], node: Node) -> Mapping[str, Any]:
    """Return the input groups of one node: of V3 classes some inputs depend on the values of others."""
    live = getattr(node_class, "live_inputs", None)
    return groups if live is None else live(groups, node.inputs)  # type: ignore[no-any-return]


def input_options(declared: Any) -> dict[str, Any]:
    """Return the options of a declared input, `(type, options)` or `(type,)`."""
    return declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}


def combo_choices(kind: Any, options: dict[str, Any]) -> list[Any] | None:
    """Return the choices of a combo input, None for other inputs.

    V1 nodes give the list in place of the type, V3 nodes the type COMBO and the list as an option.
    """
    if isinstance(kind, list):
        return kind
    return list(options.get("options", [])) if kind == "COMBO" else None


def is_async(node_class: Any, *others: str) -> bool:
    """Return whether the function of a class, or a method named, is a coroutine function."""
    names = (getattr(node_class, "FUNCTION", None), *others)
    return any(inspect.iscoroutinefunction(getattr(node_class, name, None)) for name in names if isinstance(name, str))


class NodeType:
    """What one node class declares. Each is read once a run: INPUT_TYPES may list a folder of models.

    Args:
        node_class: the class.
        known: its input groups, where it has been asked for them already.
    """

    def __init__(self, node_class: Any, known: dict[str, Any] | None = None) -> None:
        self.node_class = node_class
        self._known = known
        self._options: dict[str, dict[str, Any] | None] = {}

    @cached_property
    def _declared(self) -> dict[str, Any]:
        declared: dict[str, Any] = self.node_class.INPUT_TYPES() if self._known is None else self._known
        return declared

    def options(self, node: Node, name: str) -> dict[str, Any] | None:
        """Return the options of a node's input, None where the class takes none of that name."""
        if hasattr(self.node_class, "live_inputs"):
            return self._found(live_groups(self.node_class, self._declared, node), name)
        if name not in self._options:
            self._options[name] = self._found(self._declared, name)
        return self._options[name]

    def _found(self, groups: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        found = find_input(groups, name)
        if found is None:
            return {} if getattr(self.node_class, "ACCEPT_ALL_INPUTS", False) else None
        return input_options(found[1])

    @cached_property
    def hidden(self) -> dict[str, str]:
        """Return {input: kind} of the hidden inputs."""
        return hidden_kinds(self._declared)

    @cached_property
    def is_output(self) -> bool:
        """Whether it is an output node."""
        return getattr(self.node_class, "OUTPUT_NODE", False) is True

    @cached_property
    def runs_first(self) -> bool:
        """Whether it runs as soon as it can: a result to show, or a wait that others can fill with work."""
        return self.is_output or is_async(self.node_class)

    @cached_property
    def key_has_id(self) -> bool:
        """Whether a node's result depends on its id, so that two nodes alike must not share one."""
        return bool(getattr(self.node_class, "NOT_IDEMPOTENT", False)) or "UNIQUE_ID" in self.hidden.values()

    def strong_links(self, node: Node) -> Iterator[Link]:
        """Yield the links a node cannot run without: all but those of lazy inputs."""
        for name, link in node.links():
            if not (self.options(node, name) or {}).get("lazy"):
                yield link

    def literals(self, node: Node) -> dict[str, Any]:
        """Return the inputs that a class's own checks are given; linked ones are None to them, as in ComfyUI."""
        return {
            name: None if isinstance(value, Link) else value
            for name, value in node.inputs.items()
            if isinstance(value, Link) or self.options(node, name) is not None
        }

    def changed(self, node: Node, hidden: dict[str, Any]) -> Any:
        """Return what IS_CHANGED answers for a node."""
        if not hasattr(self.node_class, "IS_CHANGED"):
            return False
        given = self.literals(node)
        try:
            # In a list, so that an answer of False differs from that of a class without IS_CHANGED.
            return [self.node_class.IS_CHANGED(**given, **hidden)]
        # Anybody's code; ComfyUI then runs the node, and so do we.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            log.warning("%s: IS_CHANGED failed (%s: %s); the node runs again.", node, type(error).__name__, error)
            return float("nan")


class NodeTypes:
    """The node classes of a run, by name."""

    def __init__(self, classes: Mapping[str, Any]) -> None:
        self._classes = classes
        self._types: dict[str, NodeType] = {}

    def __contains__(self, class_type: object) -> bool:
        return class_type in self._classes

    def of(self, node: Node) -> NodeType:
        """Return what a node's class declares."""
        found = self._types.get(node.class_type)
        if found is None:
            found = self._types[node.class_type] = NodeType(self._classes[node.class_type])
        return found
