"""`--export-api` and `--object-info`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

PAIRS = Path(__file__).parent / "pairs"


@pytest.fixture
def made(tmp_path):
    """A workflow of nodes that are not here, the file with their definitions, and the API form."""
    pair = json.loads((PAIRS / "subgraph_two_instances.json").read_text(encoding="utf-8"))
    for name in ("ui", "object_info"):
        (tmp_path / f"{name}.json").write_text(json.dumps(pair[name]), encoding="utf-8")
    return tmp_path / "ui.json", tmp_path / "object_info.json", pair["api"]


def test_nodes_that_are_not_here_export_with_definitions_from_a_server(command, made, tmp_path):
    workflow, info, api = made
    target = tmp_path / "api.json"
    target.write_text("from before", encoding="utf-8")
    ran = command(workflow, "--object-info", info, "--export-api", target, "--quiet")
    assert (ran.returncode, ran.stdout.strip()) == (0, str(target)), ran.stderr
    written = json.loads(target.read_text(encoding="utf-8"))
    assert {key: node["inputs"] for key, node in written.items()} == {key: n["inputs"] for key, n in api.items()}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "api.json",
        "object_info.json",
        "ui.json",
    ], "nothing beside it is left"
    assert command.files() == []


def test_to_stdout(command, made, tmp_path):
    workflow, info, api = made
    ran = command(workflow, "--object-info", info, "--export-api", "-")
    assert (ran.returncode, json.loads(ran.stdout).keys()) == (0, api.keys()), ran.stderr
    ran = command(workflow, "--object-info", info, "--export-api", "-", "--json")
    assert (ran.returncode, ran.stdout) == (2, ""), "a program that reads events meets nothing else"
    assert command.files() == []


def test_a_workflow_is_not_written_over_itself(command, write, t2v):
    for option in ("--export-api", "--convert-to-piying"):
        path = write(t2v)
        before = path.read_bytes()
        ran = command(path, option, path)
        assert ran.returncode == 2 and path.read_bytes() == before, ran.stderr
    assert "is the workflow itself" in command(path, "--export-api", path).stderr


def test_values_are_written_into_what_is_exported(command, made, tmp_path):
    workflow, info, api = made
    node_id = next(key for key, node in api.items() if node["class_type"] == "PairMake")
    target = tmp_path / "api.json"
    ran = command(workflow, "--object-info", info, "--export-api", target, "--set", f"{node_id}.seed=77")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(target.read_text(encoding="utf-8"))[node_id]["inputs"]["seed"] == 77


def test_values_that_would_be_refused_are_exported_as_the_page_does_and_named(command, made, tmp_path):
    """In a workflow of this session's nodes and in one of a server's."""
    target, workflow = tmp_path / "api.json", Path(__file__).resolve().parents[2] / "workflows" / "t2v.json"
    ran = command(workflow, "--export-api", target, "--set", "Save Video.codec=vp9")
    assert (ran.returncode, "would be refused" in ran.stderr) == (0, True), ran.stderr
    assert "codec is 'vp9'. Choose one of: auto, h264." in ran.stderr
    assert "vp9" in [node["inputs"].get("codec") for node in json.loads(target.read_text(encoding="utf-8")).values()]
    workflow, info, api = made
    node_id = next(key for key, node in api.items() if node["class_type"] == "PairMake")
    ran = command(workflow, "--object-info", info, "--export-api", target, "--set", f"{node_id}.seed=-7")
    assert (ran.returncode, "seed is -7. It must be at least 0." in ran.stderr) == (0, True), ran.stderr
    assert json.loads(target.read_text(encoding="utf-8"))[node_id]["inputs"]["seed"] == -7


def test_definitions_as_powershell_saves_them(command, made, tmp_path):
    workflow, info, _ = made
    info.write_text(info.read_text(encoding="utf-8"), encoding="utf-16")
    ran = command(workflow, "--object-info", info, "--export-api", tmp_path / "api.json")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    "definition",
    [
        {"input": {"required": {"steps": ["INT", {"min": "a"}]}}},
        {"input": {"required": {"steps": ["FOO"]}}, "output": []},
    ],
)
def test_definitions_that_lack_what_a_server_says(command, write, tmp_path, definition):
    (tmp_path / "info.json").write_text(json.dumps({"Foo": definition}), encoding="utf-8")
    graph = write(json.dumps({"1": {"class_type": "Foo", "inputs": {"steps": 3}}}))
    ran = command(graph, "--object-info", tmp_path / "info.json", "--export-api", tmp_path / "api.json")
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_the_definitions_the_node_is_named(command, made, tmp_path):
    workflow, _, _ = made
    ran = command(workflow, "--export-api", tmp_path / "api.json")
    assert ran.returncode == 2
    assert "the node class 'PairOut' is not known here" in ran.stderr
    assert not (tmp_path / "api.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[]", "/object_info"),
        ('{"A": {"input": []}}', "/object_info"),
    ],
)
def test_definitions_that_are_none(command, made, tmp_path, text, words):
    workflow, _, _ = made
    info = tmp_path / "definitions.json"
    if text is not None:
        info.write_text(text, encoding="utf-8")
    ran = command(workflow, "--object-info", info, "--export-api", tmp_path / "api.json")
    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(command, made, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    ran = command(made[0], "--object-info", made[1], "--export-api", folder / "api.json")
    assert ran.returncode == 2
    assert "permission" in ran.stderr


def test_a_folder_that_is_not_there(command, made, tmp_path):
    ran = command(made[0], "--object-info", made[1], "--export-api", tmp_path / "nowhere" / "api.json")
    assert ran.returncode == 2
    assert "no such file or folder" in ran.stderr
