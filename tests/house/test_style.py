"""The checks a reviewer would run: ruff, mypy, and the measures of the style we keep."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("core", "nodes", "runner", "training")


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
    for part in ("core", "nodes", "runner"):
        shutil.copytree(ROOT / part, pack / part, ignore=shutil.ignore_patterns("__pycache__"))
    packages = [argument for part in ("core", "nodes", "runner") for argument in ("-p", f"piying.{part}")]
    ran = tool("mypy", "--config-file", str(ROOT / "pyproject.toml"), *packages, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    ran = tool("mypy", "--strict", "--follow-imports=skip", str(ROOT / "install.py"), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout


def functions() -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for path in [ROOT / "install.py", *(p for part in PARTS for p in (ROOT / part).rglob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(f"{path.name}:{n.name}", n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return found


def lines(function: ast.FunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_functions_are_short():
    lengths = {name: lines(function) for name, function in functions()}
    assert statistics.median(lengths.values()) <= 9
    assert {name: length for name, length in lengths.items() if length > 80} == {}


def test_functions_say_what_they_return():
    assert [name for name, function in functions() if function.returns is None] == []


def test_no_notes_to_self():
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    texts = {p: p.read_text(encoding="utf-8") for part in PARTS for p in (ROOT / part).rglob("*.py")}
    assert [path for path, text in texts.items() if any(mark in text for mark in marks)] == []
