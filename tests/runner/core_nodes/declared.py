"""What a node definition promises to workflows, in a form that two programs' definitions can be compared in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("declarations.json")


def declared(definition: dict[str, Any]) -> dict[str, Any]:
    """Return names, order, types, options and outputs; lists of files, which change by the minute, are emptied."""
    groups = {
        group: [[name, *_input(given)] for name, given in definition["input"].get(group, {}).items()]
        for group in ("required", "optional")
    }
    hidden = {name: _plain(kind) for name, kind in definition["input"].get("hidden", {}).items()}
    kept = ("output", "output_name", "output_is_list", "output_node", "category", "description")
    found = {
        **groups,
        "hidden": hidden,
        "display_name": definition["display_name"] or definition["name"],
        **{key: definition[key] for key in kept},
    }
    return dict(json.loads(json.dumps(found)))


def _input(given: Any) -> tuple[Any, dict[str, Any]]:
    kind, options = given[0], dict(given[1]) if len(given) > 1 else {}
    if options.get("image_upload"):
        kind = []
    if options.get("video_upload"):
        options["options"] = []
    return kind, options


def _plain(kind: Any) -> Any:
    # Newer nodes put the kind of a hidden input into a list.
    return kind if isinstance(kind, str) else kind[0]
