"""Broadcasts: the links that nodes of Use Everywhere, such as Anything Everywhere, make when the browser exports.

Such a node hands what it is given to every input of the same type that has no link. Rules: cg-use-everywhere 7.8,
with its settings as they come.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .errors import WorkflowError
from .ui_graph import BYPASS, INPUT_SIDE, MAX_SLOTS, Slot, UILink
from .ui_nodes import BROADCASTERS, SEED_BROADCASTER, LoadedGraph, LoadedNode

log = logging.getLogger("piying")

RESTRICTIONS = ("title", "input", "group")
# A pattern of a stranger is matched against texts of a stranger: bounded, so that no match takes for ever.
MAX_PATTERN, MAX_REPEATS, MAX_SUBJECT = 200, 3, 100
MAX_BROADCASTERS = 1000
_Members = list[tuple[str, set[str]]]  # title of a group on the canvas, ids of the nodes in it
MAX_PLACE = 1e9  # on the canvas
TITLE_HEIGHT = 30  # of a node on the canvas, above its position


@dataclass(frozen=True)
class _Broadcast:
    """One source that is handed on.

    Attributes:
        controller: the node that broadcasts it.
        origin, slot: where it comes from.
        type: what it is.
        takes: (node, label) → whether an input of the right type, shown under that label, may have it.
    """

    controller: LoadedNode
    origin: str
    slot: int
    type: str
    priority: float
    takes: Callable[[LoadedNode, str], bool]


def add_broadcasts(graph: LoadedGraph, boxes: list[Any]) -> None:
    """Add the links of the broadcasting nodes of one graph to it, in place.

    Args:
        graph: the graph, nothing cached of its links yet.
        boxes: the groups of nodes on the canvas, as stored.

    Raises:
        WorkflowError: a pattern is too complex to be matched.
    """
    controllers = [
        node
        for node in graph.nodes.values()
        if node.stored.mode == 0 and (_is_broadcaster(node) or node.stored.properties.get("ue_convert") is True)
    ]
    if not controllers:
        return
    if len(controllers) > MAX_BROADCASTERS:
        raise WorkflowError(
            f"The workflow has {len(controllers)} nodes that broadcast; at most {MAX_BROADCASTERS} are allowed."
        )
    members = [(str(box.get("title")), _inside(graph, box)) for box in boxes[:MAX_SLOTS] if isinstance(box, dict)]
    found = [each for node in controllers for each in _broadcasts_of(graph, node, members)]
    by_type: dict[str, list[_Broadcast]] = {}
    for broadcast in found:
        by_type.setdefault(broadcast.type, []).append(broadcast)
    for node in graph.nodes.values():
        if _is_broadcaster(node) or node.stored.properties.get("rejects_ue_links"):
            continue
        # As stored: the definition knows neither labels nor the widgets of an instance of a subgraph.
        pairs = zip(node.stored.inputs, node.stored.data.get("inputs") or (), strict=False)
        stored = {slot.name: (slot, each) for slot, each in pairs}
        for index, slot in enumerate(node.inputs):
            if slot.link is not None and slot.link in graph.links:
                continue
            own = stored.get(slot.name)
            if _is_connectable(node, slot, own[0] if own else None):
                label = str((own[1].get("label") if own else None) or slot.name)
                best = _best(node, slot.type, label, by_type)
                if best is not None:
                    key = f"broadcast to {node.id}.{index}"
                    graph.links[key] = UILink(best.origin, best.slot, node.id, index, best.type)
                    node.inputs[index] = replace(slot, link=key)


def _is_broadcaster(node: LoadedNode) -> bool:
    return node.stored.type in BROADCASTERS


def _settings(node: LoadedNode) -> dict[str, Any]:
    found = node.stored.properties.get("ue_properties")
    return found if isinstance(found, dict) else {}


def _best(node: LoadedNode, wanted: str, label: str, by_type: dict[str, list[_Broadcast]]) -> _Broadcast | None:
    """Return the broadcast that an input of a type, shown under a label, gets; None where it gets none."""
    candidates = list(by_type.get(wanted, ()))
    if wanted == "*":
        every = [each for kind, found in by_type.items() if kind != "*" for each in found]
        candidates += [each for each in every if _settings(each.controller).get("send_to_any")]
    if wanted == "COMBO":
        candidates += [each for each in by_type.get("STRING", ()) if _settings(each.controller).get("string_to_combo")]
    fitting = [each for each in candidates if each.origin != node.id and each.takes(node, label)]
    highest = max((each.priority for each in fitting), default=0.0)
    best = [each for each in fitting if each.priority == highest]
    if len(best) > 1:
        ids = ", ".join(sorted({each.controller.id for each in best}))
        log.warning("%s, %s: nodes %s broadcast to it alike, so it gets nothing.", node.id, label[:80], ids)
    return best[0] if len(best) == 1 else None


def _is_connectable(node: LoadedNode, slot: Slot, stored: Slot | None) -> bool:
    """Return whether broadcasts may reach an input of a node; one with a widget has to be told to take them."""
    if slot.widget or (stored is not None and stored.widget):
        allowed = _settings(node).get("widget_ue_connectable", node.stored.properties.get("widget_ue_connectable"))
        # Files older than the setting hold an input for each widget that was made one.
        return bool(allowed.get(slot.name)) if isinstance(allowed, dict) else stored is not None
    refused = _settings(node).get("input_ue_unconnectable")
    return not (isinstance(refused, dict) and refused.get(slot.name))


def _broadcasts_of(graph: LoadedGraph, node: LoadedNode, members: _Members) -> list[_Broadcast]:
    """Return what a node broadcasts."""
    rules = _rules(node)
    sources = _sources(graph, node)
    types = [kind for _, kind, _, _ in sources]
    repeated = {kind for kind in types if types.count(kind) > 1}
    priority = rules.get("priority") or 10 + 20 * (
        bool(repeated) or any(rules.get(f"{each}_regex") for each in RESTRICTIONS)
    ) + 3 * bool(rules.get("group_restricted")) + 6 * bool(rules.get("color_restricted"))
    allowed = _restricted(graph, node, rules, members)
    title, name = (_pattern(node, rules, each) for each in ("title", "input"))
    found = []
    for label, kind, origin, slot in sources:
        rule = rules.get("repeated_type_rule") or 0 if kind in repeated or rules.get("apply_to_unrepeated") else None
        own = _name_rule(node, rule, label)

        def takes(target: LoadedNode, shown: str, own: Callable[[LoadedNode, str], bool] = own) -> bool:
            return (
                (allowed is None or target.id in allowed)
                and title(target.stored.title or target.stored.type)
                and name(shown)
                and own(target, shown)
            )

        number = priority if isinstance(priority, int | float) else 10
        found.append(_Broadcast(node, origin, slot, kind, number, takes))
    return found


def _rules(node: LoadedNode) -> dict[str, Any]:
    """Return the restrictions of a broadcasting node; before version 7 they were properties and widgets."""
    rules = dict(_settings(node))
    if not rules.get("version"):
        properties, values = node.stored.properties, node.stored.widgets_values
        rules |= {key: properties[key] for key in ("group_restricted", "color_restricted") if key in properties}
        if node.stored.type == "Anything Everywhere?" and isinstance(values, list):
            rules |= {f"{key}_regex": value for key, value in zip(RESTRICTIONS, values, strict=False)}
    if node.stored.type == SEED_BROADCASTER:
        rules["input_regex"] = rules.get("input_regex") or "seed"
    for each in RESTRICTIONS:
        # What matches everything is no restriction, and has no priority for being one.
        if rules.get(f"{each}_regex") == ".*":
            rules[f"{each}_regex"] = None
    return rules


def _sources(graph: LoadedGraph, node: LoadedNode) -> list[tuple[str, str, str, int]]:
    """Return (label, type, origin, slot) of all that a node broadcasts."""
    outputs = node.stored.data.get("outputs") or []
    if node.stored.type == SEED_BROADCASTER:
        return [("seed", "INT", node.id, 0)]
    if node.stored.properties.get("ue_convert") is True and not _is_broadcaster(node):
        silent = _settings(node).get("output_not_broadcasting")
        return [
            (str(each.get("label") or each.get("name")), node.stored.output_types[slot], node.id, slot)
            for slot, each in enumerate(outputs)
            if not (isinstance(silent, dict) and silent.get(str(each.get("name"))))
        ]
    labels = [str(each.get("label") or each.get("name")) for each in node.stored.data.get("inputs") or ()]
    if node.stored.type == "Prompts Everywhere":
        labels = ["positive", "negative", *labels[2:]]
    found = []
    for label, slot in zip(labels, node.stored.inputs, strict=False):
        link = graph.links.get(slot.link) if slot.link is not None else None
        origin = None if link is None else _live_origin(graph, link)
        if link is not None and origin is not None:
            found.append((label, link.type, origin.origin, origin.origin_slot))
    return found


def _live_origin(graph: LoadedGraph, link: UILink) -> UILink | None:
    """Return the link before all bypassed nodes; None where it begins at a node that does not run."""
    at: UILink | None = link
    for _ in range(len(graph.nodes)):
        node = graph.nodes.get(at.origin) if at is not None else None
        if at is None or node is None or node.stored.mode != BYPASS:
            break
        slots = node.inputs[at.origin_slot : at.origin_slot + 1] + node.inputs
        through = next((slot.link for slot in slots if slot.type == link.type), None)
        at = graph.links.get(through) if through is not None else None
    at = at or link
    node = graph.nodes.get(at.origin)
    return at if at.origin == INPUT_SIDE or (node is not None and node.stored.mode == 0) else None


def _name_rule(node: LoadedNode, rule: Any, label: str) -> Callable[[LoadedNode, str], bool]:
    """Return what decides whether an input may have one of several sources of a type, by their labels."""
    if rule == 0:
        return lambda target, name: name == label
    if rule == 1:
        return lambda target, name: name.startswith(label) or label.startswith(name)
    if rule == 2:
        return lambda target, name: name.endswith(label) or label.endswith(name)
    if rule == 3:
        return lambda target, name: target.stored.title == label
    matches = _matcher(node, label) if rule == 4 else None
    return lambda target, name: matches is None or matches(name)


def _pattern(node: LoadedNode, rules: dict[str, Any], what: str) -> Callable[[str], bool]:
    """Return what decides whether a text passes the pattern of a restriction."""
    text, inverted = rules.get(f"{what}_regex"), bool(rules.get(f"{what}_regex_invert"))
    matches = _matcher(node, text) if isinstance(text, str) and text else None
    return lambda subject: matches is None or matches(subject) != inverted


def _matcher(node: LoadedNode, pattern: str) -> Callable[[str], bool] | None:
    """Return what decides whether a text has a match of a pattern, None for a pattern that is none.

    Raises:
        WorkflowError: the pattern may take for ever.
    """
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"[*+}][^(]*\)[*+{?]", pattern):
        raise WorkflowError(
            f"Node {node.id} ({node.stored.type}): the pattern {pattern[:40]!r} is too complex. Use one of at most "
            f"{MAX_PATTERN} characters and {MAX_REPEATS} repeats, none within another."
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None  # what is no pattern restricts nothing
    return lambda subject: compiled.search(subject[:MAX_SUBJECT]) is not None


def _restricted(graph: LoadedGraph, node: LoadedNode, rules: dict[str, Any], members: _Members) -> set[str] | None:
    """Return the ids of the nodes that a broadcast is restricted to, by groups and colours; None for all."""
    every = set(graph.nodes)
    allowed = every
    if rules.get("group_restricted") in (1, 2):
        own = {each for _, inside in members if node.id in inside for each in inside}
        allowed = own if rules["group_restricted"] == 1 else every - own
    if rules.get("color_restricted") in (1, 2):
        colour = node.stored.data.get("color")
        same = {key for key, each in graph.nodes.items() if each.stored.data.get("color") == colour}
        allowed = allowed & (same if rules["color_restricted"] == 1 else every - same)
    if rules.get("group_regex"):
        fits = _pattern(node, rules, "group")
        allowed = allowed & {each for title, inside in members if fits(title) for each in inside}
    return None if allowed is every else allowed


def _inside(graph: LoadedGraph, box: dict[str, Any]) -> set[str]:
    """Return the ids of the nodes whose centre is in a group on the canvas."""
    edges = _numbers(box.get("bounding"))
    if len(edges) < 4:
        return set()
    left, top, width, height = edges[:4]
    found = set()
    for key, node in graph.nodes.items():
        x, y, w, h = [*_numbers(node.stored.data.get("pos")), 0, 0][:2] + [
            *_numbers(node.stored.data.get("size")),
            0,
            0,
        ][:2]
        centre = x + w / 2, y + (h - TITLE_HEIGHT) / 2
        if left <= centre[0] < left + width and top <= centre[1] < top + height:
            found.add(key)
    return found


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a list, or of an object with the positions as keys, as old files have it."""
    entries = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [float(each) for each in entries if isinstance(each, int | float) and abs(each) < MAX_PLACE]
