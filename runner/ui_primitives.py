"""PrimitiveNodes: at export, the browser writes their value into the widgets they are wired to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from .ui_live import PRIMITIVE, LiveGraph, LiveNode, fed_input
from .ui_specs import Spec
from .ui_widgets import Widget

NUMBERS = ("INT", "FLOAT")


def apply_primitives(graph: LiveGraph) -> None:
    """Write the values of the PrimitiveNodes of a graph into the widgets they feed."""
    fed: dict[str, list[Widget]] = {}
    for node_id, widget in _wires(graph):
        fed.setdefault(node_id, []).append(widget)
    for node_id, widgets in fed.items():
        values = graph.nodes[node_id].stored.stored
        value = values[0] if isinstance(values, list) and values else widgets[0].value
        common = _common([widget.spec for widget in widgets])
        if _is_number(value) and common.kind in NUMBERS:
            value = rounded(_clamped(value, common.options), common)
        for widget in widgets:
            widget.value = rounded(value, widget.spec)


def _wires(graph: LiveGraph) -> Iterator[tuple[str, Widget]]:
    """Yield the id of a PrimitiveNode and a widget that it feeds, for every wire between such."""
    for link in graph.links.values():
        source, target = graph.nodes.get(link.origin), graph.nodes.get(link.target)
        if _is_primitive(source) and target is not None:
            index = fed_input(graph, link, target)
            if index is not None and target.inputs[index].name in target.widgets:
                yield link.origin, target.widgets[target.inputs[index].name]


def _is_primitive(node: LiveNode | None) -> bool:
    return node is not None and node.stored.kind == PRIMITIVE


def _common(specs: list[Spec]) -> Spec:
    """Return the widget that a PrimitiveNode shows: the first it feeds, within the ranges of all."""
    first = specs[0]
    options: dict[str, Any] = {**first.options, **_merged(first.options, first.options)}
    for spec in specs[1:]:
        if spec.widget_kind == first.widget_kind and _overlap(options, spec.options):
            options = {**options, **_merged(options, spec.options)}
    return Spec(first.name, first.widget_kind, options)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    (low, high), (least, most) = _range(one), _range(other)
    return {"min": max(low, least), "max": min(high, most), "step": _step(one, other)}


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    (low, high), (least, most) = _range(one), _range(other)
    return low <= most and high >= least


def _range(options: dict[str, Any]) -> tuple[float, float]:
    low, high = options.get("min"), options.get("max")
    return low if _is_number(low) else -math.inf, high if _is_number(high) else math.inf


def _step(one: dict[str, Any], other: dict[str, Any]) -> float:
    steps = [step if _is_number(step := options.get("step")) else 1 for options in (one, other)]
    whole = [step for step in steps if isinstance(step, int)]
    return math.lcm(*whole) if len(whole) == len(steps) else max(steps)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clamped(value: float, options: dict[str, Any]) -> float:
    low, high = _range(options)
    return min(max(value, low), high)


def rounded(value: Any, spec: Spec) -> Any:
    """Return a value as a widget rounds it when something else sets it."""
    if not _is_number(value):
        return value
    if spec.widget_kind == "INT":
        return _to_step(value, spec.options)
    return _to_precision(value, spec.options) if spec.widget_kind == "FLOAT" else value


def _to_step(value: float, options: dict[str, Any]) -> float:
    step, least = options.get("step") or 1, options.get("min") or 0
    if not isinstance(step, int) or step == 1:
        return value if isinstance(value, int) else math.floor(value + 0.5)
    offset = least % step if isinstance(least, int) else 0
    if isinstance(value, int):
        return (2 * (value - offset) + step) // (2 * step) * step + offset
    return math.floor((value - offset) / step + 0.5) * step + offset


def _to_precision(value: float, options: dict[str, Any]) -> float:
    step = options.get("step")
    digits = max(0, -math.floor(math.log10(step))) if _is_number(step) and step > 0 else 1
    unit = options.get("round") or (10.0**-digits if digits else 0)
    # A value whose distance is not a float any more is far too large to have digits worth rounding.
    if not _is_number(unit) or unit <= 0 or abs(value) > 2**53:
        return value
    low, high = _range({"min": 0, "max": 2048, **options})
    return min(max(round(math.floor(value / unit + 0.5) * unit, min(digits, 100)), low), high)
