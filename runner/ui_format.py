"""A workflow as the browser saves it → the API form that runs.

The browser keeps widget values as a list by position; names come from node definitions in the shape
of ComfyUI's /object_info. Rules: ComfyUI_frontend, `graphToPrompt`. Two things differ on purpose: of
the options of a dynamic prompt it is always the same that is chosen, and whole numbers keep all their
digits, where the browser has 53 bits.
"""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError
from .ui_graph import BYPASS, NEVER, read_ui
from .ui_ids import with_unique_ids
from .ui_live import VIRTUAL, LiveNode, load
from .ui_primitives import apply_primitives
from .ui_resolve import Resolver, Value
from .ui_scopes import Scope, unfold
from .ui_text import dynamic_prompt, with_replacements
from .ui_widgets import MISSING, Widget

SAVE_NODES = {
    *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio"),
    *("SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat"),
    *("SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"),
}


def is_ui_format(workflow: Any) -> bool:
    """Return whether decoded JSON is a workflow as the browser saves it."""
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list) and "links" in workflow


def to_api(workflow: dict[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Return the API form of a UI workflow.

    Raises:
        WorkflowError: the file is malformed, or a node's class is not in `info`.
    """
    scopes = scopes_of(workflow, info)
    export = _Export(scopes, info)
    return {
        scope.prefix + node.id: export.node(scope, node)
        for scope in scopes
        if scope.runs
        for node in scope.graph.nodes.values()
        if runs(node)
    }


def scopes_of(workflow: dict[str, Any], info: ObjectInfo) -> list[Scope]:
    """Return the canvas and the instances of subgraphs, as the browser has them when it exports.

    Raises:
        WorkflowError: the file is malformed.
    """
    file = load(with_unique_ids(read_ui(workflow)), info)
    scopes = unfold(file)
    for graph in (file.root, *file.subgraphs.values()):
        apply_primitives(graph)
    return scopes


def runs(node: LiveNode) -> bool:
    """Return whether a node is in the API form."""
    return not node.subgraph and node.stored.mode not in (NEVER, BYPASS) and node.stored.kind not in VIRTUAL


class _Export:
    """Writes nodes in the API form; knows them all, for file names may speak of other nodes."""

    def __init__(self, scopes: list[Scope], info: ObjectInfo) -> None:
        self._nodes = {id(node): node for scope in scopes for node in scope.graph.nodes.values()}
        self._info = info
        self._now = datetime.now()
        self._resolver = Resolver()

    def node(self, scope: Scope, node: LiveNode) -> dict[str, Any]:
        full_id = scope.prefix + node.id
        if not node.known:
            raise WorkflowError(unknown_class(full_id, node))
        widgets = [widget for widget in node.widgets.values() if widget.value is not MISSING]
        inputs = {w.name: _wrapped(self._value(full_id, node, w), w.spec.widget_kind) for w in widgets}
        for index, slot in enumerate(node.inputs):
            source = self._resolver.resolve(scope, node, index)
            if source is not None:
                inputs[slot.name] = _wrapped(source.value) if isinstance(source, Value) else [source.id, source.slot]
        definition = self._info[node.stored.kind]
        title = node.stored.title or str(definition.get("display_name") or node.stored.kind)
        return {"inputs": inputs, "class_type": node.stored.kind, "_meta": {"title": title}}

    def _value(self, full_id: str, node: LiveNode, widget: Widget) -> Any:
        value = widget.value
        if not isinstance(value, str):
            return value
        if widget.spec.options.get("dynamicPrompts") is True:
            return dynamic_prompt(value, random.Random(f"{full_id}.{widget.name}: {value}"))
        if widget.name == "filename_prefix" and node.stored.kind in SAVE_NODES and "%" in value:
            return with_replacements(value, self._lookup, self._now)
        return value

    def _lookup(self, name: str, widget: str) -> Any:
        """Return a widget's value of the node that is called so, by property or by title."""
        nodes = list(self._nodes.values())
        named = [node for node in nodes if node.stored.properties.get("Node name for S&R") == name]
        for node in named or [node for node in nodes if node.stored.title == name]:
            found = node.widgets.get(widget)
            return None if found is None or found.value is MISSING else found.value
        return None


def unknown_class(full_id: str, node: LiveNode) -> str:
    """Return the sentence for a node whose class is not defined, with its pack where the file names it."""
    kind, properties = node.stored.kind, node.stored.properties
    pack = properties.get("cnr_id") or properties.get("aux_id")
    origin = f" It belongs to the pack {pack!r}." if pack else ""
    return f"Node {full_id}: the node class {kind!r} is not known here.{origin}"


def _wrapped(value: Any, kind: str = "") -> Any:
    """Return a value so that a list is not taken for a link."""
    if kind == "CURVE" and value is not None:
        return {"__type__": kind, "__value__": value}
    return {"__value__": value} if isinstance(value, list) else value
