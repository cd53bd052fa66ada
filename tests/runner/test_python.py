"""Running workflows from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import piying.runner
import pytest
from piying.core.host.current import set_host
from piying.runner.errors import InvalidGraph, WorkflowError

ROOT = Path(__file__).resolve().parents[2]
T2I = ROOT / "workflows" / "t2i.json"
QUICK = {"PiyingHunyuanDiT.steps": 2, "PiyingHunyuanDiT.width": 64, "PiyingHunyuanDiT.height": 64}


@pytest.fixture(autouse=True)
def own_host():
    yield
    set_host(None)


def text(value, other=None):
    graph = {"1": {"class_type": "PrimitiveString", "inputs": {"value": value}}}
    graph["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    return graph if other is None else {**graph, **other}


def test_results_come_as_tensors_and_files(tmp_path):
    events = []
    finished = piying.runner.run(T2I, set=QUICK, prompt="红色", seed=3, output=tmp_path, on_event=events.append)
    (path,) = finished.files
    assert path.is_file()
    image = finished.outputs("Hunyuan-DiT Text to Image")[0][0]
    assert tuple(image.shape) == (1, 64, 64, 3)
    assert [e["value"] for e in events if e["event"] == "progress" and e["phase"] == "Sampling"] == [1, 2]


def test_a_session_keeps_what_did_not_change(tmp_path):
    ran = []
    session = piying.runner.Session(output=tmp_path)
    session.display.node_started = lambda node: ran.append(node.class_type)
    try:
        session.run(T2I, set=QUICK)
        assert "PiyingHunyuanDiT" in ran
        ran.clear()
        again = session.run(T2I, set=QUICK)
        assert ran == []
        assert again.outputs("PiyingHunyuanDiT")[0][0].shape[0] == 1
        session.run(T2I, set=QUICK, seed=99)
        assert "PiyingLoadHunyuanDiT" not in ran
        assert "SaveImage" in ran
    finally:
        session.close()


def test_decoded_json_is_a_workflow_and_stays_as_it_was(tmp_path):
    graph = text("hello")
    before = json.dumps(graph)
    finished = piying.runner.run(graph, set={"1.value": "bye"}, output=tmp_path)
    assert finished.results["2"].ui == {"text": ["bye"]}
    assert json.dumps(graph) == before


def test_partial_runs_what_is_valid(tmp_path):
    bad = {"3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}
    with pytest.raises(InvalidGraph, match="Save Image"):
        piying.runner.run(text("hello", bad), output=tmp_path)
    finished = piying.runner.run(text("hello", bad), partial=True, output=tmp_path)
    assert finished.results["2"].ui == {"text": ["hello"]}
    assert [error.type for error in finished.errors] == ["return_type_mismatch"]


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(WorkflowError, match="no input 'valeu'. Did you mean value"):
        piying.runner.run(text("hello"), set={"1.valeu": "x"}, output=tmp_path)
    with pytest.raises(WorkflowError, match="no such folder"):
        piying.runner.run(text("hello"), models=[tmp_path / "nowhere"])


def test_the_documented_import(tmp_path):
    (tmp_path / "piying").symlink_to(ROOT, target_is_directory=True)
    code = (
        "from piying.runner import run; "
        "print(run({'1': {'class_type': 'PreviewAny', 'inputs': {'source': 'hi'}}}).results['1'].ui['text'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip() == "['hi']", ran.stderr
