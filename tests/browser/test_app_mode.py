"""App mode, which frontends have since 1.58: a shipped workflow shows its inputs there, and runs."""

from __future__ import annotations

import json

import pytest
from piying.tests.browser.page import evaluate, opened, picture, until
from piying.tests.comfyui.convert import WORKFLOWS

pytestmark = pytest.mark.browser

TOGGLE = "Comfy.ToggleLinear"
HAS_IT = f"window.app.extensionManager.command.commands.some((command) => command.id === '{TOGGLE}')"
LABELS = """(() => {
  const labels = [...document.querySelectorAll('[data-testid=builder-widget-label]')].map((label) => label.innerText);
  return labels.length === %d ? labels : null;
})()"""

SKIP_THE_TOUR = "[...document.querySelectorAll('button')].find((button) => button.innerText === 'Skip')?.click()"


@pytest.mark.parametrize("name", ["inpaint", "t2v"])
def test_the_chosen_inputs_are_shown(drive, screenshots, name):
    if not drive([evaluate(HAS_IT)]).results[0]:
        pytest.skip("this frontend has no App mode")
    chosen = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["extra"]["linearData"]["inputs"]
    shown = drive(
        [
            opened(name),
            evaluate(f"window.app.extensionManager.command.execute('{TOGGLE}')"),
            until(LABELS % len(chosen)),
            evaluate(SKIP_THE_TOUR),
            picture(screenshots / f"app_{name}.png"),
        ]
    ).results[2]
    assert shown == [widget for _, widget in chosen]
