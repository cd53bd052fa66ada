"""A person opens a shipped workflow, presses Run, adds a Save Image, runs again and looks at the result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from piying.runner.definitions import declared_inputs
from piying.tests.browser.tools import Outcome
from piying.tests.comfyui.convert import WORKFLOWS, api_form, headless_info
from piying.tests.comfyui.headless import (
    assert_same_frames,
    read_frames,
    run_headless,
    sampler_id,
    with_frames_saved,
)

pytestmark = pytest.mark.browser

SAVERS = {"t2v": "SaveVideo", "t2i": "SaveImage"}


@dataclass(frozen=True)
class Visit:
    """One visit to the frontend with one workflow: what each action gave, by a name of its own."""

    name: str
    workflow: Path
    outcome: Outcome
    answers: dict[str, Any]


@pytest.fixture(scope="module", params=sorted(SAVERS))
def visit(request, drive, screenshots) -> Visit:
    name = request.param
    workflow = WORKFLOWS / f"{name}.json"
    sampler = sampler_id(api_form(workflow))
    shown = screenshots / f"{name}.png"
    script = {
        "opened": {"do": "load_graph", "file": str(workflow)},
        "prompt": {"do": "graph_to_prompt"},
        "run": {"do": "run"},
        "media": {"do": "media", "node": SAVERS[name]},
        "picture": {"do": "screenshot", "file": str(shown)},
        **_save_frames(sampler, name),
        "second_run": {"do": "run"},
    }
    outcome = drive(list(script.values()))
    return Visit(name, workflow, outcome, dict(zip(script, outcome.results, strict=True)))


def _save_frames(sampler: str, name: str) -> dict[str, Any]:
    prefix = {"filename_prefix": f"browser/{name}"}
    place = [60, 900]
    return {
        "saver": {"do": "add_node", "id": "frames", "class": "SaveImage", "pos": place, "widgets": prefix},
        "link": {"do": "link", "from": sampler, "output": 0, "to": "frames", "input": "images"},
    }


def test_opens_without_missing_nodes(visit):
    assert visit.answers["opened"]["unknown"] == []


def test_console_has_no_errors_of_ours(visit):
    bad = [said for said in visit.outcome.console if said["type"] in ("error", "pageerror")]
    assert [said for said in bad if "piying" in json.dumps(said).lower()] == []


def test_exported_graph_equals_the_runners_conversion(visit):
    info = headless_info()
    exported = visit.answers["prompt"]["output"]
    assert _what_runs(exported, info) == _what_runs(api_form(visit.workflow), info)


def _what_runs(prompt, info):
    """Classes and inputs: titles are translated, and Preview Any exports the text it shows as an input."""
    return {key: (node["class_type"], _declared(node, info)) for key, node in prompt.items()}


def _declared(node, info):
    names = declared_inputs(info[node["class_type"]])
    return {name: value for name, value in node["inputs"].items() if name in names}


def test_run_button_runs_it(visit):
    run = visit.answers["run"]
    assert run["by"] == "button"
    assert run["body"]["node_errors"] == {}
    assert run["end"]["type"] == "execution_success"


def test_progress_reaches_the_page(visit):
    prompt = visit.answers["prompt"]["output"]
    steps = prompt[sampler_id(prompt)]["inputs"]["steps"]
    seen = [event["value"] for event in visit.outcome.of_type("progress") if event["max"] == steps]
    assert seen[-1] == steps
    assert seen == sorted(seen)
    assert visit.outcome.of_type("progress_state")


def test_result_is_shown_in_the_node(visit):
    kind = {"t2v": "video", "t2i": "img"}[visit.name]
    shown = [media for media in visit.answers["media"] if media["kind"] == kind]
    prompt = visit.answers["prompt"]["output"]
    assert shown[0]["loaded"]
    assert shown[0]["width"] == prompt[sampler_id(prompt)]["inputs"]["width"]


def test_frames_equal_the_headless_run(visit, comfyui, tmp_path):
    prompt = with_frames_saved(visit.answers["prompt"]["output"], f"browser/{visit.name}")
    headless = run_headless(prompt, tmp_path) / "browser"
    ours = read_frames(comfyui.output_dir / "browser", visit.name)
    assert visit.answers["second_run"]["end"]["type"] == "execution_success"
    assert_same_frames(ours, read_frames(headless, visit.name))


def test_picture_saved_from_the_browser_runs_headless(visit, comfyui, tmp_path):
    saved = sorted((comfyui.output_dir / "browser").glob(f"{visit.name}_*.png"))
    again = run_headless(saved[0], tmp_path) / "browser"
    assert_same_frames(read_frames(saved[0].parent, visit.name), read_frames(again, visit.name))
