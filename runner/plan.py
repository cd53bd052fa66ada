"""Memory plan of a graph: what its samplers would need, asked of their node classes; nothing is loaded.

A node class that can tell has a method `plan_memory(**known, linked=names)`: called with the inputs that
are known before a run, and the names of those that only the run will know. It returns something with
`to_json()`, a dictionary with `fits`, `peak_vram_gb`, `peak_ram_gb`, `seconds`, `components`, `reasons` and
`rejected`, and with `to_text()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowError
from .graph import Graph, Node, execution_order
from .known_values import UNKNOWN, KnownValues

SIZES = ("width", "height", "num_frames", "steps", "cfg")


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
    values = KnownValues(graph, classes)
    plans = []
    for node in execution_order(graph, roots):
        node_class = classes[node.class_type]
        known = values.inputs(node)
        unknown = [name for name, value in known.items() if value is UNKNOWN]
        known = {name: value for name, value in known.items() if value is not UNKNOWN}
        if hasattr(node_class, "plan_memory"):
            plans.append(NodePlan(node, node_class().plan_memory(linked=frozenset(unknown), **known), unknown))
    if not plans:
        raise WorkflowError("--plan: no node of the workflow can tell what it would need.")
    return plans


def as_json(plans: list[NodePlan]) -> dict[str, Any]:
    """Return all plans as one object."""
    nodes = [
        {
            "node": plan.node.id,
            "class_type": plan.node.class_type,
            "title": plan.node.title,
            "unknown": plan.unknown,
            **plan.answer.to_json(),
        }
        for plan in plans
    ]
    # One after another: times add up, and the largest peak is the graph's.
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


def as_text(plans: list[NodePlan]) -> str:
    """Return all plans as lines for people."""
    paragraphs = []
    for plan in plans:
        text = f"{plan.node}: {plan.answer.to_text()}"
        # Other inputs change neither memory nor time.
        sizes = [name for name in plan.unknown if name in SIZES]
        if sizes:
            text += f"\n- {', '.join(sizes)} will only be known in the run: planned with the defaults."
        paragraphs.append(text)
    return "\n\n".join(paragraphs)
