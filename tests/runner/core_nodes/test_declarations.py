"""The core nodes' ids, inputs and outputs against those of a real ComfyUI, and the cost of importing them."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from piying.runner.core_nodes import CORE_NODE_CLASSES, CORE_NODE_TITLES
from piying.runner.definitions import object_info
from piying.tests.runner.core_nodes.declared import SNAPSHOT, declared

FACTS = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture
def ours(host):
    return object_info(CORE_NODE_CLASSES, CORE_NODE_TITLES)


@pytest.mark.parametrize("name", FACTS)
def test_declarations_are_comfyuis(ours, name):
    found = declared(ours[name])
    # Newer ComfyUIs have it too, and files of theirs link it.
    if name == "CreateVideo":
        assert found["optional"].pop()[:2] == ["bit_depth", "INT"]
    if name == "GetVideoComponents":
        assert (found["output"].pop(), found["output_name"].pop()) == ("INT", "bit_depth")
        found["output_is_list"].pop()
    assert found == FACTS[name]


def test_only_the_switch_is_newer_than_the_snapshot(ours):
    assert ours.keys() - FACTS.keys() == {"ComfySwitchNode"}
    switch = declared(ours["ComfySwitchNode"])
    assert switch["required"] == [["switch", "BOOLEAN", {}]]
    assert switch["optional"] == [["on_false", "*", {"lazy": True}], ["on_true", "*", {"lazy": True}]]
    assert (switch["output"], switch["output_name"]) == (["*"], ["output"])


@pytest.mark.parametrize("name", CORE_NODE_CLASSES)
def test_the_function_takes_what_is_declared(ours, name):
    node_class = CORE_NODE_CLASSES[name]
    taken = inspect.signature(getattr(node_class, node_class.FUNCTION)).parameters
    given = [declared for group in ours[name]["input"].values() for declared in group]
    if name != "PreviewImage":  # which has no prefix to choose
        assert set(taken) - {"self"} == set(given)
    assert set(given) <= set(taken)


@pytest.mark.parametrize(
    ("node", "field", "names"),
    [("LoadImage", "image", ["a.png", "b.webp"]), ("LoadImageMask", "image", ["a.png", "b.webp", "c.mp4", "d.txt"])],
)
def test_lists_hold_files_of_the_kind(host, node, field, names):
    for name in ("b.webp", "a.png", "d.txt", "c.mp4"):
        (host.input / name).touch()
    (host.input / "folder.png").mkdir()
    assert CORE_NODE_CLASSES[node].INPUT_TYPES()["required"][field][0] == names
    options = CORE_NODE_CLASSES["LoadVideo"].INPUT_TYPES()["required"]["file"][1]
    assert options["options"] == ["c.mp4"]


def test_without_an_input_folder_the_lists_are_empty(host):
    host.input.rmdir()
    assert CORE_NODE_CLASSES["LoadImage"].INPUT_TYPES()["required"]["image"][0] == []


def test_importing_is_cheap(tmp_path):
    code = (
        "import time; started = time.process_time()\n"
        "import sys, conftest\n"
        "begun = time.process_time(); import piying.runner.core_nodes; print(started, time.process_time() - begun)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=TESTS, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(4)
    ]
    assert not {"torch", "numpy", "PIL", "cv2"} & set(runs[0][1].split())
    # Python starts in 9 ms on an idle machine: what else this one does weighs on both.
    starts, imported = zip(*(map(float, run[0].split()) for run in runs), strict=True)
    assert min(imported) < 0.015 * max(1.0, min(starts) / 0.009)
