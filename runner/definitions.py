"""Node definitions in the shape of ComfyUI's /object_info, from node classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ObjectInfo = dict[str, dict[str, Any]]


def object_info(classes: Mapping[str, type], titles: Mapping[str, str]) -> ObjectInfo:
    """Return {class name: definition} for node classes."""
    return {name: _definition(name, node_class, titles.get(name, name)) for name, node_class in classes.items()}


def _definition(name: str, node_class: Any, title: str) -> dict[str, Any]:
    inputs = node_class.INPUT_TYPES()
    returned = list(node_class.RETURN_TYPES)
    return {
        "name": name,
        "display_name": title,
        "input": inputs,
        "input_order": {group: list(declared) for group, declared in inputs.items()},
        "output": returned,
        "output_name": list(getattr(node_class, "RETURN_NAMES", returned)),
        "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", [False] * len(returned))),
        "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
        "category": getattr(node_class, "CATEGORY", ""),
        "description": getattr(node_class, "DESCRIPTION", ""),
    }


def declared_inputs(definition: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Return {input: (type, options, required)} in the order the node declares them."""
    found = {}
    for group in ("required", "optional"):
        for name, declared in definition["input"].get(group, {}).items():
            options = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
            found[name] = (declared[0], options, group == "required")
    return found


def choices(kind: Any, options: dict[str, Any]) -> list[Any] | None:
    """Return what a combo input offers, in either of its two spellings; None for other inputs."""
    if isinstance(kind, list):
        return kind
    return list(options.get("options", [])) if kind == "COMBO" else None
