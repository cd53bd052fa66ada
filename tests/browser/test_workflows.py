"""Every shipped workflow: a person opens it, presses Run and looks at the result. Few steps are made of each."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from piying.core.media.images import read_image
from piying.core.media.video import load_frames, probe
from piying.runner.definitions import declared_inputs
from piying.tests.browser.page import evaluate, opened, picture, until
from piying.tests.browser.tools import Outcome
from piying.tests.comfyui.convert import WORKFLOWS, api_form, headless_info
from piying.tests.comfyui.headless import assert_same_frames, read_frames, run_headless, sampler_id

pytestmark = pytest.mark.browser

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
UPDATE = bool(os.environ.get("PIYING_UPDATE_WORKFLOWS"))
# Those in subgraphs too, whose panels are not on the page.
SAMPLER_PANELS = """window.drive.ofClass(/^Piying(VACESample|VACELongVideo|WanSample|HunyuanDiT)$/)
  .map((node) => node.widgets.find((widget) => widget.name === "piying").element.textContent)"""
PLANNED = f"{SAMPLER_PANELS}.every((text) => /GB|known when it runs/.test(text))"
# What is read on the page. Frontends show a text that comes in parts, and some take it away at the end of the run.
TEXTS = """window.drive.ofClass(/^PiyingExpandPrompt$/).map((node) => (
  node.widgets.find((widget) => widget.name === "$$node-text-preview")?.value
    ?? node.widgets.find((widget) => widget.name === "piying").element.querySelector(".piying-text")?.innerText
))"""
TEXTS_SHOWN = f"((texts) => texts.every(Boolean) && texts)({TEXTS})"
# Nodes 2.0 are elements of the page, of a height of their own; there are none otherwise.
DRAWN = """window.app.graph._nodes.flatMap((node) => {
  const box = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
  return box ? [[`${node.id} ${node.type}`, [box.left, box.top, box.right, box.bottom]]] : [];
})"""
# Nodes 2.0 has them in the node's own element.
PICTURES = """window.drive.ofClass(/^PreviewImage$/).every((node) => {
  const images = node.imgs ?? [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)];
  return images.length && images.every((image) => image.naturalWidth);
})"""
# The page draws, and so loads, what is in view.
ALL_IN_VIEW = "window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"
# Enough that something is drawn, of which the chain finds the shape, and more than any other phase has.
# A subgraph has the widget on its face too.
STEPS = 10
FEWER = f"""(function fewer(nodes) {{
  for (const node of nodes) {{
    const widget = node.widgets?.find(({{ name }}) => name === "steps");
    if (widget) widget.value = Math.min(widget.value, {STEPS});
    if (node.subgraph) fewer(node.subgraph._nodes);
  }}
}})(window.app.graph._nodes)"""
PER_PAGE = 4  # workflows that are run in one page, one after the other
AS_SAVED = "void Object.assign(window.app.canvas.ds, %s)"


@dataclass(frozen=True)
class Visit:
    """What came of one workflow: each action's answer by a name of its own, events and console."""

    name: str
    shipped: dict[str, Any]
    outcome: Outcome
    answers: dict[str, Any]

    @property
    def prompt(self) -> dict[str, Any]:
        return dict(self.answers["prompt"]["output"])

    @property
    def ran(self) -> dict[str, Any]:
        return dict(self.answers["ran"]["output"])

    @property
    def saver(self) -> dict[str, Any]:
        (found,) = [node for node in self.prompt.values() if node["class_type"].startswith("Save")]
        return dict(found)


@pytest.fixture(scope="module")
def visits(request, drive, screenshots) -> dict[str, Visit]:
    """Those that the chosen tests are about."""
    chosen = {item.callspec.params.get("visit") for item in request.session.items if hasattr(item, "callspec")}
    scripts = {name: script(name, screenshots) for name in NAMES if name in chosen | {"t2i"}}
    attempts = [{"do": "attempt", "actions": list(actions.values())} for actions in scripts.values()]
    parts = [attempts[start : start + PER_PAGE] for start in range(0, len(attempts), PER_PAGE)]
    found = [outcome for part in parts for outcome in drive(part).results]
    return {
        name: Visit(name, read(name), Outcome(**outcome), dict(zip(actions, outcome["results"], strict=False)))
        for (name, actions), outcome in zip(scripts.items(), found, strict=True)
    }


@pytest.fixture(params=NAMES)
def visit(request, visits) -> Visit:
    found = visits[request.param]
    assert found.outcome.error is None
    return found


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def script(name: str, screenshots: Path) -> dict[str, dict[str, Any]]:
    return {
        "opened": opened(name),
        "planned": until(PLANNED),
        "drawn": evaluate(DRAWN),
        "saved": {"do": "serialize"},
        "prompt": {"do": "graph_to_prompt"},
        "fewer steps": evaluate(FEWER),
        "ran": {"do": "graph_to_prompt"},
        "run": {"do": "run", "timeout_s": 400},
        "all in view": evaluate(ALL_IN_VIEW),
        "media": {"do": "media", "node": saver(name), "timeout_s": 60},
        "texts": until(TEXTS_SHOWN),
        "pictures": until(PICTURES),
        "panels": evaluate(SAMPLER_PANELS),
        "drawn after": evaluate(DRAWN),
        "saved after": {"do": "serialize"},
        "as saved": evaluate(AS_SAVED % json.dumps(read(name)["extra"]["ds"])),
        "picture": picture(screenshots / f"{name}.png"),
    }


def saver(name: str) -> str:
    (found,) = [str(node["id"]) for node in read(name)["nodes"] if node["type"].startswith("Save")]
    return found


def test_opens_without_missing_nodes(visit):
    assert visit.answers["opened"]["unknown"] == []


def test_the_file_is_what_the_frontend_saves(visit):
    """PIYING_UPDATE_WORKFLOWS=1 writes the files anew, as after Save in the page."""
    saved = {**visit.answers["saved"], "extra": visit.shipped["extra"]}
    if UPDATE:
        text = json.dumps(saved, ensure_ascii=False, indent=2) + "\n"
        (WORKFLOWS / f"{visit.name}.json").write_text(text, encoding="utf-8")
    left_out = renumbered(saved) | ({"size"} if visit.answers["drawn"] else set())
    assert shared(saved, left_out)["nodes"] == shared(visit.shipped, left_out)["nodes"]
    assert shared(saved, left_out) == shared(visit.shipped, left_out)


def renumbered(saved):
    """What frontend 1.58 writes in another way: it numbers links in subgraphs anew. It alone saves values by name."""
    is_newer = any("widgets_values_named" in node for node in saved["nodes"])
    return {"definitions", "last_link_id", "properties"} if is_newer and "definitions" in saved else set()


def shared(workflow, left_out):
    """What frontends have in common: 1.58 saves values by name too, no empty list of them, and no size of a title.

    Nodes 2.0 have heights of their own.
    """

    def common(part, **kept):
        kept = {**dict.fromkeys(left_out, lambda _: False), **kept}
        return {key: value for key, value in part.items() if kept.get(key, lambda _: True)(value)}

    nodes = [common(node, widgets_values_named=lambda _: False, widgets_values=bool) for node in workflow["nodes"]]
    groups = [common(group, font_size=lambda _: False) for group in workflow["groups"]]
    return {**common(workflow), "nodes": nodes, "groups": groups}


@pytest.mark.parametrize("when", ["", " after"], ids=["opened", "after a run"])
def test_nothing_lies_over_anything_else(visit, when):
    """Titles are 30 pixels high and stand above a node's place."""
    boxes = dict(visit.answers[f"drawn{when}"]) or {
        f"{node['id']} {node['type']}": (x, y - 30, x + node["size"][0], y + node["size"][1])
        for node in visit.answers[f"saved{when}"]["nodes"]
        for x, y in [node["pos"]]
    }
    pairs = [(a, b) for a in boxes for b in boxes if a < b and overlap(boxes[a], boxes[b])]
    assert pairs == []


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_exported_graph_equals_the_runners_conversion(visit):
    info = headless_info()
    assert what_runs(visit.prompt, info) == what_runs(api_form(WORKFLOWS / f"{visit.name}.json"), info)


def what_runs(prompt, info):
    """Classes and inputs: titles are translated, and Preview Any exports the text it shows as an input."""
    return {key: (node["class_type"], declared(node, info)) for key, node in prompt.items()}


def declared(node, info):
    names = declared_inputs(info[node["class_type"]])
    return {name: value for name, value in node["inputs"].items() if name in names}


def test_run_button_runs_it(visit):
    run = visit.answers["run"]
    assert run["by"] == "button"
    assert run["body"]["node_errors"] == {}
    assert run["end"]["type"] == "execution_success"


def test_progress_reaches_the_page(visit):
    sampler = sampler_id(visit.prompt)
    steps = visit.ran[sampler]["inputs"]["steps"]
    assert steps <= STEPS
    told = [event for event in visit.outcome.of_type("progress") if event["node"] == sampler]
    seen = [event["value"] for event in told if event["max"] >= steps]
    assert seen == sorted(seen)
    assert seen[-1] >= steps


def test_result_is_shown_in_the_node(visit, comfyui):
    kind = "img" if visit.saver["class_type"] == "SaveImage" else "video"
    shown = next(media for media in visit.answers["media"] if media["kind"] == kind)
    assert shown["loaded"]
    prefix = visit.saver["inputs"]["filename_prefix"]
    (file,) = comfyui.output_dir.glob(f"{prefix}_*.*")
    frames = read_image(file)[0] if kind == "img" else load_frames(file, probe(file))
    assert shown["width"] == frames.shape[2]
    assert frames.std() > 0.02, "one flat colour: nothing was drawn"


def test_what_is_made_on_the_way_is_shown(visit):
    assert all(visit.answers["texts"])
    assert visit.answers["pictures"]


def test_panel_says_how_long_it_took(visit):
    took = [text for text in visit.answers["panels"] if "Took" in text]
    samplers = [node for node in visit.prompt.values() if "steps" in node["inputs"]]
    assert len(took) == len(samplers) > 0


def test_picture_saved_from_the_browser_runs_headless(visits, comfyui, tmp_path):
    assert visits["t2i"].outcome.error is None
    (saved,) = comfyui.output_dir.glob("piying_t2i_*.png")
    again = run_headless(saved, tmp_path)
    assert_same_frames(read_frames(saved.parent, "piying_t2i"), read_frames(again, "piying_t2i"))
