"""A run is watched on its node: phase, steps, a moving preview; and stopped within a step."""

from __future__ import annotations

import base64

import pytest
from piying.tests.browser.page import evaluate, opened, picture, set_widgets, until
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.headless import LONG_RUNS, sampler_id

pytestmark = pytest.mark.browser

MOTION = "document.querySelector('.piying-motion')"
# The first previews, of noise, may be of one colour: frames that are equal are one. An animated WebP has ANMF parts.
MOVES = f"""(() => {{
  const shown = {MOTION}?.naturalWidth > 0 ? {MOTION}.src : "";
  return atob(shown.split(",")[1] ?? "").split("ANMF").length > 2 && shown;
}})()"""
BARS = "[...document.querySelectorAll('.piying-bar')].map((bar) => bar.innerText)"
BAR = f"{BARS}.find((text) => /Sampling \\d/.test(text))"
LEFT = f"{BARS}.find((text) => / left/.test(text))"
# Large enough that a step takes longer than a message to the page.
SLOW = {"steps": 500, "width": 128, "height": 128, "num_frames": 17, "shift": 3.0}


def started(name, **widgets):
    sampler = sampler_id(api_form(WORKFLOWS / f"{name}.json"))
    return [opened(name), *set_widgets(sampler, **widgets), {"do": "run", "wait": False}]


@pytest.fixture(scope="module")
def watched(drive, screenshots):
    actions = [
        *started("t2v", **SLOW),
        until(BAR),
        until(LEFT),
        until(MOVES),
        picture(screenshots / "watched.png"),
        {"do": "interrupt"},
        evaluate("document.querySelectorAll('.piying-bar, .piying-motion').length"),
    ]
    outcome = drive(actions)
    names = ["bar", "left", "motion", "picture", "cancelled", "remains"]
    return dict(zip(names, outcome.results[-len(names) :], strict=True))


def test_the_phase_the_steps_and_the_time_left_are_told(watched):
    assert "/500" in watched["bar"]
    assert "left" in watched["left"]


def test_the_preview_moves(watched):
    from io import BytesIO

    from PIL import Image

    kind, _, data = watched["motion"].partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(BytesIO(base64.b64decode(data))) as image:
        assert image.n_frames > 1


def test_the_cancel_button_stops_it_within_a_step(watched):
    cancelled = watched["cancelled"]
    assert cancelled["by"] == "button"
    assert cancelled["end"]["type"] == "execution_interrupted"
    assert cancelled["steps_after"] <= 1
    assert watched["remains"] == 0


def test_previews_are_off_by_choice(drive):
    setting = "window.app.extensionManager.setting.set('Piying.MovingPreviews', %s)"
    actions = [
        evaluate(setting % "false"),
        *started("t2v", **SLOW),
        until(LEFT),
        evaluate(MOTION),
        {"do": "interrupt"},
        evaluate(setting % "true"),
    ]
    assert drive(actions).results[-3] is None


def test_an_image_is_cancelled_too(drive, comfyui):
    long = LONG_RUNS["t2i"]
    actions = [
        *started("t2i", **long),
        {"do": "wait_event", "type": "progress", "max": long["steps"]},
        {"do": "interrupt"},
    ]
    *_, run, _, cancelled = drive(actions).results
    assert cancelled["end"]["type"] == "execution_interrupted"
    assert comfyui.wait(run["body"]["prompt_id"])["status"]["completed"] is False
