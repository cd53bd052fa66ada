"""Order, list mapping, caching and errors of the engine, on nodes that only count."""

from __future__ import annotations

import pytest
from piying.runner.cache import Cache
from piying.runner.definitions import object_info
from piying.runner.errors import NodeFailed, WorkflowError
from piying.runner.execute import Executor, Hidden
from piying.runner.graph import execution_order, parse_graph
from piying.runner.validate import converted, validate_graph


class Number:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT", {"min": 0, "max": 9})}}

    def run(self, value):
        return (value,)


class Add:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("INT", {}), "b": ("INT", {})}}

    def run(self, a, b):
        return (a + b,)


class Spread:
    RETURN_TYPES = ("INT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {})}}

    def run(self, count):
        return (list(range(count)),)


class Gather:
    RETURN_TYPES = ()
    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"values": ("INT", {})}, "hidden": {"me": "UNIQUE_ID", "prompt": "PROMPT"}}

    def run(self, values, me, prompt):
        return {"ui": {"seen": values, "me": me, "prompt": prompt}}


class Show:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*", {})}}

    def run(self, value):
        return {"ui": {"seen": [value]}}


class Fails(Number):
    error = ZeroDivisionError("nothing to divide")

    def run(self, value):
        raise self.error


class Changes(Number):
    stamp = 0

    @classmethod
    def IS_CHANGED(cls, value):
        return cls.stamp


class Known(Number):
    RUNS_AT_ONCE = True


class KnownFails(Fails):
    RUNS_AT_ONCE = True


class Thing(Known):
    RETURN_TYPES = ("THING",)


class Use:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"thing": ("THING",)}, "optional": {"more": ("THING",), "box": ("THING", {"default": {}})}}

    def run(self, thing, more=None, box=None):
        return {"ui": {"seen": [thing]}}


CLASSES = {c.__name__: c for c in (Number, Add, Spread, Gather, Show, Fails, Changes, Known, KnownFails, Thing, Use)}
INFO = object_info(CLASSES, {})


class Record:
    def __init__(self):
        self.ran, self.cached, self.blocked = [], [], []

    def node_started(self, node):
        self.ran.append(node.id)

    def node_finished(self, node, ui, cached):
        if cached:
            self.cached.append(node.id)

    def node_blocked(self, node, message):
        self.blocked.append((node.id, message))


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def run(api, cache=None):
    graph, record = parse_graph(api), Record()
    found = validate_graph(graph, INFO, CLASSES)
    assert found.errors == []
    return Executor(CLASSES, record, cache).run(graph, found.roots, Hidden(prompt=api)), record


def test_sources_run_first_and_once():
    api = {
        "1": node("Show", value=["2", 0]),
        "2": node("Add", a=["3", 0], b=["3", 0]),
        "3": node("Number", value=4),
        "4": node("Number", value=5),
    }
    results, record = run(api)
    assert results["1"].ui == {"seen": [8]}
    assert record.ran == ["3", "2", "1"], "node 4 feeds nothing and does not run"


def test_a_list_is_mapped_and_the_shorter_one_repeats():
    api = {
        "1": node("Spread", count=3),
        "2": node("Spread", count=2),
        "3": node("Add", a=["1", 0], b=["2", 0]),
        "4": node("Gather", values=["3", 0]),
    }
    results, _ = run(api)
    assert results["4"].ui == {"seen": [0, 2, 3], "me": ["4"], "prompt": [api]}


def test_an_empty_list_is_named():
    api = {"1": node("Spread", count=0), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["2", 0])}
    with pytest.raises(NodeFailed, match=r"Add \(node 2\): the input a is an empty list"):
        run(api)


def test_what_did_not_change_does_not_run_again():
    cache = Cache()
    api = {"1": node("Number", value=1), "2": node("Number", value=2), "3": node("Add", a=["1", 0], b=["2", 0])}
    api["4"] = node("Show", value=["3", 0])
    run(api, cache)
    _, record = run(api, cache)
    assert (record.ran, record.cached) == ([], ["1", "2", "3", "4"])
    api["2"] = node("Number", value=3)
    results, record = run(api, cache)
    assert record.ran == ["2", "3", "4"]
    assert results["4"].ui == {"seen": [4]}


def test_is_changed_decides(monkeypatch):
    cache, api = Cache(), {"1": node("Changes", value=1), "2": node("Show", value=["1", 0])}
    run(api, cache)
    assert run(api, cache)[1].ran == []
    monkeypatch.setattr(Changes, "stamp", 1)
    assert run(api, cache)[1].ran == ["1", "2"]
    monkeypatch.setattr(Changes, "stamp", float("nan"))
    run(api, cache)
    assert run(api, cache)[1].ran == ["1", "2"], "not a number is never what it was"


def test_a_failure_names_the_node_and_keeps_the_rest():
    cache = Cache()
    api = {"1": node("Number", value=1), "2": node("Fails", value=["1", 0]), "3": node("Show", value=["2", 0])}
    with pytest.raises(NodeFailed, match=r"Fails \(node 2\): nothing to divide") as caught:
        run(api, cache)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    api["2"] = node("Number", value=["1", 0])
    assert run(api, cache)[1].cached == ["1"]


def test_a_failure_without_words_is_named_by_its_kind(monkeypatch):
    monkeypatch.setattr(Fails, "error", MemoryError())
    with pytest.raises(NodeFailed, match=r"Fails \(node 1\): MemoryError$"):
        run({"1": node("Fails", value=1), "2": node("Show", value=["1", 0])})


def test_the_cache_keeps_one_graph():
    cache, api = Cache(), {"1": node("Number", value=1), "2": node("Show", value=["1", 0])}
    run(api, cache)
    run({"1": node("Number", value=2), "2": node("Show", value=["1", 0])}, cache)
    assert run(api, cache)[1].ran == ["1", "2"]


def test_deep_and_wide_graphs():
    api = {"0": node("Number", value=1)}
    for index in range(1, 5000):
        api[str(index)] = node("Add", a=[str(index - 1), 0], b=[str(index // 2), 0])
    api["end"] = node("Show", value=["4999", 0])
    graph = parse_graph(api)
    order = [each.id for each in execution_order(graph, ["end"])]
    assert len(order) == 5001
    places = {node_id: place for place, node_id in enumerate(order)}
    assert all(places[link.source] < places[each.id] for each in graph.values() for _, link in each.links())


@pytest.mark.parametrize(
    ("api", "kind", "words"),
    [
        ({"1": node("Show")}, "required_input_missing", "value is missing"),
        ({"1": node("Show", value=["7", 0])}, "bad_linked_input", "node 7, which is not there"),
        ({"1": node("Number", value=1), "2": node("Show", value=["1", 3])}, "bad_linked_input", "output 3"),
        ({"1": node("Number", value=10), "2": node("Show", value=["1", 0])}, "value_bigger_than_max", "at most 9"),
        ({"1": node("Number", value=-1), "2": node("Show", value=["1", 0])}, "value_smaller_than_min", "at least 0"),
        ({"1": node("Number", value="x"), "2": node("Show", value=["1", 0])}, "invalid_input_type", "whole number"),
        ({"1": node("Number", value=[1, 2, 3]), "2": node("Show", value=["1", 0])}, "invalid_input_type", "[1, 2, 3]"),
        ({"1": node("Number", value=1), "2": node("Show", value=1, x=["1", 0])}, "unknown_input", "no input 'x'"),
        ({"1": node("Use", thing="a")}, "invalid_input_type", "thing is 'a', which is no THING. Connect a THING"),
        ({"1": node("Use", thing=None)}, "invalid_input_type", "thing is None"),
        ({"1": node("Thing", value=1), "2": node("Use", thing=["1", 0], more=7)}, "invalid_input_type", "more is 7"),
        (
            {"1": node("Known", value=9), "2": node("Add", a=["1", 0], b=1), "3": node("Number", value=["1", 0])}
            | {"4": node("KnownFails", value=["1", 0]), "5": node("Show", value=["4", 0])},
            "exception_during_validation",
            "KnownFails (node 4): ZeroDivisionError: nothing to divide",
        ),
    ],
)
def test_findings_carry_comfyuis_types(api, kind, words):
    (error,) = validate_graph(parse_graph(api), INFO, CLASSES).errors
    assert error.type == kind
    assert words in str(error)


def test_values_of_unknown_inputs_are_not_used(caplog):
    """Each is named, with the input that was meant where one is near."""
    api = {
        "1": node("Number", value=1, preview="text", shown={"frames": 2}, valu=3),
        "2": node("Show", value=["1", 0]),
    }
    assert run(api)[0]["2"].ui == {"seen": [1]}
    text, slip = [record.getMessage() for record in caplog.records]
    assert text.endswith("has no input 'preview'. It has: value. The value is not used.")
    assert slip.endswith("has no input 'valu'. Did you mean value? It has: value. The value is not used.")


def test_nodes_that_run_at_once_are_given_what_they_declare(caplog):
    """Files hold values of widgets that a class had once, which are named, and previews, which are objects."""
    api = {"1": node("Thing", value=1, gone="fixed"), "2": node("Use", thing=["1", 0], more=None, box={"width": 3})}
    assert run(api)[0]["2"].ui == {"seen": [1]}
    (message,) = [record.getMessage() for record in caplog.records]
    assert "(node 1): has no input 'gone'." in message


def test_a_number_that_is_known_to_arrive_out_of_range_is_found_before_the_run():
    api = {"1": node("Thing", value=1), "2": node("Use", thing=["1", 0])}
    api |= {"3": node("Wide", value=10), "4": node("Number", value=["3", 0]), "5": node("Show", value=["4", 0])}
    wide = type("Wide", (Known,), {"INPUT_TYPES": lambda: {"required": {"value": ("INT", {})}}})
    classes = {**CLASSES, "Wide": wide}
    found = validate_graph(parse_graph(api), object_info(classes, {}), classes)
    assert [str(error) for error in found.errors] == [
        "Number (node 4): value is 10, which arrives by link. It must be at most 9."
    ]
    assert found.roots == ["2"]


def test_all_findings_are_told_at_once():
    api = {"1": node("Add", a="x", b="y"), "2": node("Show", value=["1", 0])}
    found = validate_graph(parse_graph(api), INFO, CLASSES)
    assert [error.input for error in found.errors] == ["a", "b"]


def test_circles_are_refused():
    api = {"1": node("Add", a=["2", 0], b=1), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["1", 0])}
    with pytest.raises(WorkflowError, match="depends on itself"):
        validate_graph(parse_graph(api), INFO, CLASSES)
    with pytest.raises(WorkflowError, match="depends on itself"):
        validate_graph(
            parse_graph({"1": node("Add", a=["1", 0], b=1), "2": node("Show", value=["1", 0])}), INFO, CLASSES
        )


def test_too_many_nodes():
    with pytest.raises(WorkflowError, match="at most 20000"):
        parse_graph({str(index): node("Number", value=1) for index in range(20_001)})


def test_a_list_is_a_value_where_the_workflow_says_so():
    node = {"class_type": "Text", "inputs": {"plain": [1, 2, 3], "wrapped": {"__value__": [1, 2]}}}
    inputs = parse_graph({"1": node})["1"].inputs
    assert converted(inputs["wrapped"], "STRING") == "[1, 2]"
    with pytest.raises(TypeError):
        converted(inputs["plain"], "STRING")
