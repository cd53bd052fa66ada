"""Placeholders in file names, such as %date:yyyy-MM-dd% and %KSampler.seed%: what the browser fills in at export."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# In the file names of these alone the browser fills in %…%: its own list, and those of KJNodes and VideoHelperSuite.
SAVE_NODES = {
    *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio"),
    *("SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat"),
    *("SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"),
    *("SaveImageKJ", "SaveImageWithAlpha", "SaveStringKJ", "DecodeAndSaveVideo", "ModelSaveKJ", "LoraExtractKJ"),
    "VHS_VideoCombine",
}
FILE_NAME = "filename_prefix"
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
_DATE = re.compile("d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")


@dataclass(frozen=True)
class NamedNode:
    """A node that placeholders may speak of.

    Attributes:
        id: its id in the API form.
        name, title: what they call it: "Node name for S&R" among its properties, else its title.
        values: what its widgets show, of those with a link too.
    """

    id: str
    name: str
    title: str
    values: dict[str, Any]


def named_nodes(api: Mapping[str, Any]) -> list[NamedNode]:
    """Return the nodes of an API form: the name is the class, as the browser sets it when it opens such a file."""
    nodes = []
    for key, node in api.items():
        if isinstance(node, dict) and isinstance(inputs := node.get("inputs"), dict):
            title = meta.get("title") if isinstance(meta := node.get("_meta"), dict) else None
            # A list is a link, whose value only the run will know.
            values = {name: value for name, value in inputs.items() if not isinstance(value, list)}
            nodes.append(NamedNode(key, str(node.get("class_type")), str(title), values))
    return nodes


def filled(api: dict[str, Any], nodes: Sequence[NamedNode], now: datetime) -> dict[str, Any]:
    """Return an API form with the file names of its savers filled in; what does not have that form stays as it is.

    Args:
        api: {id: node}.
        nodes: those that placeholders may speak of; where two have one name, the first counts.
        now: what %date:…% means.
    """
    # Titles first, so that names take their place.
    values = {node.title: node.values for node in reversed(nodes)}
    values |= {node.name: node.values for node in reversed(nodes) if node.name}
    result = dict(api)
    for node_id, node in api.items():
        if not isinstance(node, dict) or not isinstance(inputs := node.get("inputs"), dict):
            continue
        name, class_type = inputs.get(FILE_NAME), node.get("class_type")
        if isinstance(class_type, str) and class_type in SAVE_NODES and isinstance(name, str) and "%" in name:
            name = with_replacements(name, lambda node, widget: values.get(node, {}).get(widget), now)
            result[node_id] = {**node, "inputs": {**inputs, FILE_NAME: name}}
    return result


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
