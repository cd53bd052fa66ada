"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for part in ("core", "nodes", "runner", "serve") for path in (ROOT / part).rglob("*.py"))
IDLE_START = 0.009  # seconds of processor time in which Python starts on an idle machine
IDLE_CLASSES = 0.0093  # and in which it makes twenty dataclasses
HEAVY = {"torch", "diffusers", "transformers", "cv2", "accelerate", "numpy", "PIL"}
COMFY = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution", "latent_preview", "aiohttp"}
# Its work, its web server, and its modules without either; aiohttp comes with it.
COMFY_FILES = {Path(f"core/host/{name}.py") for name in ("comfy", "comfy_server", "comfy_checkout")}
# The runner as a client of ComfyUI servers; aiohttp is optional there.
CLIENT_FILE = Path("runner/remote/event_stream.py")
FAMILIES = {"wan", "wan_video", "hunyuan_dit", "z_image", "prompting", "controls"}
REGISTRY = Path("core/families/registry.py")
WITH_PACKAGES = {"app", "cluster", "metrics", "ray_pool"}  # of serve; the rest does without Ray and a web server
STDLIB_ONLY = {
    *("graph", "definitions", "errors", "validate", "execute", "calls", "schedule", "cache", "plan", "v3_nodes"),
    *("ui_format", "ui_graph", "ui_nodes", "ui_subgraphs", "ui_widgets", "ui_edit"),
}


# A user's second start finds compiled files; here they lie beside the tree, not in it.
COMPILED = {
    **os.environ,
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "piying-compiled"),
}


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, top_level: bool = False) -> set[tuple[str, ...]]:
    """Return what a file imports: ("torch",) from outside, ("", "core", "host") from inside the pack."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [n for s in tree.body if not is_type_checking(s) for n in ([s] if top_level else ast.walk(s))]
    package = ("", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {(*module, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_keeps_to_its_floor(path):
    relative = path.relative_to(ROOT)
    part, found = relative.parts[0], imports(path)
    inside = {target[1:] for target in found if target[0] == "" and len(target) > 1}
    outside = {target[0] for target in found if target[0] != ""}

    assert not outside & {"core", "nodes", "runner", "serve", "piying"}, "imports inside the pack are relative"
    if relative not in COMFY_FILES:
        known = {"aiohttp"} if relative == CLIENT_FILE else set()
        assert not outside & COMFY - known, "only core/host/comfy*.py know ComfyUI"
    floors = {"core": {"core"}, "nodes": {"core", "nodes"}, "runner": {"runner", "core"}}
    allowed = {**floors, "serve": {"serve", "runner", "core"}}[part]
    entry = {("NODE_CLASS_MAPPINGS",), ("NODE_DISPLAY_NAME_MAPPINGS",)} if part == "runner" else set()
    assert {target[0] for target in inside - entry} <= allowed
    if part == "runner":
        asked = {
            one
            for one in inside
            if (one[:2] == ("core", "checkpoints") and one[2] in ("inspect", "layers", "quantized_file"))
            or one == ("core", "catalog", "discovery", "why_no_model")
        }
        reached = {target[1] for target in inside - asked if target[0] == "core"}
        shared = {"atomic_write", "errors", "host", "http", "main_memory", "media", "parallel", "process", "samples"}
        assert reached <= shared, "the runner reaches models through their nodes alone"
    if part == "serve":
        # What models do to memory in this process is counted where they are held.
        counts = {("core", "executor", "model_cache"), ("core", "executor", "retry")}
        reached = {one[1] for one in inside if one[0] == "core" and one[:3] not in counts}
        assert reached <= {"atomic_write", "errors", "host", "http", "media", "process"}, (
            "the queue reaches models through the runner"
        )
        if relative.stem not in WITH_PACKAGES:
            assert outside <= set(sys.stdlib_module_names) | {"torch", "psutil", "fsspec"}
    families = {target[1] for target in inside if target[0] == "core" and len(target) > 1} & FAMILIES
    if part == "core" and relative.parts[1] not in FAMILIES and relative != REGISTRY:
        assert not families, "the ground floor knows no family"
    if part == "runner" and relative.stem in STDLIB_ONLY and len(relative.parts) == 2:
        assert outside <= set(sys.stdlib_module_names), "the engine needs the standard library alone"
        assert {target[0] for target in inside} <= {"runner"}


def run_python(code: str, folder: Path = ROOT / "tests") -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env=COMPILED
    )
    return ran.stdout


def processor_time(*arguments: str) -> float:
    """Return the least of three processor times of a Python with these arguments, in seconds."""
    pytest.importorskip("resource", reason="process times are read with the resource module of Unix")
    code = (
        "import resource, subprocess, sys\n"
        f"subprocess.run([sys.executable, *{arguments!r}], cwd={str(ROOT)!r}, stdout=-3, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    return min(float(run_python(code)) for _ in range(3))


def slowness() -> float:
    """Return how much longer than on an idle machine Python itself takes to start."""
    return max(1.0, processor_time("-c", "pass") / IDLE_START)


def test_importing_the_pack_pulls_nothing_heavy():
    loaded = run_python("import sys, conftest; print(*sorted({name.split('.')[0] for name in sys.modules}))").split()
    assert "piying" in loaded
    assert not HEAVY & set(loaded)


def test_importing_the_pack_takes_under_30_ms():
    code = (
        "import time, re, sys, conftest\n"
        "from dataclasses import make_dataclass\n"
        "for name in [name for name in sys.modules if name.startswith('piying')]: del sys.modules[name]\n"
        "re.purge()\n"
        "begun = time.process_time(); conftest.load_pack(); loaded = time.process_time()\n"
        "for _ in range(20): make_dataclass('Made', 'abcdefgh', frozen=True)\n"
        "print(time.process_time() - loaded, loaded - begun)"
    )
    # Work of the same kind in the same processes, so that what else the machine does weighs on both.
    made, imported = zip(*(map(float, run_python(code).split()) for _ in range(10)), strict=True)
    assert min(imported) < 0.030 * max(1.0, min(made) / IDLE_CLASSES)


def test_the_command_line_answers_within_150_ms():
    assert processor_time("-m", "runner", "--help") < 0.150 * slowness()


def test_the_root_never_gets_on_the_path():
    """ComfyUI has a module of its own called `nodes`."""
    code = (
        "import sys, runpy; sys.argv = ['runner', '--help']\n"
        "try: runpy.run_module('runner', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "import importlib.util; print(importlib.util.find_spec('nodes'))"
    )
    assert run_python(code, ROOT).splitlines()[-1] == "None"
