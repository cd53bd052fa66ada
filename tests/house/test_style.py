"""The checks a reviewer would run: ruff, mypy, and the measures of the style we keep."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .measures import SMALL, Part

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("core", "nodes", "runner", "serve", "training")


def tool(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed; `python install.py --dev` does it")
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True)


def test_ruff_finds_nothing():
    ran = tool("ruff", "check", ".")
    assert ran.returncode == 0, ran.stdout


def test_ruff_would_format_nothing():
    ran = tool("ruff", "format", "--check", ".")
    assert ran.returncode == 0, ran.stdout


def test_mypy_finds_nothing(tmp_path):
    """The pack's folder may have any name; mypy needs one that is an identifier."""
    pack = tmp_path / "piying"
    pack.mkdir()
    shutil.copy(ROOT / "__init__.py", pack)
    for part in ("core", "nodes", "runner", "serve"):
        shutil.copytree(ROOT / part, pack / part, ignore=shutil.ignore_patterns("__pycache__"))
    packages = [argument for part in ("core", "nodes", "runner", "serve") for argument in ("-p", f"piying.{part}")]
    ran = tool("mypy", "--config-file", str(ROOT / "pyproject.toml"), *packages, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    ran = tool("mypy", "--strict", "--follow-imports=skip", str(ROOT / "install.py"), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> list[tuple[str, Function]]:
    found = []
    for path in [ROOT / "install.py", *(p for part in PARTS for p in (ROOT / part).rglob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(f"{path.name}:{n.name}", n) for n in ast.walk(tree) if isinstance(n, Function)]
    return found


def lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_functions_are_no_longer_than_a_screen():
    lengths = {name: lines(function) for name, function in functions()}
    assert {name: length for name, length in lengths.items() if length > 80} == {}


# Files with a whole job each, and no function that exists to be called once by its neighbour. Node files
# are imported by name in nodes/__init__.py, which these figures do not see.
BOUNDS = {
    "core": {"small": 0.1, "one_importer": 0.22, "called_once": 0.6, "comments": 4.0},
    "runner": {"small": 0.12, "one_importer": 0.34, "called_once": 0.58, "comments": 4.0},
    "serve": {"small": 0.1, "one_importer": 0.34, "called_once": 0.68, "comments": 4.0},
    "nodes": {"small": 0.27, "one_importer": 0.25, "called_once": 0.45, "comments": 3.5},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_files_have_a_whole_job(name):
    part, bounds = Part(ROOT, (name,)), BOUNDS[name]
    sizes, importers = part.lines(), part.importers()
    small = [module for module, count in sizes.items() if count < SMALL]
    assert len(small) <= bounds["small"] * len(sizes), small
    single = [module for module in sizes if importers[module] == 1]
    assert len(single) <= bounds["one_importer"] * len(sizes), single


@pytest.mark.parametrize("name", BOUNDS)
def test_private_functions_have_a_meaning_of_their_own(name):
    part = Part(ROOT, (name,))
    once, private = part.called_once()
    assert once <= BOUNDS[name]["called_once"] * private


@pytest.mark.parametrize("name", BOUNDS)
def test_comments_say_why(name):
    assert Part(ROOT, (name,)).comments() >= BOUNDS[name]["comments"]


def test_no_modules_import_each_other():
    """Imports inside functions count; those for type checkers do not."""
    assert Part(ROOT, ("core", "runner", "nodes", "serve")).cycles() == []


# Called by position, by others: urllib its handlers, torch its modules. ComfyUI looks for the names of
# VALIDATE_INPUTS' parameters among the positional ones.
POSITIONAL = {"http_error_default", "redirect_request", "forward", "VALIDATE_INPUTS"}


def node_methods(tree: ast.Module) -> set[str]:
    """Return what the FUNCTION attributes of a file name: ComfyUI calls those by the names of the inputs."""
    assigned = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
    return {n.value.value for n in assigned for target in n.targets if getattr(target, "id", "") == "FUNCTION"}


def test_from_the_fifth_on_arguments_have_names():
    found = []
    for path in (path for part in ("core", "nodes", "runner", "serve") for path in (ROOT / part).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        allowed = POSITIONAL | node_methods(tree)
        for function in (n for n in ast.walk(tree) if isinstance(n, Function)):
            arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
            by_position = len(arguments) - (arguments[:1] in (["self"], ["cls"]))
            if by_position > 4 and function.name not in allowed:
                found.append(f"{path.name}:{function.name} takes {by_position} by position")
    assert found == []


def test_functions_say_what_they_return():
    assert [name for name, function in functions() if function.returns is None] == []


def test_no_name_of_a_module_is_assigned_twice():
    """Two changes may each add a constant, and the later one would change the meaning of the earlier."""
    twice = []
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            statements = [one for one in ast.parse(path.read_text("utf-8")).body if isinstance(one, ast.Assign)]
            targets = [target for one in statements for target in one.targets]
            names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            twice += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(set(names)) if names.count(name) > 1]
    assert twice == []


def test_no_notes_to_self():
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    texts = {p: p.read_text(encoding="utf-8") for part in PARTS for p in (ROOT / part).rglob("*.py")}
    assert [path for path, text in texts.items() if any(mark in text for mark in marks)] == []
