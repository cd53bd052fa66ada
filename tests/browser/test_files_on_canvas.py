"""Files that the headless runner wrote give their workflow back when dropped on the canvas."""

from __future__ import annotations

import pytest
from piying.tests.comfyui.convert import WORKFLOWS
from piying.tests.comfyui.headless import run_headless

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("name", "ending"), [("t2v", "mp4"), ("t2i", "png")])
def test_dropped_file_restores_the_graph(drive, tmp_path, name, ending):
    workflow = WORKFLOWS / f"{name}.json"
    (saved, *_) = sorted(run_headless(workflow, tmp_path).rglob(f"*.{ending}"))
    actions = [
        {"do": "load_graph", "file": str(workflow)},
        {"do": "graph_to_prompt"},
        {"do": "drop_file", "file": str(saved)},
        {"do": "graph_to_prompt"},
    ]
    _, shipped, dropped, restored = drive(actions).results
    assert dropped["unknown"] == []
    assert restored["output"] == shipped["output"]
    assert _layout(restored["workflow"]) == _layout(shipped["workflow"])


def _layout(workflow):
    """What a person sees: every node's place, title and text, notes included."""
    return {
        node["id"]: (node["type"], node.get("title"), node["pos"], node.get("widgets_values"))
        for node in workflow["nodes"]
    }
