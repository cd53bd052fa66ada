"""ComfyUI loads the pack, under a folder name with a dot and a hyphen, and knows its nodes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.comfyui

OUTPUTS = {
    "PiyingLoadWanVACE": ["WAN_VACE"],
    "PiyingVACESample": ["IMAGE", "LATENT"],
    "PiyingLoadHunyuanDiT": ["HUNYUAN_DIT"],
    "PiyingHunyuanDiT": ["IMAGE"],
    "PiyingLoadPromptModel": ["PROMPT_MODEL"],
    "PiyingExpandPrompt": ["STRING", "STRING"],
    "PiyingPromptServer": ["PROMPT_MODEL"],
}


def test_imports_without_errors(comfyui):
    lines = [line for line in comfyui.log.splitlines() if "ComfyUI-Piying.test" in line]
    assert any("seconds" in line for line in lines), "ComfyUI lists the import time of each pack"
    # Its own optional nodes, of sound for instance, fail where their packages are missing: that is not ours.
    assert not [line for line in lines if "IMPORT FAILED" in line or "Cannot import" in line]


@pytest.mark.parametrize("name", OUTPUTS)
def test_node_is_known(comfyui, name):
    node = comfyui.object_info()[name]
    assert node["output"] == OUTPUTS[name]
    assert node["python_module"] == "custom_nodes.ComfyUI-Piying.test"
    assert node["display_name"] != name
    assert node["description"]
    assert len(node["output_tooltips"]) == len(node["output"])


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_input_has_a_tooltip(comfyui, name):
    groups = comfyui.object_info()[name]["input"]
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    assert inputs
    assert [key for key, spec in inputs.items() if not spec[1].get("tooltip")] == []


def test_workflows_are_offered_as_templates(comfyui):
    from piying.tests.comfyui.server import request_json

    status, offered = request_json(f"{comfyui.url}/workflow_templates")
    assert status == 200
    assert {"t2v", "t2i"} <= set(offered["ComfyUI-Piying.test"])
