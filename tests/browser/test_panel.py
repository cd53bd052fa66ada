"""The panel on our nodes: the plan that follows the widgets, a model that is missing, and one that is fetched."""

from __future__ import annotations

import json
import re
import shutil

import piying
import pytest
from piying.nodes.model_nodes import ModelLoader, PlannedNode
from piying.nodes.postprocessing import PostprocessingNode
from piying.tests.browser.page import PANELS, click, evaluate, opened, picture, set_widgets, until
from piying.tests.comfyui.convert import WORKFLOWS

pytestmark = pytest.mark.browser

PLAN = f"{PANELS}.find((text) => /GB RAM/.test(text))"
TEXT = "document.querySelector('.piying-dialog pre')?.innerText"
REPO = "/Qwen/Qwen3-0.6B/resolve"
TOY = WORKFLOWS.parent / "builtin_models/prompt"
CARD = "[data-model='qwen3-0.6b']"
BAR = f"""(() => {{
  const bar = document.querySelector("{CARD} .piying-bar");
  const share = parseFloat(bar?.querySelector("i").style.width);
  return share > 0 && share < 100 ? {{ share, text: bar.innerText }} : null;
}})()"""
CARDS = """(() => {
  const cards = [...document.querySelectorAll('.piying-dialog article')].map((card) => card.innerText);
  return cards.length ? cards : null;
})()"""
WIDGETS = """["width", "height", "num_frames"].map((name) => (
  window.drive.find("PiyingVACESample").widgets.find((widget) => widget.name === name).value
))"""
OFFERED = "window.drive.find('PiyingLoadPromptModel').widgets.find((w) => w.name === 'model').options.values"


SAMPLERS = [
    name for name, node in piying.NODE_CLASS_MAPPINGS.items() if issubclass(node, (PlannedNode, PostprocessingNode))
]
WITH_MORE = {"PiyingVACESample", "PiyingVACELongVideo", "PiyingWanSample"}
# Nodes 2.0 shows and hides rare widgets by a button of its own.
NODES_2 = "Boolean(window.LiteGraph.vueNodesMode)"
LOADERS = [name for name, node in piying.NODE_CLASS_MAPPINGS.items() if issubclass(node, ModelLoader)]
BUTTONS = """((name) => {
  const node = window.LiteGraph.createNode(name);
  window.app.graph.add(node);
  const panel = node.widgets.find((widget) => widget.name === "piying")?.element;
  return [...panel?.querySelectorAll("button, .piying-verdict") ?? []].map((part) => part.className || part.innerText);
})"""


def read_plan() -> list[dict]:
    """Open the whole plan, read it, and close it."""
    return [click(".piying-panel button", "Plan"), until(TEXT), click(".piying-dialog header button")]


@pytest.fixture(scope="module")
def planned(drive, screenshots):
    """The plan at the workflow's values, and after each of the changes, made one after the other."""
    changes = {
        "size": set_widgets("PiyingVACESample", width=832, height=480),
        "length": set_widgets("PiyingVACESample", num_frames=81),
        "precision": set_widgets("PiyingLoadWanVACE", precision="bf16"),
    }
    actions = [opened("t2v"), until(PLAN), *read_plan()]
    for change in changes.values():
        actions += [*change, {"do": "pause", "seconds": 2.5}, until(PLAN), *read_plan()]
    actions += [
        picture(screenshots / "plan.png"),
        *set_widgets("PiyingLoadWanVACE", model="wan2.1-vace-14b"),
        until(f"{PANELS}.find((text) => /Not installed/.test(text))"),
        picture(screenshots / "missing.png"),
        click(".piying-panel button", "Get a model"),
        until(CARDS),
    ]
    results = drive(actions).results
    plans = [result for result in results if isinstance(result, str) and result.startswith("built-in")]
    missing = next(result for result in results if isinstance(result, str) and "Not installed" in result)
    return {"plans": dict(zip(["first", *changes], plans, strict=True)), "missing": missing, "cards": results[-1]}


def test_the_plan_follows_size_length_and_precision(planned):
    plans = planned["plans"]
    assert len(set(plans.values())) == len(plans), plans
    assert "bf16" in plans["precision"]


def test_a_missing_model_is_named_with_what_to_fetch(planned):
    assert "wan2.1-vace-14b" in planned["missing"]
    first = planned["cards"][0]
    assert "14B" in first
    assert "GB" in first
    assert "licence" in first
    assert "Wan-AI/Wan2.1-VACE-14B-diffusers" in first
    assert "Download" in first


@pytest.fixture(scope="module")
def judged(drive, screenshots):
    """What is too big, and after its button; sizes over wires, before a run and after it."""
    actions = {
        "graph": opened("t2v"),
        **dict(enumerate(set_widgets("PiyingVACESample", width=2048, height=2048, num_frames=241))),
        "too big": until(f"{PANELS}.find((text) => /Too big/.test(text))"),
        "picture": picture(screenshots / "too_big.png"),
        "offers": evaluate("[...document.querySelectorAll('.piying-fitting')].map((button) => button.innerText)"),
        "use": click(".piying-fitting", "×"),
        "then": until(f"{PANELS}.find((text) => /On the CPU/.test(text))"),
        "values": evaluate(WIDGETS),
        "wired": opened("inpaint"),
        "before": until(f"{PANELS}.find((text) => /known when it runs/.test(text))"),
        "run": {"do": "run"},
        "after": until(f"{PANELS}.find((text) => /Took/.test(text) && /GB RAM/.test(text))"),
    }
    return dict(zip(actions, drive(list(actions.values())).results, strict=True))


def test_what_would_fit_is_a_button(judged):
    assert "0.0 of 0.0" not in judged["too big"]
    assert "GB RAM" in judged["too big"]
    assert [("frames" in offer, "×" in offer) for offer in judged["offers"]] == [(True, False), (False, True)]
    width, height, frames = judged["values"]
    assert f"{width}×{height}" in judged["offers"][1]
    assert (width < 2048, frames) == (True, 241)


def test_the_models_settings_are_one_click_away(drive, screenshots):
    """A toy at a real size is warned of with the time; the button brings it back to what it was trained on."""
    actions = {
        "graph": opened("t2v"),
        **dict(enumerate(set_widgets("PiyingVACESample", width=832, height=480, steps=50))),
        "warned": until(f"{PANELS}.find((text) => /Caution/.test(text) && /832×480/.test(text))"),
        "picture": picture(screenshots / "caution.png"),
        "use": click(".piying-trained"),
        "then": until(f"{PANELS}.find((text) => /On the CPU/.test(text) && !/Caution/.test(text))"),
        "values": evaluate(WIDGETS),
    }
    found = dict(zip(actions, drive(list(actions.values())).results, strict=True))
    assert "832×480 is far above what the built-in toy model was trained on (96×64, 17 frames)" in found["warned"]
    assert re.search(r"The run takes about [\d.]+ (s|min|h)\.", found["warned"])
    assert found["values"] == [96, 64, 17]
    assert "Toy model" in found["then"]
    assert "Use the model's settings" not in found["then"], "nothing is left to change"


def test_sizes_over_wires_are_not_planned_at_the_defaults(judged):
    assert "Not known yet" in judged["before"]
    assert "GB" not in judged["before"]
    assert "On the CPU" in judged["after"]


MANY = """(() => {
  const { app, LiteGraph } = window, fetchApi = app.api.fetchApi;
  window.asked = 0;
  app.api.fetchApi = function (route, ...rest) {
    if (/piying\\/plan/.test(route)) window.asked += 1;
    return fetchApi.call(this, route, ...rest);
  };
  const loader = window.drive.find("PiyingLoadWanVACE");
  for (let index = 0; index < 100; index += 1) {
    const node = LiteGraph.createNode("PiyingVACESample");
    app.graph.add(node);
    node.pos = [2000 + 450 * (index % 10), 700 * Math.floor(index / 10)];
    loader.connect(0, node, node.inputs.findIndex((input) => input.name === "model"));
  }
})()"""


def test_many_new_samplers_make_few_requests(drive):
    told = f"{PANELS}.filter((text) => /far above/.test(text)).length >= 100 && window.asked"
    asked = drive([opened("t2v"), evaluate(MANY), until(told)]).results[-1]
    assert asked <= 3


DIALOG = "document.querySelector('.piying-dialog')"
OUTSIDE = f"""(() => {{
  const box = {DIALOG}.getBoundingClientRect();
  const at = {{ bubbles: true, clientX: box.left - 20, clientY: box.top - 20 }};
  {DIALOG}.dispatchEvent(new MouseEvent("click", at));
}})()"""


@pytest.mark.parametrize("leave", [{"do": "press", "key": "Escape"}, evaluate(OUTSIDE)], ids=["escape", "backdrop"])
def test_a_dialog_is_left_by_escape_and_by_a_click_beside_it(drive, leave):
    opening = [opened("t2v"), until(PLAN), click(".piying-panel button", "Plan"), until(f"Boolean({DIALOG})")]
    within = evaluate(f"{DIALOG}.querySelector('pre').click()")
    *_, still, _, gone = drive([*opening, within, until(f"Boolean({DIALOG})"), leave, until(f"!{DIALOG}")]).results
    assert (still, gone) == (True, True)


ADVANCED = """(() => {
  const node = window.drive.find("PiyingVACESample");
  const shown = node.widgets.filter((widget) => node.isWidgetVisible(widget)).map((widget) => widget.name);
  return { shown, height: node.computeSize()[1] };
})()"""


def test_rare_widgets_are_shown_when_asked_for_and_where_a_file_sets_them(drive):
    if drive([evaluate(NODES_2)]).results[0]:
        pytest.skip("Nodes 2.0 has a button of its own for them")
    shipped = json.loads((WORKFLOWS / "t2v.json").read_text(encoding="utf-8"))
    changed = json.loads(json.dumps(shipped))
    sampler = next(node for node in changed["nodes"] if node["type"] == "PiyingVACESample")
    sampler["widgets_values"][12] = 0.8  # cfg_end
    actions = [
        *({"do": "load_graph", "workflow": shipped}, until(PLAN), evaluate(ADVANCED)),
        *(click(".piying-panel button", "More"), evaluate(ADVANCED)),
        *({"do": "load_graph", "workflow": changed}, evaluate(ADVANCED)),
    ]
    results = drive(actions).results
    few, more, set_by_file = results[2], results[4], results[6]
    assert "speed" in few["shown"] and "cfg_end" not in few["shown"]
    assert more["shown"] == set_by_file["shown"]
    assert {"cfg_end", "attention"} <= set(more["shown"])
    assert more["height"] > few["height"] + 100, "the widgets that are not shown take no room"


def test_a_mask_of_nothing_is_told_on_its_node_with_what_was_found(drive, screenshots):
    """Before the node behind it says that the mask is black."""
    actions = [
        opened("inpaint"),
        *set_widgets("PiyingSegment", names="square"),
        {"do": "run"},
        until(f"{PANELS}.find((text) => /Nothing named/.test(text))"),
    ]
    told = drive(actions).results[-1]
    assert re.search(
        r"Nothing named square was found in 17 frames\. Found: background [\d.]+ %, circle [\d.]+ %\.", told
    )


# Between what is in a panel and the panel's end.
EMPTY = """(() => {
  const panel = window.drive.find("PiyingVACESample").widgets.find(({ name }) => name === "piying").element;
  const ends = [...panel.children].map((part) => part.getBoundingClientRect().bottom);
  return (panel.getBoundingClientRect().bottom - Math.max(...ends)) / window.app.canvas.ds.scale;
})()"""


def test_room_that_a_node_has_to_spare_is_for_its_prompts(drive):
    taller = evaluate("window.drive.find('PiyingVACESample').setSize([420, 1200])")
    *_, empty = drive([opened("t2v"), until(PLAN), taller, {"do": "pause", "seconds": 1}, evaluate(EMPTY)]).results
    assert empty < 60


MEMORY_PLAN = """(() => {
  const { app, LiteGraph } = window;
  const node = LiteGraph.createNode("PiyingMemoryPlan");
  app.graph.add(node);
  window.drive.find("PiyingLoadWanVACE").connect(0, node, node.inputs.findIndex((one) => one.name === "wan_vace"));
})()"""
TABLE = """(() => {
  const box = document.querySelector(".piying-plan");
  if (!box) return null;
  const style = getComputedStyle(box);
  return { font: style.fontFamily, height: box.clientHeight, lines: box.innerText.split("\\n").length };
})()"""


def test_a_memory_plan_is_a_table_with_room_of_its_own(drive, screenshots):
    actions = [
        *(opened("t2v"), evaluate(MEMORY_PLAN), *set_widgets("PiyingVACESample", steps=1), {"do": "run"}),
        *(until(TABLE), picture(screenshots / "memory_plan.png")),
    ]
    found = drive(actions).results[-2]
    assert "monospace" in found["font"]
    assert found["lines"] > 6
    assert found["height"] > 140


def test_samplers_and_loaders_of_every_family_have_a_panel(drive):
    buttons = (evaluate(f"{BUTTONS}({json.dumps(name)})") for name in [*SAMPLERS, *LOADERS])
    _, nodes_2, *shown = drive([opened("t2v"), evaluate(NODES_2), *buttons]).results
    with_more = set() if nodes_2 else WITH_MORE
    assert dict(zip([*SAMPLERS, *LOADERS], shown, strict=True)) == {
        **{name: ["piying-verdict", *(["More…"] if name in with_more else [])] for name in SAMPLERS},
        **{name: ["Models…"] for name in LOADERS},
    }


@pytest.fixture(scope="module")
def fetched(drive, hub, comfyui, screenshots):
    """A model fetched by its button; the hub stalls once, so that the bar can be seen."""
    for revision in ("main", "c0ffee"):
        for file in TOY.iterdir():  # a model without weights would not be offered
            hub.put(f"{REPO}/{revision}/{file.name}", file.read_bytes())
        hub.put(f"{REPO}/{revision}/vocab.txt", b"x" * 4_000_000, stalls=[2_000_000])
    actions = {
        "graph": opened("t2v"),
        "open": click(".piying-panel button", "Models"),
        "card": until(f'document.querySelector("{CARD}")?.innerText'),
        "press": click(f"{CARD} button", "Download"),
        "bar": until(BAR),
        "picture": picture(screenshots / "fetch.png"),
        "end": until(f'document.querySelector("{CARD} .piying-status")?.innerText'),
        "close": click(".piying-dialog header button"),
        "offered": until(f"{OFFERED}.find((name) => /Qwen3/i.test(name))"),
    }
    before = len(hub.asked)
    yield {"asked before": before, **dict(zip(actions, drive(list(actions.values())).results, strict=True))}
    # It is a toy: other tests must not find it installed.
    shutil.rmtree(comfyui.base / "models/LLM")


def test_a_model_is_fetched_by_its_button_under_a_bar(fetched, comfyui):
    assert 0 < fetched["bar"]["share"] < 100
    assert "Downloaded" in fetched["end"]
    assert (comfyui.base / "models/LLM/Qwen3-0.6B/vocab.txt").stat().st_size == 4_000_000
    assert fetched["offered"]


def test_nothing_is_fetched_without_a_click(fetched):
    assert fetched["asked before"] == 0


def saved_by_an_older_version(workflow, order):
    """A sampler with the widgets of `order` alone, in that order, as an older definition would have had them."""
    node = next(node for node in workflow["nodes"] if node["type"] == "PiyingVACESample")
    names = [entry["widget"]["name"] for entry in node["inputs"] if "widget" in entry]
    with_control = [part for name in names for part in ([name, "control"] if name == "seed" else [name])]
    values = dict(zip(with_control, node["widgets_values"], strict=True))
    sockets = [entry for entry in node["inputs"] if "widget" not in entry]
    by_name = {entry["name"]: entry for entry in node["inputs"]}
    node["inputs"] = sockets + [by_name[name] for name in order]
    node["widgets_values"] = [
        part for name in order for part in ([values[name], values["control"]] if name == "seed" else [values[name]])
    ]
    slots = {entry["name"]: index for index, entry in enumerate(node["inputs"])}
    for link in workflow["links"]:
        if link[3] == node["id"]:
            link[4] = next(slots[entry["name"]] for entry in node["inputs"] if entry.get("link") == link[0])
    return workflow


@pytest.mark.parametrize(
    "order",
    [
        ["prompt", "negative_prompt", "width", "height", "num_frames", "steps", "cfg", "shift", "seed"],
        ["seed", "steps", "cfg", "prompt", "negative_prompt", "height", "width", "num_frames"],
    ],
    ids=["fewer", "other order"],
)
def test_a_workflow_of_an_older_version_opens_with_nothing_lost(drive, order):
    shipped = json.loads((WORKFLOWS / "t2v.json").read_text(encoding="utf-8"))
    older = saved_by_an_older_version(json.loads(json.dumps(shipped)), order)
    actions = [
        opened("t2v"),
        {"do": "graph_to_prompt"},
        {"do": "load_graph", "workflow": older},
        {"do": "graph_to_prompt"},
    ]
    _, now, _, before = drive(actions).results
    assert before["output"] == now["output"]


def test_the_panel_leaves_no_trace_in_a_workflow(drive):
    workflow = json.loads((WORKFLOWS / "t2v.json").read_text(encoding="utf-8"))
    actions = [{"do": "load_graph", "workflow": workflow}, {"do": "serialize"}]
    after = {node["id"]: node.get("widgets_values") for node in drive(actions).results[-1]["nodes"]}
    for node in workflow["nodes"]:
        assert after[node["id"]] == node.get("widgets_values"), node["type"]
