"""Wrong values and cancelling, seen through ComfyUI's HTTP interface."""

from __future__ import annotations

import pytest
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.events import EventStream, has_ended
from piying.tests.comfyui.headless import LONG_RUNS, sampler_id, without_previews
from piying.tests.comfyui.server import request_json

pytestmark = pytest.mark.comfyui


def test_wrong_frame_count_is_refused_in_a_sentence(comfyui):
    prompt = without_previews(api_form(WORKFLOWS / "t2v.json"))
    sampler = sampler_id(prompt)
    prompt[sampler]["inputs"]["num_frames"] = 10
    status, body = comfyui.post(prompt)
    assert status == 400
    error = error_of(body, sampler, "num_frames")
    assert error["type"] == "custom_validation_failed"
    assert "num_frames is 10" in error["details"]
    assert "9 or 13" in error["details"]


def test_untrained_size_is_refused_in_a_sentence(comfyui):
    prompt = without_previews(api_form(WORKFLOWS / "t2i.json"))
    sampler = sampler_id(prompt)
    prompt[sampler]["inputs"].update(width=2048, height=64)
    status, body = comfyui.post(prompt)
    assert status == 400
    assert "2048×64" in error_of(body, sampler, "width")["details"]


def error_of(body, node_id, name):
    """ComfyUI repeats a node's sentence for each input that the node's check looks at."""
    errors = body["node_errors"][node_id]["errors"]
    return next(error for error in errors if error["extra_info"]["input_name"] == name)


@pytest.mark.parametrize("name", ["t2v", "t2i"])
def test_interrupt_stops_within_a_step(comfyui, name):
    prompt = api_form(WORKFLOWS / f"{name}.json")
    prompt[sampler_id(prompt)]["inputs"].update(**LONG_RUNS[name], seed=7)
    with EventStream(comfyui.url, f"cancels-{name}") as events:
        prompt_id = comfyui.post(prompt, client_id=f"cancels-{name}")[1]["prompt_id"]
        events.until(lambda message: is_second_step(message, LONG_RUNS[name]["steps"]))
        comfyui.interrupt()
        after = events.until(has_ended)
    steps = [message for message in after if message["type"] == "progress"]
    assert after[-1]["type"] == "execution_interrupted"
    # The step in progress, and one that was reported before the request arrived.
    assert len(steps) <= 2
    assert_interrupted(comfyui.wait(prompt_id)["status"])


def is_second_step(message, steps):
    """Other phases of the node report progress too, of other lengths."""
    data = message["data"]
    return message["type"] == "progress" and (data["max"], data["value"]) == (steps, 2)


def assert_interrupted(status):
    assert status["status_str"] == "error"
    assert status["completed"] is False
    assert "execution_interrupted" in [message for message, _ in status["messages"]]


def test_next_run_after_an_interrupt_is_whole(comfyui):
    prompt = api_form(WORKFLOWS / "t2v.json")
    prompt[sampler_id(prompt)]["inputs"].update(steps=2, seed=8)
    assert comfyui.run(prompt)["status"]["status_str"] == "success"
    assert request_json(f"{comfyui.url}/queue")[1] == {"queue_running": [], "queue_pending": []}
