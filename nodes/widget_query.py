"""A sampler as the browser describes it: its values, and the loaders its wires lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import PiyingError, clipped
from . import NODE_CLASS_MAPPINGS

MAX_DEPTH = 8  # loaders behind loaders
MAX_TEXT = 2000  # characters of a value
NUMBERS = {"INT": (int,), "FLOAT": (int, float)}  # JSON writes the float 5.0 of a widget as 5


class RefusedError(PiyingError):
    """What a run would refuse: a number that its widget does not take, or values of a node on the way."""


@dataclass
class WidgetQuery:
    """A node of ours.

    Attributes:
        node_class: its class.
        known: inputs whose values are known before a run.
        unknown: names of inputs that only the run will know.
        sources: {wired input: the node that the wire leads to, or None where that is none of ours}.
    """

    node_class: Any
    known: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    sources: dict[str, WidgetQuery | None] = field(default_factory=dict)

    def take_sizes(self) -> dict[str, int | None]:
        """Put in the sizes that a wired node sets in place of the widgets, and return them."""
        found: dict[str, int | None] = self.node_class.sizes_before_run(self.known, self.sources)
        for name, value in found.items():
            if name in self.unknown:
                self.unknown.remove(name)
            if value is None:
                self.known.pop(name, None)
                self.unknown.append(name)
            else:
                self.known[name] = value
        return found


def class_of(name: object) -> Any:
    """Return a node class of ours.

    Raises:
        PiyingError: there is none of that name.
    """
    if not isinstance(name, str) or name not in NODE_CLASS_MAPPINGS:
        raise PiyingError(f"class_type is {clipped(str(name))!r}, which is no node of Piying.")
    return NODE_CLASS_MAPPINGS[name]


def read(question: Mapping[str, Any], depth: int = 0) -> WidgetQuery:
    """Return the node a question describes.

    Args:
        question: `class_type`; `inputs`, for each name its value, or for a wire another such question with the
            `slot` it comes from, or null where what it comes from is no node of ours; `wired`, the names of the wired
            inputs that are given as values, such as those of primitives. Inputs that are not declared are left out:
            those of a newer or older browser page.

    Raises:
        PiyingError: a value is not what its input takes.
    """
    if depth > MAX_DEPTH:
        raise PiyingError(f"More than {MAX_DEPTH} nodes follow each other.")
    inputs = question.get("inputs", {})
    if not isinstance(inputs, dict):
        raise PiyingError("inputs is no JSON object.")
    wired = question.get("wired", [])
    if not isinstance(wired, list):
        raise PiyingError("wired is no JSON list.")
    asked = WidgetQuery(class_of(question.get("class_type")))
    declared = asked.node_class.INPUT_TYPES()
    for name, spec in {**declared.get("required", {}), **declared.get("optional", {})}.items():
        if name not in inputs:
            continue
        value = inputs[name]
        if value is None or name in wired:
            asked.sources[name] = None
        if isinstance(value, dict):
            source = asked.sources[name] = read(value, depth + 1)
            value = _output(source, value)
        elif value is not None:
            check(name, spec, value)
        if value is None:
            asked.unknown.append(name)
        else:
            asked.known[name] = value
    return asked


def _output(asked: WidgetQuery, question: Mapping[str, Any]) -> Any:
    """Return what a node gives at once; None where only a run would tell."""
    if not getattr(asked.node_class, "RUNS_AT_ONCE", False) or asked.unknown:
        return None
    # The arguments come from a browser page: a missing one would otherwise raise a TypeError.
    required = asked.node_class.INPUT_TYPES()["required"]
    missing = [name for name in required if name not in asked.known]
    if missing:
        raise PiyingError(f"{missing[0]} of {question['class_type']} is missing.")
    try:
        outputs = getattr(asked.node_class(), asked.node_class.FUNCTION)(**asked.known)
    except PiyingError as error:
        raise RefusedError(str(error)) from error
    slot = question.get("slot", 0)
    if type(slot) is not int or not 0 <= slot < len(outputs):
        raise PiyingError(f"{question['class_type']} has no output {clipped(str(slot), 20)}.")
    return outputs[slot]


def check(name: str, spec: Any, value: Any) -> None:
    """Accept a value of the kind and the range that an input declares.

    Raises:
        PiyingError: it is another.
    """
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(kind, str) and kind in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, NUMBERS[kind]):
            raise PiyingError(f"{name} is no number.")
        if not options.get("min", value) <= value <= options.get("max", value):
            raise RefusedError(f"{name} is {value}. It goes from {options['min']} to {options['max']}.")
    elif kind == "BOOLEAN":
        if not isinstance(value, bool):
            raise PiyingError(f"{name} is neither true nor false.")
    elif isinstance(kind, str) and kind not in ("STRING", "COMBO"):
        raise PiyingError(f"{name} takes {kind}, which another node gives.")
    elif not isinstance(value, str) or len(value) > MAX_TEXT:
        raise PiyingError(f"{name} is no text of up to {MAX_TEXT} characters.")
