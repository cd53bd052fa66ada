"""Every kind of file that either host writes gives its workflow back when it is dropped on the canvas."""

from __future__ import annotations

import pytest
from piying.core.host.current import set_host
from piying.runner.session import Session
from piying.runner.ui_format import to_api
from piying.tests.browser.page import opened, set_widgets
from piying.tests.comfyui.convert import WORKFLOWS
from piying.tests.comfyui.headless import run_headless

pytestmark = pytest.mark.browser

CONVERTED = sorted((WORKFLOWS.parent / "tests/runner/conversion").glob("*.json"))
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


@pytest.mark.parametrize("case", CONVERTED, ids=lambda path: path.stem)
def test_what_was_converted_opens_and_is_exported_as_meant(drive, case, tmp_path):
    """The page says what the runner says of a file that --convert-to-piying has written."""
    session = Session(input=tmp_path, device="cpu")
    try:
        workflow, _ = session.convert(case)
        meant = to_api(workflow, session.definitions())
    finally:
        session.close()
        set_host(None)
    loaded, exported = drive([{"do": "load_graph", "workflow": workflow}, {"do": "graph_to_prompt"}]).results
    assert loaded["unknown"] == []
    assert inputs_of(exported["output"]) == inputs_of(meant)


def inputs_of(api):
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in api.items()}
