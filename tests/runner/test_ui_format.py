"""From what the browser saves to what runs."""

from __future__ import annotations

import copy

import pytest
from piying.runner.cli import CLASSES, TITLES
from piying.runner.definitions import object_info
from piying.runner.errors import WorkflowError
from piying.runner.ui_format import is_ui_format, set_widget, to_api


@pytest.fixture
def info(tmp_path):
    from piying.core.host import HeadlessHost, set_host

    set_host(HeadlessHost(input=tmp_path, output=tmp_path, temp=tmp_path))
    yield object_info(CLASSES, TITLES)
    set_host(None)


def by_class(api):
    return {node["class_type"]: (node_id, node["inputs"]) for node_id, node in api.items()}


def test_the_shipped_workflow(t2v, info):
    assert is_ui_format(t2v)
    nodes = by_class(to_api(t2v, info))
    assert "MarkdownNote" not in nodes
    expand, inputs = nodes["PiyingExpandPrompt"]
    assert inputs["seed"] == 1
    sampler, inputs = nodes["PiyingVACESample"]
    assert inputs["prompt"] == [expand, 0]
    assert inputs["model"] == [nodes["PiyingLoadWanVACE"][0], 0]
    numbers = {name: inputs[name] for name in ("width", "height", "num_frames", "steps", "cfg", "shift", "seed")}
    expected = {"width": 128, "height": 96, "num_frames": 17, "steps": 20, "cfg": 5.0, "shift": 16.0, "seed": 2025}
    assert numbers == expected
    assert nodes["CreateVideo"][1] == {"images": [sampler, 0], "fps": 16}


def find(workflow, class_type):
    return next(node for node in workflow["nodes"] if node["type"] == class_type)


def test_muted_nodes_go_and_so_do_their_links(t2v, info):
    find(t2v, "PiyingExpandPrompt")["mode"] = 2
    nodes = by_class(to_api(t2v, info))
    assert "PiyingExpandPrompt" not in nodes
    assert nodes["PiyingVACESample"][1]["prompt"] == "", "the sampler's own widget speaks again"


def test_bypassed_nodes_pass_on_what_fits(t2v, info):
    find(t2v, "PiyingLoadWanVACE")["mode"] = 4
    assert "model" not in by_class(to_api(t2v, info))["PiyingVACESample"][1]


def test_a_bypassed_node_of_one_type_is_a_wire(t2v, info):
    sampler = find(t2v, "PiyingVACESample")
    link = next(entry["link"] for entry in find(t2v, "CreateVideo")["inputs"] if entry["name"] == "images")
    passing = {
        "id": 99,
        "type": "ImageInvert",
        "mode": 4,
        "inputs": [{"name": "image", "type": "IMAGE", "link": 900}],
        "outputs": [{"type": "IMAGE", "links": [link]}],
    }
    t2v["nodes"].append(passing)
    t2v["links"] = [[link, 99, 0, *each[3:]] if each[0] == link else each for each in t2v["links"]]
    t2v["links"].append([900, sampler["id"], 0, 99, 0, "IMAGE"])
    assert by_class(to_api(t2v, info))["CreateVideo"][1]["images"] == [str(sampler["id"]), 0]


def test_reroutes_vanish_and_circles_of_them_are_refused(t2v, info):
    sampler, video = find(t2v, "PiyingVACESample"), find(t2v, "CreateVideo")
    link = next(entry["link"] for entry in video["inputs"] if entry["name"] == "images")
    reroute = {"id": 99, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 900}], "outputs": []}
    t2v["nodes"].append(reroute)
    t2v["links"] = [[link, 99, 0, *each[3:]] if each[0] == link else each for each in t2v["links"]]
    t2v["links"].append([900, sampler["id"], 0, 99, 0, "IMAGE"])
    assert by_class(to_api(t2v, info))["CreateVideo"][1]["images"] == [str(sampler["id"]), 0]
    t2v["links"][-1] = [900, 99, 0, 99, 0, "IMAGE"]
    with pytest.raises(WorkflowError, match="circle"):
        to_api(t2v, info)


def test_a_primitive_node_gives_its_value(t2v, info):
    sampler = find(t2v, "PiyingVACESample")
    t2v["nodes"].append({"id": 99, "type": "PrimitiveNode", "widgets_values": [33, "fixed"], "outputs": []})
    t2v["links"].append([900, 99, 0, sampler["id"], 5, "INT"])
    sampler["inputs"] = [e for e in sampler["inputs"] if e["name"] != "num_frames"]
    sampler["inputs"].append({"name": "num_frames", "type": "INT", "link": 900})
    assert by_class(to_api(t2v, info))["PiyingVACESample"][1]["num_frames"] == 33


def test_older_files_without_the_after_run_widget(t2v, info):
    sampler = find(t2v, "PiyingVACESample")
    sampler["widgets_values"].remove("fixed")
    assert by_class(to_api(t2v, info))["PiyingVACESample"][1]["seed"] == 2025


def test_unknown_nodes_are_named_with_their_pack(t2v, info):
    find(t2v, "CreateVideo").update(type="VHS_VideoCombine", properties={"cnr_id": "comfyui-videohelpersuite"})
    with pytest.raises(WorkflowError, match="'VHS_VideoCombine'.*'comfyui-videohelpersuite'"):
        to_api(t2v, info)


def test_setting_a_widget_reaches_the_saved_form(t2v, info):
    before = copy.deepcopy(t2v)
    sampler = find(t2v, "PiyingVACESample")
    set_widget(t2v, info, str(sampler["id"]), "steps", 7)
    set_widget(t2v, info, str(sampler["id"]), "prompt", "a fox")
    inputs = by_class(to_api(t2v, info))["PiyingVACESample"][1]
    assert (inputs["steps"], inputs["prompt"], inputs["seed"]) == (7, "a fox", 2025)
    assert len(t2v["links"]) == len(before["links"]) - 1, "the wire that fed the prompt is cut"
