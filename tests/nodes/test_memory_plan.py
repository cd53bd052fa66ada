"""The Memory Plan node: the plan as text, for the models that are connected."""

from __future__ import annotations

import piying
import pytest
from piying.core.catalog.selection import ModelHandle
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.prompting.family import PROMPT
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.nodes.memory_plan import PiyingMemoryPlan

GB = 2**30
SIZE = {"width": 832, "height": 480, "num_frames": 81, "references": 0, "cfg": 5.0, "steps": 20}


@pytest.fixture(autouse=True)
def card_of_8_gb(tmp_path):
    set_host(HeadlessHost(models=[tmp_path], chosen_device="cpu", vram=8 * GB, ram=32 * GB, imagined=True))
    yield
    set_host(None)


def shown(**models):
    result = PiyingMemoryPlan().show(**SIZE, **models)
    assert result["ui"]["text"] == list(result["result"])
    return result["result"][0]


def test_it_shows_where_everything_would_be():
    text = shown(wan_vace=ModelHandle(WAN_VACE, "wan2.1-vace-14b"))
    assert text.startswith("wan2.1-vace-14b\nPlan for")
    assert "streamed" in text
    assert "\ndecode" in text


def test_each_connected_model_has_its_plan():
    text = shown(
        wan_vace=ModelHandle(WAN_VACE, "built-in"),
        hunyuan_dit=ModelHandle(HUNYUAN_DIT, "hunyuan-dit-v1.2"),
        prompt_model=ModelHandle(PROMPT, "qwen3-4b"),
    )
    assert text.count("Plan for") == 3


def test_references_need_room():
    def peak(references):
        text = PiyingMemoryPlan().show(
            **{**SIZE, "references": references}, wan_vace=ModelHandle(WAN_VACE, "wan2.1-vace-1.3b")
        )["result"][0]
        (row,) = [line for line in text.splitlines() if line.startswith("sample ")]
        return row

    assert peak(0) != peak(8)


@pytest.mark.parametrize("name", ["PiyingVACESample", "PiyingHunyuanDiT", "PiyingZImage"])
def test_every_size_of_a_sampler_can_be_asked_about(name):
    def limits(node):
        declared = node.INPUT_TYPES()
        numbers = {**declared["required"], **declared.get("optional", {})}
        return {key: one[1] for key, one in numbers.items() if one[0] in ("INT", "FLOAT")}

    plan, sampler = limits(PiyingMemoryPlan), limits(piying.NODE_CLASS_MAPPINGS[name])
    shared = plan.keys() & sampler.keys()
    assert {"width", "height", "cfg", "steps"} <= shared
    for key in shared:
        assert plan[key]["min"] <= sampler[key]["min"] and plan[key]["max"] >= sampler[key]["max"], key
        assert sampler[key]["step"] % plan[key]["step"] == 0 if key in ("width", "height", "num_frames") else True


def test_it_begins_with_the_published_video():
    request = WanRequest("")
    inputs = PiyingMemoryPlan.INPUT_TYPES()["required"]
    for name in ("width", "height", "num_frames", "cfg", "steps"):
        assert inputs[name][1]["default"] == getattr(request, name)


def test_nothing_connected():
    assert "Connect a model" in shown()
    assert "Connect a model" in shown(prompt_model=object())  # a server's: nothing of it is here


def test_it_runs_every_time():
    assert PiyingMemoryPlan.IS_CHANGED(**SIZE) != PiyingMemoryPlan.IS_CHANGED(**SIZE)
