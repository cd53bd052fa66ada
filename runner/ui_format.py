"""UI format → API form: a workflow as the browser saves it becomes what runs.

The browser keeps widget values as a list by position; names come from node definitions in the shape
of ComfyUI's /object_info. Rules: ComfyUI_frontend, `graphToPrompt`. Two things differ on purpose: a
dynamic prompt always gives the same choice, and whole numbers keep all their digits, where the browser
has 53 bits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .placeholders import NamedNode, filled
from .ui_broadcasts import add_broadcasts
from .ui_graph import BYPASS, NEVER, UINode, read_ui
from .ui_groups import read_groups
from .ui_nodes import BROADCASTERS, VIRTUAL, LoadedNode, apply_primitives, load
from .ui_subgraphs import GraphInstance, LinkResolver, Value, unfold
from .ui_widgets import MISSING
from .validate import check_known

MAX_NESTING = 64
_LINE_END = re.compile("[\n\r\u2028\u2029]")  # what ends a line in JavaScript
_TOKEN = re.compile(r"\\.?|[{}|]|[^\\{}|]+", re.DOTALL)


def is_ui_format(workflow: Any) -> bool:
    """Return whether decoded JSON is a workflow as the browser saves it."""
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list) and "links" in workflow


def to_api(workflow: dict[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Return the API form of a UI workflow, as the browser exports it.

    Raises:
        WorkflowError: the file is malformed, or a node's class is not in `info`.
    """
    return filled(*unfilled(workflow, info), datetime.now())


def unfilled(
    workflow: dict[str, Any], info: ObjectInfo, keep_unknown: bool = False
) -> tuple[dict[str, Any], list[NamedNode]]:
    """Return the API form of a UI workflow with the placeholders in its file names, and the nodes they may speak of.

    Args:
        workflow: the decoded file.
        info: node definitions.
        keep_unknown: export nodes of classes that are not in `info` too, with their links alone.

    Raises:
        UnknownClassesError: classes of nodes are not in `info`.
        WorkflowError: the file is malformed.
    """
    instances = load_instances(workflow, info)
    export = _Export(info)
    exported = {
        instance.prefix + node.id: (instance, node)
        for instance in instances
        if instance.runs
        for node in instance.graph.nodes.values()
        if not node.subgraph and node.stored.mode not in (NEVER, BYPASS) and node.stored.type not in VIRTUAL
        # What these do is in the links by now.
        if node.known or node.stored.type not in BROADCASTERS
    }
    if not keep_unknown:
        stored = {f"{_title(node.stored, info)} (node {key})": node.stored for key, (_, node) in exported.items()}
        check_known([(each.type, name, each.pack, each.values) for name, each in stored.items()], info)
    api = {key: export.node(instance, node) for key, (instance, node) in exported.items()}
    named = [
        NamedNode(
            instance.prefix + node.id,
            # Where a file has no such name, the browser gives a node that of its class.
            str(node.stored.properties.get("Node name for S&R", node.stored.type) or ""),
            _title(node.stored, info),
            {name: widget.value for name, widget in node.widgets.items() if widget.value is not MISSING},
        )
        for instance in instances
        for node in instance.graph.nodes.values()
    ]
    return api, named


def _title(node: UINode, info: ObjectInfo) -> str:
    return node.title or str(info.get(node.type, {}).get("display_name") or node.type)


def load_instances(workflow: dict[str, Any], info: ObjectInfo) -> list[GraphInstance]:
    """Return the canvas and the instances of subgraphs, as the browser has them when it exports.

    Raises:
        WorkflowError: the file is malformed.
    """
    stored = read_ui(workflow)
    file = load(stored, info, read_groups(workflow, info))
    for key, graph in {"": file.root, **file.subgraphs}.items():
        add_broadcasts(graph, stored.boxes.get(key, []))
    # Unfolded first: instances show the widgets' own values, not those of PrimitiveNodes.
    instances = unfold(file)
    for graph in (file.root, *file.subgraphs.values()):
        apply_primitives(graph)
    return instances


class _Export:
    """Writes nodes in the API form."""

    def __init__(self, info: ObjectInfo) -> None:
        self._info = info
        self._resolver = LinkResolver()

    def node(self, instance: GraphInstance, node: LoadedNode) -> dict[str, Any]:
        full_id, node_type = instance.prefix + node.id, node.stored.type
        inputs: dict[str, Any] = {}
        for widget in node.widgets.values():
            if widget.value is not MISSING:
                value = widget.value
                if isinstance(value, str) and widget.spec.options.get("dynamicPrompts") is True:
                    # Seeded by the place and the text, so that a file runs the same way twice.
                    value = dynamic_prompt(
                        value, random.Random(f"{full_id}.{widget.name}: {value}".encode("utf-8", "replace"))
                    )
                if widget.spec.widget_type == "CURVE" and value is not None:
                    inputs[widget.name] = {"__type__": "CURVE", "__value__": value}
                else:
                    inputs[widget.name] = wrapped(value)
        # After the widgets: a link takes the place of the widget's value.
        for index, slot in enumerate(node.inputs):
            source = self._resolver.resolve(instance, node, index)
            if source is not None:
                inputs[slot.name] = wrapped(source.value) if isinstance(source, Value) else [source.id, source.slot]
        return {"inputs": inputs, "class_type": node_type, "_meta": {"title": _title(node.stored, self._info)}}


def wrapped(value: Any) -> Any:
    """Return a value of the API form, wrapped where it would be taken for a link."""
    return {"__value__": value} if isinstance(value, list) else value


# Text that the browser changes at export


def dynamic_prompt(text: str, chooser: random.Random, depth: int = 0) -> str:
    """Return the prompt without comments, one option of each {a|b} chosen.

    Raises:
        WorkflowError: the braces are nested absurdly deep.
    """
    if depth > MAX_NESTING:
        raise WorkflowError(f"A prompt has choices nested more than {MAX_NESTING} deep.")
    result: list[str] = []
    tokens = iter(_TOKEN.findall(_without_comments(text)))
    for token in tokens:
        if token == "{":
            token = dynamic_prompt(chooser.choice(_options(tokens)), chooser, depth + 1)
        result.append(token)
    return re.sub(r"\\([{}|])", r"\1", "".join(result))


def _options(tokens: Iterator[str]) -> list[str]:
    """Read up to the closing brace and return what the bars of this level divide."""
    options: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token == "}" and not depth:
            break
        if token == "|" and not depth:
            options.append([])
            continue
        depth += {"{": 1, "}": -1}.get(token, 0)
        options[-1].append(token)
    return ["".join(option) for option in options]


def _without_comments(text: str) -> str:
    kept: list[str] = []
    at, closable = 0, True
    for mark in re.finditer(r"//|/\*", text):
        if mark.start() < at:
            continue
        if mark.group() == "/*":
            # One that is not closed is no comment, nor is any after it: to search again would be quadratic.
            end = text.find("*/", mark.end()) if closable else -1
            closable = end >= 0
            if not closable:
                continue
            end += 2
        else:
            line_end = _LINE_END.search(text, mark.end())
            end = line_end.start() if line_end else len(text)
        kept.append(text[at : mark.start()])
        at = end
    return "".join([*kept, text[at:]])
