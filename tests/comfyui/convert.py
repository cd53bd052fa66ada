"""Shipped workflows in API form, converted by the runner as `python -m runner` does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from piying import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.runner.core_nodes import CORE_NODE_CLASSES, CORE_NODE_TITLES
from piying.runner.definitions import ObjectInfo, object_info
from piying.runner.ui_format import to_api

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


def headless_info() -> ObjectInfo:
    """Node definitions as the headless runner knows them; the pack's nodes ask a host for the models."""
    set_host(HeadlessHost())
    try:
        classes = {**CORE_NODE_CLASSES, **NODE_CLASS_MAPPINGS}
        return object_info(classes, {**CORE_NODE_TITLES, **NODE_DISPLAY_NAME_MAPPINGS})
    finally:
        set_host(None)


def api_form(workflow: Path) -> dict[str, Any]:
    return to_api(json.loads(workflow.read_text(encoding="utf-8")), headless_info())
