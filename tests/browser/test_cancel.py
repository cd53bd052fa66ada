"""The frontend's cancel button stops a run."""

from __future__ import annotations

import pytest
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.headless import LONG_RUNS, sampler_id

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("name", ["t2v", "t2i"])
def test_cancel_button_stops_the_run(drive, comfyui, name):
    workflow = WORKFLOWS / f"{name}.json"
    sampler = sampler_id(api_form(workflow))
    long = LONG_RUNS[name]
    actions = [
        {"do": "load_graph", "file": str(workflow)},
        *({"do": "set_widget", "node": sampler, "name": key, "value": value} for key, value in long.items()),
        {"do": "run", "wait": False},
        {"do": "wait_event", "type": "progress", "max": long["steps"]},
        {"do": "interrupt"},
    ]
    outcome = drive(actions)
    cancelled = outcome.results[-1]
    assert cancelled["by"] == "button"
    assert cancelled["end"]["type"] == "execution_interrupted"
    assert cancelled["end"]["detail"]["node_id"] == sampler
    entry = comfyui.wait(outcome.results[-3]["body"]["prompt_id"])
    assert entry["status"]["completed"] is False
