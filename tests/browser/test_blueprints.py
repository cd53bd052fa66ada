"""Subgraph blueprints in the page: found by name, placed as one node, wired to a saver and run."""

from __future__ import annotations

import json
import shutil

import pytest
from piying.core.media.video import load_frames, probe
from piying.tests.browser.page import evaluate, picture, set_widgets, until
from piying.tests.comfyui.convert import WORKFLOWS

pytestmark = pytest.mark.browser

FOLDER = WORKFLOWS.parent / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
FACE = """(() => {
  const [node] = window.drive.ofClass(/./);
  return { title: node.title, widgets: node.widgets.map((w) => w.name), outputs: node.outputs.map((o) => o.name) };
})()"""
WIDGET = "window.drive.find('Text to Video (Piying)').widgets.find((widget) => widget.name === 'piying')?.element"
QUICK = {
    "prompt": "a red circle moves right on a blue background",
    "width": 96,
    "height": 64,
    "num_frames": 9,
    "steps": 2,
}
# The plan of the sampler inside, and then what it took, on the node that is seen.
PANEL = f"(({WIDGET})?.innerText.includes('%s'))"
TO_VIDEO = "Text to Video (Piying)"
FIRST = 6  # hits that are on the screen before anyone scrolls
CHINESE = {"文生视频": TO_VIDEO, "图生视频": "Image to Video (Piying)", "扩图": "Outpaint Video (Piying)"}
# Frontend 1.27 searches a blueprint's name alone.
TAKES_ALIASES = "Number(window.__COMFYUI_FRONTEND_VERSION__.split('.')[1]) >= 58"


@pytest.fixture(scope="module")
def placed(drive, comfyui, screenshots):
    """What each blueprint is in a graph, and a run of one of them.

    A ComfyUI that serves packs' blueprints gives their files to the page as they are; this page takes them from the
    user's own blueprints, which every ComfyUI serves.
    """
    own = comfyui.base / "user/default/subgraphs"
    shutil.copytree(FOLDER, own)
    actions = [{"do": "search_nodes", "words": list(CHINESE)}, evaluate(TAKES_ALIASES)]
    for name in NAMES:
        actions += [{"do": "new_graph"}, {"do": "add_by_search", "word": name}, evaluate(FACE)]
    saver = {"do": "add_node", "id": "saver", "class": "SaveVideo", "pos": [1100, 300]}
    actions += [
        {"do": "new_graph"},
        {"do": "add_by_search", "word": TO_VIDEO},
        {**saver, "widgets": {"filename_prefix": "video/blueprint"}},
        {"do": "link", "from": TO_VIDEO, "output": "video", "to": "saver", "input": "video"},
        *set_widgets(TO_VIDEO, **QUICK),
        until(PANEL % "GB RAM"),
        picture(screenshots / "blueprint.png"),
        {"do": "run", "timeout_s": 400},
        until(PANEL % "Took"),
        picture(screenshots / "blueprint_run.png"),
    ]
    found, takes_aliases, *results = drive(actions).results
    shutil.rmtree(own)
    faces = dict(zip(NAMES, results[2 : 3 * len(NAMES) : 3], strict=True))
    return {"found": found, "takes aliases": takes_aliases, "faces": faces, "run": results[-3]}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_placed_as_one_node_with_its_widgets(placed, name):
    (node,) = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    face = placed["faces"][name]
    assert face["title"] == name
    shown = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    assert [widget for widget in face["widgets"] if widget in shown] == shown
    assert face["outputs"] == ["video", "frames"]


def test_chinese_words_find_them(placed):
    if not placed["takes aliases"]:
        pytest.skip("this frontend searches names alone")
    missed = [
        word for word, name in CHINESE.items() if not any(name in text for text in placed["found"][word][:FIRST])
    ]
    assert missed == []


def test_it_runs_with_the_values_on_its_face(placed, comfyui):
    run = placed["run"]
    assert run["body"]["node_errors"] == {}
    assert run["end"]["type"] == "execution_success"
    (made,) = (comfyui.output_dir / "video").glob("blueprint_*")
    assert load_frames(made, probe(made)).shape[:3] == (9, 64, 96)
