"""What the Comfy Registry reads: its rules for pyproject.toml, and an archive without what .comfyignore names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parents[2]
ACCELERATORS = {
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
}
SYSTEMS = ("Microsoft", "POSIX", "MacOS", "OS Independent")
VERSION = re.compile(r"(==|>=|<=|!=|~=|>|<)?\s*\d+\.\d+\.\d+(-[a-zA-Z0-9]+)?")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tagged(project, kind):
    return [one.removeprefix(kind) for one in project["project"]["classifiers"] if one.startswith(kind)]


def test_the_name_is_one_of_the_registry(project):
    name = project["project"]["name"]
    assert len(name) < 100
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", name)
    assert "comfyui" not in name.lower()


def test_versions_have_three_digits(project):
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert all(VERSION.fullmatch(part.strip()) for part in project["tool"]["comfy"]["requires-comfyui"].split(","))


def test_it_says_what_it_runs_on(project):
    assert tagged(project, "Operating System :: ")
    assert all(one.startswith(SYSTEMS) for one in tagged(project, "Operating System :: "))
    assert set(tagged(project, "Environment :: ")) <= ACCELERATORS


def test_licence_description_and_publisher_are_given(project):
    assert (ROOT / project["project"]["license"]["file"]).is_file()
    assert project["project"]["description"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", project["tool"]["comfy"]["PublisherId"])


def test_addresses_are_of_one_repository(project):
    """None before the pack is published; a picture from another repository would be somebody else's."""
    urls, comfy = project["project"].get("urls", {}), project["tool"]["comfy"]
    pictures = [comfy[name] for name in ("Icon", "Banner") if name in comfy]
    repository = urls.get("Repository", "")
    assert all(re.fullmatch(r"https://\S+", url) for url in [*urls.values(), *pictures])
    assert not (pictures and not repository)
    owner = repository.removeprefix("https://github.com/")
    assert all(url.startswith(f"https://raw.githubusercontent.com/{owner}/") for url in pictures)


def archived():
    """The tracked files that are not ignored: every pattern names a folder from the root."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    folders = tuple(line for line in lines if line and not line.startswith("#"))
    assert all(folder.endswith("/") and (ROOT / folder).is_dir() for folder in folders)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and not name.startswith(folders)]


def test_the_archive_runs_without_what_is_left_out(tmp_path):
    pack = tmp_path / "piying"
    for name in archived():
        place = pack / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place)
    assert not (pack / "tests").exists()
    command = [sys.executable, "-m", "runner", "workflows/t2v.json", "--check", "--device", "cpu"]
    done = subprocess.run(command, cwd=pack, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
