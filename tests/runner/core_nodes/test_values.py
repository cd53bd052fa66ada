"""Text, primitives, and the switch."""

from __future__ import annotations

import pytest
from piying.runner.core_nodes import CORE_NODE_CLASSES


def run(name, **inputs):
    node = CORE_NODE_CLASSES[name]()
    return getattr(node, node.FUNCTION)(**inputs)


def test_concatenation():
    assert run("StringConcatenate", string_a="多", string_b="b", delimiter=", ") == ("多, b",)


@pytest.mark.parametrize(
    ("name", "value"),
    [("Int", 2**63 - 1), ("Float", 0.1), ("String", "a"), ("StringMultiline", "a\nb"), ("Boolean", False)],
)
def test_primitives(name, value):
    assert run(f"Primitive{name}", value=value) == (value,)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "None"), ("a", "a"), (0.1, "0.1"), (True, "True"), ({"a": [1]}, '{"a": [1]}')]
)
def test_preview_of_any_value(value, text):
    assert run("PreviewAny", source=value) == {"ui": {"text": (text,)}}


def test_preview_of_what_json_cannot_say():
    assert "object at" in run("PreviewAny", source=object())["ui"]["text"][0]


@pytest.mark.parametrize(("switch", "wanted", "value"), [(True, ["on_true"], 1), (False, ["on_false"], 0)])
def test_the_switch_asks_for_one_side(switch, wanted, value):
    node = CORE_NODE_CLASSES["ComfySwitchNode"]()
    assert node.check_lazy_status(switch=switch, on_false=None, on_true=None) == wanted
    assert node.check_lazy_status(switch=switch, on_false=0, on_true=1) == []
    assert node.execute(switch=switch, on_false=0, on_true=1) == (value,)


def test_a_side_without_a_link_is_nothing():
    node = CORE_NODE_CLASSES["ComfySwitchNode"]()
    assert node.check_lazy_status(switch=True, on_false=None) == []
    assert node.execute(switch=True, on_false=3) == (None,)
