"""What the samplers of a graph would need, asked of their node classes; nothing is loaded.

A node class that can tell has a method `plan_memory(**known, linked=names)`: called with the inputs that
are known before a run, and the names of those that only the run will know. It returns something with
`to_json()`, a dictionary with `fits`, `peak_vram_gb`, `peak_ram_gb`, `seconds`, `components`, `reasons` and
`rejected`, and with `to_text()`. Where an input is linked to a node whose class says `RUNS_AT_ONCE`, such
as a loader or a primitive, that node is run to learn it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowError
from .graph import Graph, Link, Node, execution_order

UNKNOWN = object()


@dataclass(frozen=True)
class NodePlan:
    """What one sampler would need.

    Attributes:
        answer: what its `plan_memory` returned.
        unknown: inputs that were left out, because only the run will know them.
    """

    node: Node
    answer: Any
    unknown: list[str]


def plan_graph(graph: Graph, roots: list[str], classes: Mapping[str, type]) -> list[NodePlan]:
    """Return the plans of all samplers that the outputs depend on.

    Raises:
        WorkflowError: there is none.
        PiyingError: a model cannot be planned for.
    """
    values: dict[str, Any] = {}
    plans = []
    for node in execution_order(graph, roots):
        node_class = classes[node.class_type]
        known = {name: _value(value, graph, classes, values) for name, value in node.inputs.items()}
        unknown = [name for name, value in known.items() if value is UNKNOWN]
        known = {name: value for name, value in known.items() if value is not UNKNOWN}
        if hasattr(node_class, "plan_memory"):
            plans.append(NodePlan(node, node_class().plan_memory(linked=frozenset(unknown), **known), unknown))
    if not plans:
        raise WorkflowError("--plan: no node of the workflow can tell what it would need.")
    return plans


def _value(value: Any, graph: Graph, classes: Mapping[str, type], values: dict[str, Any]) -> Any:
    """Return an input's value before the run, or UNKNOWN."""
    if not isinstance(value, Link):
        return value
    outputs = _outputs(graph[value.source], graph, classes, values)
    return UNKNOWN if outputs is UNKNOWN else outputs[value.slot]


def _outputs(node: Node, graph: Graph, classes: Mapping[str, type], values: dict[str, Any]) -> Any:
    """Return the outputs of a node that runs at once and all of whose inputs are known, else UNKNOWN."""
    if node.id not in values:
        node_class: Any = classes[node.class_type]
        values[node.id] = UNKNOWN
        if getattr(node_class, "RUNS_AT_ONCE", False):
            inputs = {name: _value(value, graph, classes, values) for name, value in node.inputs.items()}
            if UNKNOWN not in inputs.values():
                values[node.id] = getattr(node_class(), node_class.FUNCTION)(**inputs)
    return values[node.id]


def as_json(plans: list[NodePlan]) -> dict[str, Any]:
    """Return all plans as one object: the samplers run one after another."""
    nodes = [_node_json(plan) for plan in plans]
    return {
        "fits": all(node["fits"] for node in nodes),
        "peak_vram_gb": max(node["peak_vram_gb"] for node in nodes),
        "peak_ram_gb": max(node["peak_ram_gb"] for node in nodes),
        "seconds": round(sum(node["seconds"] for node in nodes), 1),
        "components": [component for node in nodes for component in node["components"]],
        "reasons": [reason for node in nodes for reason in node["reasons"]],
        "rejected": [rejected for node in nodes for rejected in node["rejected"]],
        "nodes": nodes,
    }


def _node_json(plan: NodePlan) -> dict[str, Any]:
    return {
        "node": plan.node.id,
        "class_type": plan.node.class_type,
        "title": plan.node.title,
        "unknown": plan.unknown,
        **plan.answer.to_json(),
    }


def as_text(plans: list[NodePlan]) -> str:
    """Return all plans as lines for people."""
    return "\n\n".join(f"{plan.node}: {plan.answer.to_text()}{_left_out(plan.unknown)}" for plan in plans)


def _left_out(unknown: list[str]) -> str:
    sizes = [name for name in unknown if name in ("width", "height", "num_frames", "steps", "cfg")]
    return f"\n- {', '.join(sizes)} will only be known in the run: planned with the defaults." if sizes else ""
