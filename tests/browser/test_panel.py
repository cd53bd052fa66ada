"""The panel on our nodes, help, and search, in the frontend of a real ComfyUI, in English and Chinese."""

from __future__ import annotations

import json

import pytest
from piying.tests.comfyui.convert import WORKFLOWS

pytestmark = pytest.mark.browser

PANELS = "[...document.querySelectorAll('.piying-panel')].map((panel) => panel.innerText)"
SEARCH = """(() => {
  const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;
  const search = stores.get("nodeDef").nodeSearchService;
  const found = (word) => search.searchNode(word, [], { limit: 8 }).map((node) => node.name);
  return Object.fromEntries(%s.map((word) => [word, found(word)]));
})()"""
HELP = """(async () => {
  const types = window.LiteGraph.registered_node_types;
  const folder = types.PiyingVACESample.nodeData.python_module.split(".")[1];
  const paths = [`docs/PiyingVACESample/%s.md`, "docs/PiyingVACESample.md"];
  for (const path of paths) {
    const answer = await fetch(`/extensions/${folder}/${path}`);
    if (answer.ok) return await answer.text();
  }
})()"""
SIZES = {"width": 832, "height": 480, "num_frames": 81}


def evaluate(script):
    return {"do": "evaluate", "script": script}


def until(condition):
    """Wait in the page, at most a minute."""
    return evaluate(
        "new Promise((done) => { const end = Date.now() + 60000; const look = () => "
        f"(({condition}) || Date.now() > end) ? done() : setTimeout(look, 200); look(); }})"
    )


def searched(drive, words, *before):
    return drive([*before, evaluate(SEARCH % json.dumps(words))]).results[-1]


@pytest.fixture(scope="module")
def in_chinese(drive):
    drive([evaluate("window.app.extensionManager.setting.set('Comfy.Locale', 'zh')")])
    yield
    drive([evaluate("window.app.extensionManager.setting.set('Comfy.Locale', 'en')")])


def test_what_people_type_finds_nodes(drive):
    found = searched(drive, ["vace", "wan", "inpaint video", "hunyuan", "text to video"])
    assert "PiyingVACESample" in found["vace"]
    assert "PiyingVACESample" in found["wan"] or "PiyingLoadWanVACE" in found["wan"]
    assert found["inpaint video"][0] == "PiyingVACEInpaint"
    assert "PiyingHunyuanDiT" in found["hunyuan"]
    assert "PiyingVACESample" in found["text to video"]


def test_what_people_type_finds_nodes_in_chinese(drive, in_chinese):
    found = searched(drive, ["混元", "文生视频", "局部重绘", "提示词"])
    assert "PiyingHunyuanDiT" in found["混元"]
    assert found["文生视频"][0] == "PiyingVACESample"
    assert "PiyingVACEInpaint" in found["局部重绘"]
    assert "PiyingExpandPrompt" in found["提示词"]


def test_help_pages_come_from_where_the_frontend_looks(drive):
    english, chinese = drive([evaluate(HELP % "en"), evaluate(HELP % "zh")]).results
    assert "## Inputs" in english
    assert "## 输入" in chinese


def test_the_plan_follows_the_widgets(drive):
    actions = [
        {"do": "load_graph", "file": str(WORKFLOWS / "t2v.json")},
        until(f"{PANELS}.some((text) => /GB/.test(text))"),
        evaluate(PANELS),
        *({"do": "set_widget", "node": "PiyingVACESample", "name": key, "value": n} for key, n in SIZES.items()),
        evaluate("new Promise((done) => setTimeout(done, 5000))"),
        evaluate(PANELS),
    ]
    results = drive(actions).results
    small = next(text for text in results[2] if "GB" in text)
    large = next(text for text in results[-1] if "GB" in text)
    assert "On the CPU" in small
    assert small != large


def test_the_panel_leaves_no_trace_in_a_workflow(drive):
    workflow = json.loads((WORKFLOWS / "t2v.json").read_text(encoding="utf-8"))
    actions = [{"do": "load_graph", "workflow": workflow}, {"do": "serialize"}]
    after = {node["id"]: node.get("widgets_values") for node in drive(actions).results[-1]["nodes"]}
    for node in workflow["nodes"]:
        assert after[node["id"]] == node.get("widgets_values"), node["type"]
