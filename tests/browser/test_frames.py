"""The frames of a run on its node: scrubbed, beside the video as it was, under the mask, all at once, and larger."""

from __future__ import annotations

import pytest
from piying.tests.browser.page import evaluate, opened, picture, until

pytestmark = pytest.mark.browser

LOOK = """window.drive.find("%s").widgets?.find(({ name }) => name === "piying")?.element
  .querySelector(".piying-look")"""
SAMPLER, INPAINT = LOOK % "PiyingVACESample", LOOK % "PiyingVACEInpaint"
# What is drawn: sums of colours left and right of the middle, which differ where the pictures do.
STATE = """(() => {
  const look = %s, canvas = look?.querySelector("canvas");
  if (!canvas || canvas.width < 2) return null;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const total = data.reduce((sum, value) => sum + value, 0) - 255 * (data.length / 4);
  const count = look.querySelector(".piying-small").innerText;
  return total > 0 && { size: [canvas.width, canvas.height], total, count, height: look.clientHeight };
})()"""
SCRUB = """(() => {
  const slider = %s.querySelector("input");
  slider.value = %d;
  slider.dispatchEvent(new Event("input"));
})()"""
POINT = """(() => {
  const canvas = %s.querySelector("canvas"), box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
  const at = (share, start, whole, side) => start + whole / 2 + (share - 0.5) * side * scale;
  const [clientX, clientY] = [at(%g, box.left, box.width, canvas.width), at(%g, box.top, box.height, canvas.height)];
  canvas.dispatchEvent(new PointerEvent("%s", { bubbles: true, clientX, clientY }));
})()"""
PRESS = "[...%s.querySelectorAll('button')].find((button) => button.innerText === '%s').click()"
LARGE = "document.querySelector('.piying-dialog .piying-look')"


@pytest.fixture(scope="module")
def looked(drive, screenshots):
    state = evaluate(STATE % SAMPLER)
    actions = {
        "graph": opened("inpaint"),
        "run": {"do": "run", "timeout_s": 400},
        "first": until(STATE % SAMPLER),
        "area": until(STATE % INPAINT),
        "picture": picture(screenshots / "frames.png", fit=True),
        "scrub": evaluate(SCRUB % (SAMPLER, 9)),
        "tenth": state,
        "to the right": evaluate(POINT % (SAMPLER, 1, 0.5, "pointermove")),
        "before": state,
        "to the left": evaluate(POINT % (SAMPLER, 0, 0.5, "pointermove")),
        "after": state,
        "mask": evaluate(PRESS % (SAMPLER, "Mask")),
        "masked": state,
        "sheet": evaluate(PRESS % (SAMPLER, "All frames")),
        "all": state,
        "all picture": picture(screenshots / "frames_all.png"),
        "pick": evaluate(POINT % (SAMPLER, 0.9, 0.1, "click")),
        "picked": state,
        "enlarge": evaluate(PRESS % (SAMPLER, "⤢")),
        "large": until(STATE % LARGE),
        "large picture": picture(screenshots / "frames_large.png"),
        "close": {"do": "press", "key": "Escape"},
    }
    return dict(zip(actions, drive(list(actions.values())).results, strict=True))


def test_frames_are_scrubbed(looked):
    assert (looked["first"]["count"], looked["tenth"]["count"]) == ("1/17", "10/17")
    assert looked["first"]["total"] != looked["tenth"]["total"]


def test_a_slider_compares_them_with_the_video_as_it_was(looked):
    before, half, after = (looked[name]["total"] for name in ("before", "tenth", "after"))
    assert len({before, half, after}) == 3
    assert looked["before"]["size"] == looked["after"]["size"]


def test_the_mask_is_drawn_over_them(looked):
    assert looked["masked"]["total"] != looked["after"]["total"]


def test_all_of_them_are_shown_at_once_and_one_is_picked(looked):
    (one, same), (width, height) = looked["first"]["size"], looked["all"]["size"]
    assert (one, width / height) == (same, 5 / 4), "seventeen squares in rows of five"
    assert looked["picked"]["count"] == "5/17"


def test_the_area_to_be_made_is_shown_over_the_video_on_the_node_that_sets_it(looked):
    assert looked["area"]["count"] == "1/17"


def test_they_are_shown_larger(looked):
    assert looked["large"]["height"] > 3 * looked["first"]["height"]
