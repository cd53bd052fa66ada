"""Node ids, inputs and types are an interface: they may grow, and never change or shrink."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import piying
import pytest
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("interface.json")


@pytest.fixture(autouse=True)
def host(tmp_path):
    set_host(HeadlessHost(input=tmp_path, output=tmp_path, temp=tmp_path))
    yield
    set_host(None)


def kind(declared):
    return "COMBO" if isinstance(declared[0], list) else declared[0]


def interface():
    return {
        name: {
            "inputs": {
                group: {key: kind(value) if isinstance(value, tuple) else value for key, value in inputs.items()}
                for group, inputs in node.INPUT_TYPES().items()
            },
            "outputs": list(node.RETURN_TYPES),
        }
        for name, node in piying.NODE_CLASS_MAPPINGS.items()
    }


def test_the_interface_only_grows():
    """A new node or input is added to interface.json by hand; nothing in it may go or change."""
    shipped, current = json.loads(SNAPSHOT.read_text()), interface()
    for name, node in shipped.items():
        assert current[name]["outputs"][: len(node["outputs"])] == node["outputs"]
        for group, inputs in node["inputs"].items():
            # Widget values are stored by position, so new inputs of a group come last.
            assert list(current[name]["inputs"][group].items())[: len(inputs)] == list(inputs.items())
    assert current == shipped, "add what is new to interface.json"


@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_every_node_explains_itself(name):
    node = piying.NODE_CLASS_MAPPINGS[name]
    assert piying.NODE_DISPLAY_NAME_MAPPINGS[name]
    assert node.CATEGORY.split("/")[0] == "Piying"
    assert node.DESCRIPTION
    assert hasattr(node, node.FUNCTION)
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    inputs = node.INPUT_TYPES()
    for key, declared in {**inputs["required"], **inputs.get("optional", {})}.items():
        assert declared[1]["tooltip"], key


@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_defaults_are_in_their_own_range(name):
    node = piying.NODE_CLASS_MAPPINGS[name]
    for key, declared in node.INPUT_TYPES()["required"].items():
        options = declared[1]
        if isinstance(declared[0], list):
            assert options["default"] in declared[0], key
        elif declared[0] in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], key
            assert key != "seed" or (options["min"], options["max"]) == (0, 2**64 - 1)


def test_published_defaults():
    declared = piying.NODE_CLASS_MAPPINGS["PiyingVACESample"].INPUT_TYPES()["required"]
    defaults = {name: value[1].get("default") for name, value in declared.items()}
    published = {"width": 832, "height": 480, "num_frames": 81, "steps": 50, "cfg": 5.0, "shift": 16.0, "seed": 2025}
    assert {name: defaults[name] for name in published} == published
    assert defaults["negative_prompt"].startswith("色调艳丽，过曝，静态")


def test_the_mappings_are_literals():
    """ComfyUI-Manager reads them in every file, without running it."""
    nodes, titles = {}, {}
    for path in (ROOT / "nodes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
        literal = {n.targets[0].id: n.value for n in assigned}
        if isinstance(literal.get("NODE_CLASS_MAPPINGS"), ast.Dict):
            mapping = literal["NODE_CLASS_MAPPINGS"]
            nodes |= {key.value: node.id for key, node in zip(mapping.keys, mapping.values, strict=True)}
            titles |= ast.literal_eval(literal["NODE_DISPLAY_NAME_MAPPINGS"])
    assert nodes == {name: node.__name__ for name, node in piying.NODE_CLASS_MAPPINGS.items()}
    assert titles == piying.NODE_DISPLAY_NAME_MAPPINGS


def sockets_of(node_class):
    """Inputs that have no widget, in ComfyUI's order."""
    declared = node_class.INPUT_TYPES()
    return [
        name
        for name, (kind, *options) in {**declared.get("required", {}), **declared.get("optional", {})}.items()
        if isinstance(kind, str)
        and (kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") or (options and options[0].get("forceInput")))
    ]


@pytest.mark.parametrize("file", sorted(ROOT.glob("subgraphs/*.json")), ids=lambda file: file.stem)
def test_blueprints_hold_every_socket(file):
    """Frontend 1.27 puts in what a file lacks, and the links of a subgraph, which count sockets, are off by one."""
    (subgraph,) = json.loads(file.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    saved = {node["type"]: node["inputs"] for node in subgraph["nodes"] if node["type"] in piying.NODE_CLASS_MAPPINGS}
    assert saved
    for name, inputs in saved.items():
        assert [one["name"] for one in inputs if "widget" not in one] == sockets_of(piying.NODE_CLASS_MAPPINGS[name])
