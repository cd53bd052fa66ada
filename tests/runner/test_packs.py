"""Other people's packs: those that need no ComfyUI run, the others are named with what they want."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from piying.runner.errors import InvalidGraph, WorkflowError
from piying.runner.session import Session

ROOT = Path(__file__).resolve().parents[2]

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
    assert ran.returncode == 2  # known before the run
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


def test_what_a_pack_takes_from_the_process_is_put_back(command, write, packs):
    takes = "import os, sys\nsys.stdout = None\nos.chdir('/')\nNODE_CLASS_MAPPINGS = {}"
    graph = {"1": {"class_type": "PreviewAny", "inputs": {"source": "a"}}}
    ran = command(write(graph), "--custom-nodes", packs("takes", __init__=takes))
    assert ran.returncode == 0, ran.stderr
    assert "The pack takes took stdout or stderr for itself" in ran.stderr
    assert "The pack takes changed the working folder" in ran.stderr
    assert "Traceback" not in ran.stderr


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


# Habits of packs that have many users.
HABITS = """
import os, subprocess, sys

class Any(str):
    def __ne__(self, other):
        return False

class Yes(dict):
    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return self.get(name, (Any("*"), {}))

class Endless(tuple):
    def __getitem__(self, slot):
        return super().__getitem__(min(slot, len(self) - 1))

class Node:
    RETURN_TYPES, FUNCTION, CATEGORY, INPUTS = ("STRING",), "run", "test", {"required": {}}

    @classmethod
    def INPUT_TYPES(cls):
        return cls.INPUTS

    def run(self, **given):
        return ("; ".join(f"{name}={given[name]}" for name in sorted(given)),)

class Switch(Node):
    INPUTS = {"required": {}, "optional": Yes()}

class Combine(Node):
    INPUTS = {"required": {"fps": ("INT", {"default": 8})}, "hidden": Yes({"prompt": "PROMPT"})}

    def run(self, fps, prompt, **given):
        return (f"fps={fps} nodes={len(prompt)} {given}",)

class Many(Node):  # the page adds the inputs image_2, image_3 and so on
    INPUTS = {"required": {"count": ("INT", {})}, "optional": {"image_1": (Any("*"),)}}

class Rows(Node):
    RETURN_TYPES = Endless(("INT",))

    def run(self):
        return tuple(range(5))

class Picky(Node):
    INPUTS = {"required": {"value": ("INT", {"max": 3})}, "optional": {"other": ("INT", {"default": 1})}}

    @staticmethod
    def VALIDATE_INPUTS(value, other=5, **rest):
        return True if value == 7 and other == 5 else f"value={value} other={other}"

class Typed(Node):
    INPUTS = {"required": {"value": ("INT", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True if input_types == {"value": "STRING"} else str(input_types)

class Broken(Node):
    @classmethod
    def INPUT_TYPES(cls):
        raise TypeError("missing 1 required positional argument: 'id'")

class Exits(Node):
    @classmethod
    def INPUT_TYPES(cls):
        raise SystemExit("a library is missing")

class Malformed(Node):
    INPUTS = {"required": {"value": ()}}

class Loud(Node):
    OUTPUT_NODE, INPUTS = True, {"required": {"folder": ("STRING", {})}}

    def run(self, folder):
        print("### from print")
        os.write(1, b"### from the descriptor\\n")
        subprocess.run([sys.executable, "-c", "print('### from a child')"])
        for name in ("a.mp4", "b.gif"):
            open(os.path.join(folder, name), "wb").close()
        file = {"filename": "a.mp4", "subfolder": "", "type": "output"}
        return {"ui": {"gifs": [file], "also": [file], "anims": [{**file, "filename": "b.gif"}], "tags": ["a", 1],
                       "audio": [{**file, "type": "temp"}, {**file, "filename": "lost.wav"}]}, "result": ("x",)}

import logging
logging.basicConfig(level=logging.INFO, force=True)
logging.warning("### a warning")
print("### Loading: a pack that says hello")
CLASSES = (Switch, Combine, Many, Rows, Picky, Typed, Broken, Exits, Malformed, Loud)
NODE_CLASS_MAPPINGS = {each.__name__: each for each in CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = None
"""


@pytest.fixture
def habits(packs):
    return packs("habits", __init__=HABITS)


def preview(source, slot=0):
    return node("PreviewAny", source=[source, slot])


def test_what_popular_packs_do_with_their_inputs(command, write, habits):
    graph = {
        "seven": node("PrimitiveInt", value=7),
        "text": node("PrimitiveString", value="t"),
        "rows": node("Rows"),
        "1": node("Switch", any_01=["seven", 0], any_02=["text", 0], literal=3),
        "2": node("Combine", fps=12, pix_fmt="yuv420p"),
        "3": node("Many", count=2, image_1=["seven", 0], image_2=["text", 0]),
        "4": node("Picky", value=7),
        "5": node("Typed", value=["text", 0]),
        **{f"show {each}": preview(each) for each in "12345"},
        "show rows": preview("rows", 4),
    }
    ran = command(write(graph), "--custom-nodes", habits)
    assert ran.returncode == 0, ran.stderr
    shown = {line.removeprefix("Preview Any: ") for line in ran.stderr.splitlines() if line.startswith("Preview Any")}
    assert shown == {
        "any_01=7; any_02=t; literal=3",
        f"fps=12 nodes={len(graph)} {{'pix_fmt': 'yuv420p'}}",
        "count=2; image_1=7; image_2=t",
        "value=7",
        "value=t",
        "4",
    }
    assert (
        "Left out, since their declarations fail: Broken (habits), Exits (habits), Malformed (habits)." in ran.stderr
    )


def test_a_node_that_ends_the_process_is_named(command, write, packs):
    quits = DOUBLE.replace("return (value * FACTOR,)", "raise SystemExit(5)")
    ran = command(write(doubled(7)), "--custom-nodes", packs("quits", __init__=quits, more="FACTOR = 1") / "quits")
    assert ran.returncode == 1
    assert "error: Twice as much (node 2): SystemExit: 5." in ran.stderr


def test_a_check_that_ends_the_process_is_named(command, write, packs):
    check = "    @classmethod\n    def VALIDATE_INPUTS(cls, value):\n        raise SystemExit(0)\n\n    def run"
    quits = DOUBLE.replace("    def run", check)
    ran = command(write(doubled(7)), "--custom-nodes", packs("quits", __init__=quits, more="FACTOR = 1") / "quits")
    assert ran.returncode == 2
    assert "Twice as much (node 2)" in ran.stderr and "SystemExit: 0" in ran.stderr


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"1": node("Broken"), "2": preview("1")}, "Broken: it cannot say what inputs it has (TypeError: missing 1"),
        ({"1": node("Malformed"), "2": preview("1")}, "Malformed: it cannot say what inputs it has (IndexError"),
        ({"1": node("Picky", value=7, other=1), "2": preview("1")}, "Picky (node 1): value=7 other=1"),
        ({"1": node("Switch", any_01=["gone", 0]), "2": preview("1")}, "any_01 is linked to node gone, which is not"),
        ({"1": node("Switch"), "2": preview("1", 1)}, "source is linked to output 1 of Switch (node 1), which has 1"),
        ({"1": node("Rows", extra=["2", 0]), "2": node("Rows"), "3": preview("1")}, "Rows (node 1): has no input"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_still_named(write, habits, graph, words):
    with pytest.raises((InvalidGraph, WorkflowError), match=re.escape(words)):
        Session(custom_nodes=[habits]).run(graph)


@pytest.mark.parametrize("option", ["--json", "--quiet", "--verbose"])
def test_what_packs_print_and_the_files_they_report(command, write, habits, tmp_path, option):
    (tmp_path / "output").mkdir()
    ran = command(write({"1": node("Loud", folder=str(tmp_path / "output"))}), "--custom-nodes", habits, option)
    assert ran.returncode == 0, ran.stderr
    files = [str(tmp_path / "output" / name) for name in ("a.mp4", "b.gif")]
    if option == "--json":
        events = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [event["path"] for event in events if event["event"] == "saved"] == files
        warned = [event["text"] for event in events if event["event"] == "message" and event["level"] == "warning"]
        assert any("lost.wav" in text and "is not there" in text for text in warned)
    else:
        assert ran.stdout.splitlines() == files
    printed = ["### Loading: a pack that says hello", "### from print", "### from the descriptor", "### from a child"]
    assert [line for line in printed if line in ran.stderr.splitlines()] == ([] if option == "--quiet" else printed)
    assert (ran.stdout + ran.stderr).count("lost.wav: a node says") == 1


def test_a_thread_of_a_pack_does_not_keep_the_command(command, write, packs):
    waits = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\nNODE_CLASS_MAPPINGS = {}"
    )
    begun = time.monotonic()
    ran = command(
        write({"1": {"class_type": "PreviewAny", "inputs": {"source": "a"}}}),
        "--custom-nodes",
        packs("waits", __init__=waits),
    )
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('install X')", "ends the process while it is loaded."),
        ("raise BaseException('no')", "cannot be loaded (BaseException: no)."),
        ("from .part import x", "lacks its own module 'part': the copy is not whole"),
        ("import os, sys; sys.path.append(os.path.dirname(__file__)); import modules_of_mine.part",
         "lacks its own module 'modules_of_mine.part'"),
        ("import surely_not_installed.part", "wants the Python package 'surely_not_installed': "),
    ],
)  # fmt: skip
def test_what_a_pack_lacks(command, write, packs, tmp_path, code, words):
    folder = packs("other", __init__=code)
    (folder / "other" / "modules_of_mine").mkdir()
    (folder / "other" / "modules_of_mine" / "__init__.py").touch()
    (folder / "other" / "requirements.txt").touch()
    session = Session(custom_nodes=[folder])
    with pytest.raises(WorkflowError, match=re.escape(f"The pack other {words}")):
        session.run({"1": node("OtherNode"), "2": preview("1")})


HUNGRY = """
class Hungry:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {})}})

    def run(self, text):
        kinds = {"[Errno": OSError, "Default": RuntimeError, "": MemoryError}
        raise kinds.get(text.split(" ")[0].split("CPU")[0], ImportError)(text)

NODE_CLASS_MAPPINGS = {"Hungry": Hungry}
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Errno 12] Cannot allocate memory", "Hungry (node 1): memory ran out ([Errno 12] Cannot allocate memory)."),
        ("", "Hungry (node 1): memory ran out (MemoryError). Choose a smaller size or model, fewer images or frames,"),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 12884901888 bytes. Error code 12",
            "Hungry (node 1): memory ran out (at 12.0 GB wanted at once). Choose",
        ),
        ("libQt5Core.so.5: failed to map segment from shared object", "Hungry (node 1): memory ran out (libQt5Core."),
        ("No module named 'x'", "Hungry (node 1): ImportError: No module named 'x'. Run with"),
    ],
)
def test_memory_that_runs_out_in_a_node_is_told_as_such(command, write, packs, text, words):
    """It may run out where no plan holds: while a library is imported, or a file is mapped."""
    ran = command(write({"1": node("Hungry", text=text)}), "--custom-nodes", packs("hungry", __init__=HUNGRY))
    assert ran.returncode == 1
    assert words in ran.stderr


def fake_checkout(folder):
    """A ComfyUI whose requirements are not met: what this Python has decides nothing."""
    for name in ("comfy/__init__", "comfy/cli_args", "utils/__init__", "utils/extra_config", "execution"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").touch()
    (folder / "comfy/cli_args.py").write_text("class args: cpu = True")
    (folder / "comfy/utils.py").write_text("import surely_not_installed")
    (folder / "comfyui_version.py").write_text("__version__ = '9.8.7'")
    (folder / "requirements.txt").write_text("comfyui-page==1\nsurely-not-installed>=2\ntorch\n")
    (folder / "folder_paths.py").write_text(
        "folder_names_and_paths = {'custom_nodes': ([], set()), 'vae': (['/m/vae'], set())}; models_dir = '/m'\n"
        "def set_input_directory(path): pass\n"
        "set_output_directory = set_temp_directory = set_user_directory = set_input_directory\n"
    )
    return folder


def test_what_comfyui_lacks_is_kept_apart(command, write, packs, tmp_path):
    """One line for the checkout; a pack is told that it is the checkout, and which modules a version has not."""
    packs("wants", __init__="import comfy.utils")
    packs("also", __init__="import surely_not_installed")
    packs("server", __init__="from server import PromptServer")
    packs("own", __init__="import not_installed_either")
    packs("paths", __init__=DOUBLE.replace("from .more", "import folder_paths\nfrom .more"), more="FACTOR = 4")
    checkout = fake_checkout(tmp_path / "ComfyUI")
    options = ("--custom-nodes", tmp_path / "custom_nodes", "--comfyui", checkout)
    ran = command(write(doubled(2)), *options)
    assert ran.returncode == 0, ran.stderr
    assert "Preview Any: 8" in ran.stderr
    install = f"{sys.executable} -m pip install -r {checkout / 'requirements.txt'}."
    assert (
        f"ComfyUI: the checkout {checkout} (ComfyUI 9.8.7) needs 'surely_not_installed', and this Python lacks "
        f"surely-not-installed of its requirements: {install} Its nodes are left out"
    ) in ran.stderr
    required = f"wants the Python package 'surely_not_installed', one of ComfyUI's own requirements: {install}"
    assert f"The pack wants {required}" in ran.stderr
    assert f"The pack also {required}" in ran.stderr
    assert "The pack server wants ComfyUI's module 'server', which could not be loaded here." in ran.stderr
    assert "The pack own wants the Python package 'not_installed_either': it is not installed." in ran.stderr


def test_two_checkouts_in_one_process(tmp_path):
    fake_checkout(tmp_path / "a")
    fake_checkout(tmp_path / "b")
    code = (
        "import sys; sys.path.insert(0, 'tests'); import conftest\n"
        "from piying.runner.session import Session\n"
        f"for each in 'aab': Session(comfyui={str(tmp_path)!r} + '/' + each); print(each)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.split() == ["a", "a"]
    assert "is in this process already. Use a process for each." in ran.stderr
