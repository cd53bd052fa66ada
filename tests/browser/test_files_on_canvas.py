"""Every kind of file that either host writes gives its workflow back when it is dropped on the canvas."""

from __future__ import annotations

import pytest
from piying.tests.browser.page import opened, set_widgets
from piying.tests.comfyui.headless import run_headless

pytestmark = pytest.mark.browser

KINDS = ("mp4", "webm", "webp", "png")
SAVERS = {"SaveWEBM": "webm", "SaveAnimatedWEBP": "webp", "SaveImage": "png"}
PREFIX = "dropped/file"


def with_savers():
    """The t2v workflow with a saver of each kind beside its own, and few steps."""
    yield opened("t2v")
    yield from set_widgets("PiyingVACESample", steps=2)
    yield from set_widgets("SaveVideo", filename_prefix=PREFIX)
    for row, (saver, ending) in enumerate(SAVERS.items()):
        place = {"pos": [1800, 110 + 400 * row], "widgets": {"filename_prefix": PREFIX}}
        yield {"do": "add_node", "id": ending, "class": saver, **place}
        yield {"do": "link", "from": "PiyingVACESample", "output": 0, "to": ending, "input": "images"}


@pytest.fixture(scope="module")
def written(drive, comfyui, tmp_path_factory):
    """The graph, and a file of each kind from ComfyUI and from the runner."""
    *_, graph, run = drive([*with_savers(), {"do": "graph_to_prompt"}, {"do": "run"}]).results
    assert run["end"]["type"] == "execution_success"
    folder = tmp_path_factory.mktemp("headless")
    headless = run_headless(graph["workflow"], folder)
    roots = {"comfyui": comfyui.output_dir, "runner": headless}
    return graph, {
        (host, kind): sorted(root.glob(f"{PREFIX}_*.{kind}"))[0] for host, root in roots.items() for kind in KINDS
    }


@pytest.fixture(scope="module")
def dropped(drive, written):
    """What each file gave back, all in one page."""
    _, files = written
    attempts = [
        {"do": "attempt", "actions": [{"do": "drop_file", "file": str(file)}, {"do": "graph_to_prompt"}]}
        for file in files.values()
    ]
    return dict(zip(files, drive(attempts).results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", ["comfyui", "runner"])
def test_a_dropped_file_restores_the_graph(written, dropped, host, kind):
    graph, _ = written
    found = dropped[host, kind]
    assert found["error"] is None
    missing, restored = found["results"]
    assert missing["unknown"] == []
    assert restored["output"] == graph["output"]
    assert layout(restored["workflow"]) == layout(graph["workflow"])


def layout(workflow):
    """What a person sees: every node's place, title and text, notes included."""
    return {
        node["id"]: (node["type"], node.get("title"), node["pos"], node.get("widgets_values"))
        for node in workflow["nodes"]
    }
