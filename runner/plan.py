"""Memory plan of a graph: what its nodes would need, asked of their classes; nothing is loaded.

A node class that can tell has a method `plan_memory(**known, linked=names)`: called with the inputs that
are known before a run, and the names of those that only the run will know. It returns something with
`to_json()`, a dictionary with `fits`, `peak_vram_gb`, `peak_ram_gb`, `seconds` (all four None where only the run will
know), `components`, `reasons` and `rejected`, and with `to_text()`. Its `plan_formats`, called alike, returns
something with both that has what the same run would need were the model's files in each weight format.

Sizes that a node before it sets are put in as `known_values` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import WorkflowError
from .graph import Graph, Node, execution_order
from .known_values import KnownValues, Source, naming

SIZES = ("width", "height", "num_frames", "steps", "cfg")


@dataclass(frozen=True)
class NodePlan:
    """What one node would need.

    Attributes:
        answer: what its `plan_memory`, or `plan_formats`, returned.
        unknown: inputs that were left out, because only the run will know them.
    """

    node: Node
    answer: Any
    unknown: list[str]


def plan_graph(
    graph: Graph,
    roots: list[str],
    classes: Mapping[str, type],
    ask: Literal["plan_memory", "plan_formats"] = "plan_memory",
) -> list[NodePlan]:
    """Return the plans of all nodes that can tell, of those that the outputs depend on.

    Args:
        ask: the method to ask them by.

    Raises:
        WorkflowError: there is none.
        PiyingError: a model cannot be planned for.
    """
    values = KnownValues(graph, classes)
    plans = []
    for node in execution_order(graph, roots):
        asked = Source(node, graph, classes, values)
        if hasattr(asked.node_class, ask):
            asked.take_sizes()
            with naming(node):
                answer = getattr(asked.node_class(), ask)(linked=frozenset(asked.unknown), **asked.known)
            plans.append(NodePlan(node, answer, asked.unknown))
    if not plans:
        raise WorkflowError("--plan: no node of the workflow can tell what it would need.")
    return plans


def formats_as_json(plans: list[NodePlan]) -> dict[str, Any]:
    """Return the tables of weight formats as one object."""
    return {"nodes": [_node_as_json(plan) for plan in plans]}


def _node_as_json(plan: NodePlan) -> dict[str, Any]:
    node = {"node": plan.node.id, "class_type": plan.node.class_type, "title": plan.node.title}
    return {**node, "unknown": plan.unknown, **plan.answer.to_json()}


def as_json(plans: list[NodePlan]) -> dict[str, Any]:
    """Return all plans as one object, with figures of those that have some; None where none has."""
    nodes = [_node_as_json(plan) for plan in plans]
    known = [node for node in nodes if node["fits"] is not None]
    # One after another: times add up, and the largest peak is the graph's.
    return {
        "fits": all(node["fits"] for node in known) if known else None,
        "peak_vram_gb": max((node["peak_vram_gb"] for node in known), default=None),
        "peak_ram_gb": max((node["peak_ram_gb"] for node in known), default=None),
        "seconds": round(sum(node["seconds"] for node in known), 1) if known else None,
        "components": [component for node in nodes for component in node["components"]],
        "reasons": [reason for node in nodes for reason in node["reasons"]],
        "rejected": [rejected for node in nodes for rejected in node["rejected"]],
        "nodes": nodes,
    }


def as_text(plans: list[NodePlan]) -> str:
    """Return all plans as lines for people."""
    paragraphs = []
    for plan in plans:
        text = f"{plan.node}: {plan.answer.to_text()}"
        # Other inputs change neither memory nor time.
        sizes = [name for name in plan.unknown if name in SIZES]
        if sizes and plan.answer.to_json()["fits"] is not None:
            text += f"\n- {', '.join(sizes)} will only be known in the run: planned with the defaults."
        paragraphs.append(text)
    return "\n\n".join(paragraphs)
