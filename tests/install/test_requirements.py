"""The requirements are written in two places, for pip and for the registry; both say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lines_of(file: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def array_in_pyproject(key: str) -> list[str]:
    """Read one array of strings; Python 3.10 has no TOML reader, and such an array is also Python."""
    match = re.search(rf"^{key} = (\[.*?\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert match, key
    return ast.literal_eval(match[1])


def test_requirements_are_pyproject_dependencies_but_opencv(load_install):
    assert sorted([*lines_of("requirements.txt"), load_install().OPENCV]) == sorted(array_in_pyproject("dependencies"))


def test_dev_requirements_are_the_dev_extra():
    assert lines_of("requirements-dev.txt") == array_in_pyproject("dev")


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_nothing_that_could_move_torch_is_named(file):
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in lines_of(file)}
    moves_torch = {"torch", "torchvision", "torchaudio", "xformers", "triton"}
    assert not names & moves_torch
    assert not [name for name in names if name.startswith("opencv")]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_install_can_read_every_line(file):
    """It knows names and lower bounds only, and pip may read the file in a legacy encoding."""
    for line in lines_of(file):
        assert re.fullmatch(r"[A-Za-z0-9._-]+(>=\d+(\.\d+)*)?", line), line
    assert (ROOT / file).read_text(encoding="utf-8").isascii()
