"""UI format → API form: a workflow as the browser saves it becomes what runs.

The browser keeps widget values as a list by position; names come from node definitions in the shape
of ComfyUI's /object_info. Rules: ComfyUI_frontend, `graphToPrompt`. Two things differ on purpose: a
dynamic prompt always gives the same choice, and whole numbers keep all their digits, where the browser
has 53 bits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .ui_graph import BYPASS, NEVER, read_ui
from .ui_nodes import VIRTUAL, LoadedNode, apply_primitives, load
from .ui_subgraphs import GraphInstance, LinkResolver, Value, unfold
from .ui_widgets import MISSING, Widget

# In the file names of these alone the browser fills in %…%.
SAVE_NODES = {
    *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio"),
    *("SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat"),
    *("SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"),
}
MAX_NESTING = 64
_LINE_END = re.compile("[\n\r\u2028\u2029]")  # what ends a line in JavaScript
_TOKEN = re.compile(r"\\.?|[{}|]|[^\\{}|]+", re.DOTALL)
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
_DATE = re.compile("d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")


def is_ui_format(workflow: Any) -> bool:
    """Return whether decoded JSON is a workflow as the browser saves it."""
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list) and "links" in workflow


def to_api(workflow: dict[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Return the API form of a UI workflow.

    Raises:
        WorkflowError: the file is malformed, or a node's class is not in `info`.
    """
    instances = load_instances(workflow, info)
    export = _Export(instances, info)
    return {
        instance.prefix + node.id: export.node(instance, node)
        for instance in instances
        if instance.runs
        for node in instance.graph.nodes.values()
        if not node.subgraph and node.stored.mode not in (NEVER, BYPASS) and node.stored.type not in VIRTUAL
    }


def load_instances(workflow: dict[str, Any], info: ObjectInfo) -> list[GraphInstance]:
    """Return the canvas and the instances of subgraphs, as the browser has them when it exports.

    Raises:
        WorkflowError: the file is malformed.
    """
    file = load(read_ui(workflow), info)
    # Unfolded first: instances show the widgets' own values, not those of PrimitiveNodes.
    instances = unfold(file)
    for graph in (file.root, *file.subgraphs.values()):
        apply_primitives(graph)
    return instances


class _Export:
    """Writes nodes in the API form; knows them all, for file names may refer to other nodes."""

    def __init__(self, instances: list[GraphInstance], info: ObjectInfo) -> None:
        # By object: instances of one subgraph share its nodes.
        self._nodes = {id(node): node for instance in instances for node in instance.graph.nodes.values()}
        self._info = info
        self._now = datetime.now()
        self._resolver = LinkResolver()

    def node(self, instance: GraphInstance, node: LoadedNode) -> dict[str, Any]:
        full_id, node_type, properties = instance.prefix + node.id, node.stored.type, node.stored.properties
        if not node.known:
            pack = properties.get("cnr_id") or properties.get("aux_id")
            origin = f" It belongs to the pack {pack!r}." if pack else ""
            raise WorkflowError(f"Node {full_id}: the node class {node_type!r} is not known here.{origin}")
        inputs: dict[str, Any] = {}
        for widget in node.widgets.values():
            if widget.value is not MISSING:
                value = self._widget_value(full_id, node, widget)
                if widget.spec.widget_type == "CURVE" and value is not None:
                    inputs[widget.name] = {"__type__": "CURVE", "__value__": value}
                else:
                    inputs[widget.name] = wrapped(value)
        # After the widgets: a link takes the place of the widget's value.
        for index, slot in enumerate(node.inputs):
            source = self._resolver.resolve(instance, node, index)
            if source is not None:
                inputs[slot.name] = wrapped(source.value) if isinstance(source, Value) else [source.id, source.slot]
        title = node.stored.title or str(self._info[node_type].get("display_name") or node_type)
        return {"inputs": inputs, "class_type": node_type, "_meta": {"title": title}}

    def _widget_value(self, full_id: str, node: LoadedNode, widget: Widget) -> Any:
        value = widget.value
        if not isinstance(value, str):
            return value
        if widget.spec.options.get("dynamicPrompts") is True:
            # Seeded by the place and the text, so that a file runs the same way twice.
            return dynamic_prompt(value, random.Random(f"{full_id}.{widget.name}: {value}"))
        if widget.name == "filename_prefix" and node.stored.type in SAVE_NODES and "%" in value:
            return with_replacements(value, self._find_value, self._now)
        return value

    def _find_value(self, name: str, widget: str) -> Any:
        """Return the value of a widget of the node that is called so, by property or by title."""
        nodes = list(self._nodes.values())
        named = [node for node in nodes if node.stored.properties.get("Node name for S&R") == name]
        for node in named or [node for node in nodes if node.stored.title == name]:
            value = node.widget_value(widget)
            return None if value is MISSING else value
        return None


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


def with_replacements(text: str, find_value: Callable[[str, str], Any], now: datetime) -> str:
    """Return a file name with its %date:…% and %node.widget% filled in; others stay.

    Args:
        text: the name.
        find_value: (node, widget) → the widget's value, or None where there is no such widget.
        now: what %date:…% means.
    """

    def fill(match: re.Match[str]) -> str:
        parts = match.group(1).split(".")
        if len(parts) != 2:
            return _date(parts[0][5:], now) if parts[0].startswith("date:") else match.group()
        value = find_value(*parts)
        if value is None:
            return match.group()
        # As JavaScript writes values.
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        return _UNSAFE.sub("_", str(value))

    return re.sub("%([^%]+)%", fill, text)


def _date(pattern: str, now: datetime) -> str:
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}
    years = {"yy": str(now.year)[2:], "yyyy": str(now.year)}

    def fill(match: re.Match[str]) -> str:
        found = match.group()
        if found[0] in numbers:
            return str(numbers[found[0]]).zfill(len(found))
        return years.get(found, found)

    return _DATE.sub(fill, pattern)
