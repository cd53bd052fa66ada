"""Folder scans: order, depth, markers, links, and what cannot be read."""

from __future__ import annotations

import os

import pytest
from piying.core.files.scan import find_files, find_folders

ENDINGS = (".bin", ".pt")
links = pytest.mark.skipif(os.name == "nt", reason="Windows lets administrators alone make links")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root, depth=3, markers=()):
    return [path.relative_to(root).as_posix() for path in find_files(root, depth, ENDINGS, markers)]


def test_files_come_by_name_and_those_of_a_subfolder_in_its_place(tmp_path):
    touch(tmp_path, "c.bin", "a.BIN", "b/z.pt", "b/a/x.bin", "b/other.txt")
    assert found(tmp_path) == ["a.BIN", "b/a/x.bin", "b/z.pt", "c.bin"]


def test_the_depth_is_kept(tmp_path):
    touch(tmp_path, "0.bin", "a/1.bin", "a/b/2.bin")
    assert found(tmp_path, 0) == ["0.bin"]
    assert found(tmp_path, 1) == ["0.bin", "a/1.bin"]


def test_a_marked_folder_stands_for_all_in_it(tmp_path):
    touch(tmp_path, "model/config.json", "model/x.bin", "model/unet/config.json", "model/unet/y.bin", "z/v.bin")
    assert found(tmp_path, markers=["config.json"]) == ["z/v.bin"]
    assert list(find_folders(tmp_path, 3, ["config.json"])) == [tmp_path / "model"]
    assert list(find_folders(tmp_path / "model", 0, ["config.json"])) == [tmp_path / "model"]
    assert list(find_folders(tmp_path, 0, ["config.json"])) == []


def test_a_folder_of_the_markers_name_marks_nothing(tmp_path):
    touch(tmp_path, "a/config.json/x.bin")
    assert list(find_folders(tmp_path, 3, ["config.json"])) == []


def test_hidden_folders_are_left_out(tmp_path):
    touch(tmp_path, ".cache/x.bin", ".cache/config.json", "a.bin")
    assert found(tmp_path) == ["a.bin"]
    assert list(find_folders(tmp_path, 3, ["config.json"])) == []


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert found(tmp_path / "missing") == []
    assert list(find_folders(tmp_path / "missing", 3, ["a"])) == []


@links
def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "models/a.bin", "elsewhere/b.bin")
    root = tmp_path / "models"
    (root / "in").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "self.bin").symlink_to("self.bin")
    (root / "gone.bin").symlink_to("nowhere.bin")
    (root / "also.bin").symlink_to(root / "a.bin")
    assert found(root, 50) == ["a.bin", "also.bin", "in/b.bin"]


@links
def test_pipes_and_folders_of_others_are_left_out(tmp_path):
    touch(tmp_path, "closed/x.bin", "a.bin")
    os.mkfifo(tmp_path / "pipe.bin")
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "closed").chmod(0)
    try:
        seen = found(tmp_path, markers=["config.json"])
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert seen == (["a.bin", "closed/x.bin"] if os.geteuid() == 0 else ["a.bin"])
