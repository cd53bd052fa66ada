"""What cannot run: its node says what to change, before a run and after it, in the page's language."""

from __future__ import annotations

import pytest
from piying.tests.browser.page import PANELS, evaluate, opened, picture, set_widgets, until

pytestmark = pytest.mark.browser

# As a file of another program may hold it: typed into the widget it would be rounded to its steps.
WRONG = "window.drive.find('PiyingVACESample').widgets.find((w) => w.name === 'num_frames').value = 10"
SENTENCE = "num_frames is 10"
SHOWN = f"{PANELS}.find((text) => text.includes({SENTENCE!r}))"
# Frontend 1.27 opens a dialog; 1.58 shows a notice whose details are elsewhere.
DIALOG = "document.querySelector('[role=dialog]')?.innerText ?? ''"
# By its title, since each frontend builds its notices in its own way.
TOASTS = """[...document.querySelectorAll("body *")]
  .filter((one) => !one.children.length && one.textContent.trim() === "只运行了一部分")
  .map((title) => title.parentElement.parentElement.innerText)"""
OTHER_LENGTH = set_widgets("PiyingVACESample", size_from="widgets", num_frames=33)
ALL_OF_NODE = """((ref) => {
  const node = window.drive.find(ref);
  return node.widgets.find((widget) => widget.name === "piying")?.element.innerText ?? "";
})"""
NO_STEPS = "window.drive.find('Edit · 修改').widgets.find((widget) => widget.name === 'steps').value = 0"
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
        "dialog": evaluate(DIALOG),
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


def test_the_dialog_says_it_once_and_names_no_class(refused):
    dialog = refused["dialog"]
    if dialog:
        assert dialog.count(SENTENCE) == 1
        assert "PiyingVACESample" not in dialog


@pytest.fixture(scope="module")
def failed(drive, screenshots):
    """In Chinese: what fails as it runs, on a sampler and on a node without a panel; what is refused in part."""
    actions = {
        "chinese": {"do": "locale", "language": "zh"},
        "graph": opened("first_last_frame"),
        **dict(enumerate(OTHER_LENGTH)),
        "run": {"do": "run"},
        "shown": until(f"{ALL_OF_NODE}('PiyingVACESample').includes('17 帧') && {ALL_OF_NODE}('PiyingVACESample')"),
        "dialog": evaluate(DIALOG),
        "sentence": picture(screenshots / "failed_zh.png"),
        "close": {"do": "press", "key": "Escape"},
        "picture": picture(screenshots / "failed_node_zh.png"),
        "other graph": opened("inpaint"),
        "not known": until(f"{ALL_OF_NODE}('PiyingVACESample').match(/.*运行时才知道/)?.[0]"),
        "unknown name": set_widgets("PiyingSegment", names="dragon")[0],
        "second run": {"do": "run"},
        "bare": until(f"{ALL_OF_NODE}('PiyingSegment').includes('dragon') && {ALL_OF_NODE}('PiyingSegment')"),
        "close second": {"do": "press", "key": "Escape"},
        "bare picture": picture(screenshots / "failed_bare_zh.png"),
        "known name": set_widgets("PiyingSegment", names="circle")[0],
        "third run": {"do": "run"},
        "mended": evaluate(f"{ALL_OF_NODE}('PiyingSegment')"),
        "chain": opened("text_image_video_edit"),
        "wrong": evaluate(NO_STEPS),
        "partial run": {"do": "run", "wait": False},
        "toasts": until(f"{TOASTS}.join() && {TOASTS}"),
        "partial picture": picture(screenshots / "partial_zh.png"),
        "stop": {"do": "interrupt"},
        "english": {"do": "locale", "language": "en"},
    }
    return dict(zip(actions, drive(list(actions.values())).results, strict=True))


def test_what_fails_is_said_on_its_node_in_chinese(failed):
    assert failed["run"]["end"]["type"] == "execution_error"
    assert "VACE: Extend 的视频是 17 帧，VACE Sample 设为 33 帧" in failed["shown"]


def test_inputs_are_named_in_chinese_on_a_panel(failed):
    assert "宽度, 高度, 帧数" in failed["not known"]


def test_the_dialog_has_neither_module_names_nor_paths(failed):
    if failed["dialog"]:
        assert "17 帧" in failed["dialog"]
        assert "PiyingError" not in failed["dialog"]
        assert "/" not in failed["dialog"]


def test_a_node_without_a_panel_says_it_too_until_the_next_run(failed):
    assert "'dragon' 这个模型不认识" in failed["bare"]
    assert failed["third run"]["end"]["type"] == "execution_success"
    assert failed["mended"] == ""


def test_what_is_left_out_of_a_run_is_said(failed):
    assert failed["partial run"]["status"] == 200
    (toast,) = [text for text in failed["toasts"] if "只运行了一部分" in text]
    assert "步数 是 0。可用范围：1 到 1000。" in toast


def reds(file):
    """How many pixels are of the red that ComfyUI, Nodes 2.0 too, draws around a node with a mistake."""
    import numpy as np
    from PIL import Image

    red, green, blue = np.moveaxis(np.asarray(Image.open(file).convert("RGB")).astype(int), -1, 0)
    return int(((red > 100) & (green < 70) & (blue < 70)).sum())
