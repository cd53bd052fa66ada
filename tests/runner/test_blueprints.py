"""Subgraph blueprints: one node each, with the widgets that matter, which runs in a graph as it comes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from piying.core.media.video import load_frames, probe
from piying.runner import Session
from piying.runner.errors import WorkflowError

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
BLUEPRINTS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")}
LINE = "a red circle moves right on a blue background"
FEW = {"prompt": LINE, "steps": 1, "width": 96, "height": 64, "num_frames": 5, "new_frames": 4}
# What goes in, and frames, width and height of the result; the sample is of 33 frames, 64 × 64.
RUNS = {
    "Text to Video (Piying)": (None, (5, 96, 64)),
    "Image to Video (Piying)": ("PiyingSampleImage", (5, 96, 64)),
    "Inpaint Video (Piying)": ("LoadVideo", (17, 64, 64)),
    "Outpaint Video (Piying)": ("LoadVideo", (17, 96, 64)),
    "Extend Video (Piying)": ("LoadVideo", (21, 64, 64)),
}
SOURCES = {
    "PiyingSampleImage": ("IMAGE", ["first frame"]),
    "LoadVideo": ("VIDEO", ["piying_moving_circle.mp4", "image"]),
}
FACE = {"prompt", "steps", "seed", "model"}


def node_of(name):
    (node,) = BLUEPRINTS[name]["nodes"]
    return node


def face(name):
    """The widgets of the one node, with their values."""
    node = node_of(name)
    names = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    return dict(zip(names, node["widgets_values"], strict=True))


def in_a_graph(name, source):
    """A workflow of the blueprint, its source and a saver, as a person places them; few steps of a small video."""
    node = json.loads(json.dumps(node_of(name)))
    values = face(name)
    node["widgets_values"] = [FEW.get(one, value) for one, value in values.items()]
    node["outputs"][0]["links"] = [1]
    saver = {
        "id": 101,
        "type": "SaveVideo",
        "inputs": [{"name": "video", "type": "VIDEO", "link": 1}],
        "widgets_values": ["video/made", "auto", "auto"],
    }
    nodes, links = [node, saver], [[1, node["id"], 0, 101, 0, "VIDEO"]]
    if source:
        kind, widgets = SOURCES[source]
        slot = next(index for index, one in enumerate(node["inputs"]) if one["type"] == kind)
        node["inputs"][slot]["link"] = 2
        links.append([2, 102, 0, node["id"], slot, kind])
        nodes.append({"id": 102, "type": source, "inputs": [], "widgets_values": widgets})
    return {"version": 0.4, "nodes": nodes, "links": links, "definitions": BLUEPRINTS[name]["definitions"]}


def test_all_are_there():
    assert set(BLUEPRINTS) == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_what_matters_is_on_the_face(name):
    assert set(face(name)) >= FACE
    assert face(name)["model"] == "auto"
    assert [slot["name"] for slot in node_of(name)["outputs"]] == ["video", "frames"]


@pytest.mark.parametrize("name", RUNS)
def test_it_is_described_and_found_in_both_languages(name):
    extra = BLUEPRINTS[name]["extra"]
    assert "ideo" in extra["BlueprintDescription"]
    for text in (extra["BlueprintDescription"], " ".join(extra["BlueprintSearchAliases"])):
        assert any("\u4e00" <= letter <= "\u9fff" for letter in text)


@pytest.mark.parametrize("name", RUNS)
def test_it_has_the_name_of_its_file(name):
    (subgraph,) = BLUEPRINTS[name]["definitions"]["subgraphs"]
    assert subgraph["name"] == node_of(name)["title"] == name
    assert subgraph["id"] == node_of(name)["type"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blueprints")
    session = Session(output=folder / "output", input=folder / "input", device="cpu")
    yield session
    session.close()


@pytest.mark.parametrize("name", RUNS)
def test_it_validates_between_a_source_and_a_saver(session, name):
    graph, roots, errors = session.check(session.prepare(in_a_graph(name, RUNS[name][0])))
    assert errors == []
    assert [graph[root].class_type for root in roots] == ["SaveVideo"]


def test_values_are_set_by_the_name_of_the_instance(session):
    name = "Text to Video (Piying)"
    graph = in_a_graph(name, None)
    key = graph["nodes"][0]["id"]
    made = session.prepare(graph, set={f"{name}.prompt": "a blue square", f"{key}.seed": 77, f"{key}.steps": "3"})
    (sampler,) = [node["inputs"] for node in made.api.values() if node["class_type"] == "PiyingVACESample"]
    assert (sampler["prompt"], sampler["seed"], sampler["steps"]) == ("a blue square", 77, 3)
    (host,) = [node for node in made.extra_pnginfo["workflow"]["nodes"] if node["id"] == key]
    assert {"a blue square", 77, 3} <= set(host["widgets_values"]), "the file that is saved says the same"
    with pytest.raises(WorkflowError, match=re.escape(f"No node '{name}'")):
        session.prepare(graph, set={f"{name}.surely": 1})


@pytest.mark.parametrize("name", ["Image to Video (Piying)", "Inpaint Video (Piying)", "Extend Video (Piying)"])
def test_it_makes_a_video(session, name):
    source, expected = RUNS[name]
    done = session.run(in_a_graph(name, source))
    (made,) = done.files
    frames = load_frames(made, probe(made))
    assert (frames.shape[0], frames.shape[2], frames.shape[1]) == expected
    assert frames.std() > 0.02
