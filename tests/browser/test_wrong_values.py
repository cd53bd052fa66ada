"""A wrong value: its node says at once what to change, and Run refuses it before anything runs."""

from __future__ import annotations

import pytest
from piying.tests.browser.page import PANELS, evaluate, opened, picture, until

pytestmark = pytest.mark.browser

# As a file of another program may hold it: typed into the widget it would be rounded to its steps.
WRONG = "window.drive.find('PiyingVACESample').widgets.find((w) => w.name === 'num_frames').value = 10"
SENTENCE = "num_frames is 10"
SHOWN = f"{PANELS}.find((text) => text.includes({SENTENCE!r}))"
MARKED = "[String(window.drive.find('PiyingVACESample').id), Object.keys(window.app.lastNodeErrors ?? {})]"


@pytest.fixture(scope="module")
def refused(drive, screenshots):
    actions = {
        "graph": opened("reference"),
        "wrong": evaluate(WRONG),
        "shown": until(SHOWN),
        "before": picture(screenshots / "before_run.png"),
        # Frontend 1.21 tells in a dialog, over the page, of models that the file names and that are not there.
        "told": {"do": "press", "key": "Escape"},
        "run": {"do": "run"},
        "marked": evaluate(MARKED),
        "sentence": picture(screenshots / "wrong_value.png"),
        "close": {"do": "press", "key": "Escape"},
        "picture": picture(screenshots / "marked.png"),
    }
    return dict(zip(actions, drive(list(actions.values())).results, strict=True))


def test_the_node_says_what_is_allowed_before_a_run(refused):
    assert "9 or 13" in refused["shown"]


def test_run_is_refused_with_the_same_sentence(refused):
    sampler, _ = refused["marked"]
    errors = refused["run"]["body"]["node_errors"][sampler]["errors"]
    assert any(SENTENCE in error["details"] and "9 or 13" in error["details"] for error in errors)


def test_the_node_is_marked(refused, screenshots):
    sampler, told = refused["marked"]
    assert told == [sampler]
    assert reds(screenshots / "marked.png") > reds(screenshots / "before_run.png") + 200


def reds(file):
    """How many pixels are of the red that ComfyUI draws around a node with a mistake."""
    import numpy as np
    from PIL import Image

    red, green, blue = np.moveaxis(np.asarray(Image.open(file).convert("RGB")).astype(int), -1, 0)
    return int(((red > 100) & (green < 40) & (blue < 70)).sum())
