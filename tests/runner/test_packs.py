"""Other people's packs: those that need no ComfyUI run, the others are named with what they want."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DOUBLE = """
from .more import FACTOR

class Double:
    RETURN_TYPES, FUNCTION, CATEGORY = ("INT",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT", {"min": 0, "max": 50})}}

    def run(self, value):
        return (value * FACTOR,)

NODE_CLASS_MAPPINGS = {"Double": Double}
NODE_DISPLAY_NAME_MAPPINGS = {"Double": "Twice as much"}
"""


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def doubled(value):
    return {
        "1": node("PrimitiveInt", value=value),
        "2": node("Double", value=["1", 0]),
        "3": node("PreviewAny", source=["2", 0]),
    }


@pytest.fixture
def packs(tmp_path):
    folder = tmp_path / "custom_nodes"

    def write(name, **files):
        (folder / name).mkdir(parents=True)
        for file, text in files.items():
            (folder / name / f"{file}.py").write_text(text)
        return folder

    write("double-1.0", __init__=DOUBLE, more="FACTOR = 2")
    return write


def test_a_pack_runs(command, write, packs, tmp_path):
    ran = command(write(doubled(21)), "--custom-nodes", tmp_path / "custom_nodes")
    assert ran.returncode == 0, ran.stderr
    assert "Preview Any: 42" in ran.stderr


def test_one_pack_by_its_own_folder(command, write, packs, tmp_path):
    ran = command(write(doubled(4)), "--custom-nodes", tmp_path / "custom_nodes" / "double-1.0")
    assert "Preview Any: 8" in ran.stderr


def test_ranges_hold_for_linked_values(command, write, packs, tmp_path):
    ran = command(write(doubled(51)), "--custom-nodes", tmp_path / "custom_nodes")
    assert ran.returncode == 1
    assert "Twice as much (node 2): value is 51, which arrives by link. It must be at most 50." in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import folder_paths", "wants ComfyUI's module 'folder_paths': give a checkout with --comfyui DIR"),
        ("from comfy.utils import ProgressBar", "wants ComfyUI's module 'comfy'"),
        ("import nodes", "wants ComfyUI's module 'nodes'"),
        ("import surely_not_installed", "wants the Python package 'surely_not_installed'"),
        ("1 / 0", "cannot be loaded (ZeroDivisionError"),
        ("x = 1", "has no NODE_CLASS_MAPPINGS"),
        ("def broken(:", "cannot be loaded (SyntaxError"),
    ],
)
def test_a_pack_that_cannot_be_loaded_is_named(command, write, packs, code, words):
    folder = packs("other", __init__=code)
    ran = command(write(doubled(1)), "--custom-nodes", folder)
    assert ran.returncode == 0, ran.stderr
    assert "The pack other " + words in ran.stderr
    ran = command(write({"1": node("OtherNode"), "2": node("PreviewAny", source=["1", 0])}), "--custom-nodes", folder)
    assert ran.returncode == 2
    assert "'OtherNode' is not known here" in ran.stderr.splitlines()[-1]
    assert words in ran.stderr.splitlines()[-1]


def test_a_pack_cannot_take_the_place_of_a_node(command, write, packs):
    folder = packs("thief", __init__=DOUBLE.replace('"Double"', '"PreviewAny"'), more="FACTOR = 9")
    ran = command(write(doubled(1)), "--custom-nodes", folder)
    assert ran.returncode == 0, ran.stderr
    assert "Preview Any: 2" in ran.stderr


def test_folders_that_are_not_there(command, write, tmp_path):
    ran = command(write(doubled(1)), "--custom-nodes", tmp_path / "nowhere")
    assert ran.returncode == 2
    assert "no such folder" in ran.stderr
    ran = command(write(doubled(1)), "--comfyui", tmp_path)
    assert ran.returncode == 2
    assert "no ComfyUI checkout" in ran.stderr


@pytest.mark.comfyui
def test_a_checkout_within_reach(command, write, packs):
    checkout = os.environ.get("COMFYUI_PATH")
    if not checkout:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI checkout")
    uses = DOUBLE.replace(
        "from .more import FACTOR", "from comfy_execution.graph_utils import GraphBuilder\nFACTOR = 3"
    )
    uses = uses.replace(
        "return (value * FACTOR,)",
        "graph = GraphBuilder(); made = graph.node('PrimitiveInt', value=value * FACTOR)\n"
        "        return {'result': (made.out(0),), 'expand': graph.finalize()}",
    ).replace('"Double"', '"Triple"')
    folder = packs("triple", __init__=uses)
    graph = {"1": node("Triple", value=5), "2": node("PreviewAny", source=["1", 0])}
    ran = command(write(graph), "--custom-nodes", folder, "--comfyui", Path(checkout).resolve(), "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    assert "Preview Any: 15" in ran.stderr
