"""A workflow as the browser saves it → the API form that runs.

The browser keeps widget values as a list by position; names come from node definitions in the shape
of ComfyUI's /object_info. Rules: ComfyUI_frontend, `graphToPrompt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .definitions import ObjectInfo, choices, declared_inputs
from .errors import WorkflowError

NEVER, BYPASS = 2, 4  # node modes
NOTES = {"Note", "MarkdownNote"}
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_RUN = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}


def is_ui_format(workflow: Any) -> bool:
    """Return whether decoded JSON is a workflow as the browser saves it."""
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list) and "links" in workflow


@dataclass(frozen=True)
class UILink:
    """A wire: output `slot` of node `source`, of type `kind`."""

    source: str
    slot: int
    kind: str


class UIGraph:
    """Nodes and wires of a UI workflow, by id."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.nodes = {str(node["id"]): node for node in workflow["nodes"]}
        self.links: dict[Any, UILink] = dict(_parse_link(link) for link in workflow["links"])

    def source(self, link_id: Any) -> UILink | None:
        """Return the real output a wire comes from, through reroutes and bypassed nodes.

        None where it comes from nothing, or from a muted node.

        Raises:
            WorkflowError: reroutes or bypassed nodes go in a circle.
        """
        seen: set[Any] = set()
        link: UILink | None
        while (link := self.links.get(link_id)) is not None:
            if link_id in seen:
                raise WorkflowError(f"Link {link_id} goes in a circle of reroutes or bypassed nodes.")
            seen.add(link_id)
            node = self.nodes.get(link.source)
            if node is None or node.get("mode") == NEVER:
                return None
            if node["type"] != REROUTE and node.get("mode") != BYPASS:
                return link
            link_id = _passed_through(node, link)
        return None


def _parse_link(link: Any) -> tuple[Any, UILink]:
    if isinstance(link, dict):
        return link["id"], UILink(str(link["origin_id"]), link["origin_slot"], str(link.get("type")))
    return link[0], UILink(str(link[1]), link[2], str(link[5]) if len(link) > 5 else "*")


def _passed_through(node: dict[str, Any], link: UILink) -> Any:
    """Return the incoming link that a reroute or bypassed node passes on to its output, if any.

    A bypassed node passes the input in the output's position where the types agree, else the first
    that does.
    """
    inputs = node.get("inputs") or []
    if node["type"] == REROUTE:
        return inputs[0].get("link") if inputs else None
    ordered = inputs[link.slot : link.slot + 1] + inputs
    matching = [entry for entry in ordered if entry.get("type") == link.kind]
    return matching[0].get("link") if matching else None


def to_api(workflow: dict[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Return the API form of a UI workflow.

    Raises:
        WorkflowError: the file is malformed, or a node's class is not in `info`.
    """
    try:
        graph = UIGraph(workflow)
        return {node_id: _api_node(node, graph, info) for node_id, node in graph.nodes.items() if _runs(node)}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise WorkflowError(
            f"The workflow's nodes or links are malformed ({type(error).__name__}: {error})."
        ) from error


def _runs(node: dict[str, Any]) -> bool:
    return node.get("mode") not in (NEVER, BYPASS) and node["type"] not in {*NOTES, REROUTE, PRIMITIVE}


def _api_node(node: dict[str, Any], graph: UIGraph, info: ObjectInfo) -> dict[str, Any]:
    definition = info.get(node["type"])
    if definition is None:
        raise WorkflowError(_unknown_class(node))
    inputs = {name: _wrapped(value) for name, value in widget_values(node, definition).items()}
    for entry in node.get("inputs") or []:
        source = graph.source(entry.get("link"))
        if source is not None:
            inputs[entry["name"]] = _linked_value(source, graph)
    title = node.get("title") or definition["display_name"]
    return {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}


def _unknown_class(node: dict[str, Any]) -> str:
    pack = (node.get("properties") or {}).get("cnr_id") or (node.get("properties") or {}).get("aux_id")
    origin = f" It belongs to the pack {pack!r}." if pack else ""
    return f"Node {node['id']}: the node class {node['type']!r} is not known here.{origin}"


def _linked_value(source: UILink, graph: UIGraph) -> Any:
    """Return a link; the value itself where it comes from a PrimitiveNode, which never runs."""
    node = graph.nodes[source.source]
    if node["type"] == PRIMITIVE:
        return _wrapped((node.get("widgets_values") or [None])[0])
    return [source.source, source.slot]


def _wrapped(value: Any) -> Any:
    return {"__value__": value} if isinstance(value, list) else value


def widget_values(node: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """Return {input: value} of a UI node's widgets."""
    stored = node.get("widgets_values")
    if isinstance(stored, dict):
        return {name: stored[name] for name in widget_names(definition, []) if name and name in stored}
    names = widget_names(definition, stored or [])
    return {name: value for name, value in zip(names, stored or [], strict=False) if name is not None}


def widget_names(definition: dict[str, Any], stored: list[Any]) -> list[str | None]:
    """Return the input name at each position of `widgets_values`.

    None stands for widgets that the browser adds and the API form does not have: what happens to a
    seed after a run, and upload buttons. A file may lack the first, so the stored value decides.
    """
    names: list[str | None] = []
    for name, (kind, options, _) in declared_inputs(definition).items():
        if options.get("forceInput") or not (isinstance(kind, list) or kind in WIDGET_TYPES):
            continue
        names.append(name)
        following = stored[len(names)] if len(names) < len(stored) else None
        if (_has_after_run(name, kind, options) and following in AFTER_RUN) or _has_upload(kind, options):
            names.append(None)
    return names


def _has_after_run(name: str, kind: Any, options: dict[str, Any]) -> bool:
    return bool(options.get("control_after_generate")) or (kind == "INT" and name in ("seed", "noise_seed"))


def _has_upload(kind: Any, options: dict[str, Any]) -> bool:
    uploads = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")
    return choices(kind, options) is not None and any(options.get(upload) for upload in uploads)


def set_widget(workflow: dict[str, Any], info: ObjectInfo, node_id: str, name: str, value: Any) -> None:
    """Write a value into a UI workflow in place, cutting the wire that fed the input before."""
    node = next(node for node in workflow["nodes"] if str(node["id"]) == node_id)
    stored = node.get("widgets_values")
    if isinstance(stored, dict):
        stored[name] = value
    elif isinstance(stored, list):
        names = widget_names(info[node["type"]], stored)
        if name in names and names.index(name) < len(stored):
            stored[names.index(name)] = value
    for entry in node.get("inputs") or []:
        if entry.get("name") == name and entry.get("link") is not None:
            _cut(workflow, entry)


def _cut(workflow: dict[str, Any], entry: dict[str, Any]) -> None:
    link_id = entry["link"]
    entry["link"] = None
    workflow["links"] = [link for link in workflow["links"] if _parse_link(link)[0] != link_id]
    for node in workflow["nodes"]:
        for output in node.get("outputs") or []:
            output["links"] = [each for each in output.get("links") or [] if each != link_id]
