"""Folder scans: order, depth, markers, links, and what cannot be read."""

from __future__ import annotations

import os

import pytest
from piying.core.files import scan
from piying.core.files.scan import find_files, find_folders, name_left_out, named_together

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


@links
def test_links_to_each_other_or_to_a_whole_disk_hide_nothing_beside_them(tmp_path, monkeypatch, caplog):
    for one in range(9):
        touch(tmp_path, f"models/a{one}/x{one}.bin")
        for other in range(9):
            (tmp_path / f"models/a{one}/l{other}").symlink_to(tmp_path / f"models/a{other}")
    touch(tmp_path, "models/z/good.bin", *(f"disk/{one}/{other}.bin" for one in range(20) for other in range(20)))
    (tmp_path / "models" / "disk").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(scan, "MAX_LINKED", 400)
    seen = found(tmp_path / "models", 8)
    assert [name for name in seen if name.startswith("a")] == [f"a{one}/x{one}.bin" for one in range(9)]
    assert seen[-1] == "z/good.bin"
    assert list(find_folders(tmp_path / "models", 8, ["config.json"])) == []
    said = [line for line in caplog.messages if "more than 400" in line]
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'models' / 'disk'} is left out")


def test_a_folder_that_is_listed_but_not_read_stops_nothing(tmp_path, caplog):
    touch(tmp_path, "a/config.json", "a/x.bin", "b/y.bin")

    def owned(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    assert [path.name for path in find_files(tmp_path, 3, ENDINGS, ["config.json"], owned=owned)] == ["y.bin"]
    assert list(find_folders(tmp_path, 3, ["config.json"], owned)) == []
    assert caplog.messages == [f"{tmp_path / 'a'} is left out: it cannot be read (Permission denied)."]


@links
def test_a_link_is_followed_once_and_a_path_without_links_is_the_one_given(tmp_path):
    touch(tmp_path, "models/z/own.bin", "disk/far/away.bin")
    root = tmp_path / "models"
    (root / "a").symlink_to(root / "z")
    (root / "b").symlink_to(tmp_path / "disk" / "far")
    (root / "c").symlink_to(tmp_path / "disk")
    assert found(root) == ["b/away.bin", "z/own.bin"]
    real = {entry.path: entry.real for entry in scan.scan(root, 3) if entry.kind == "file"}
    assert real[str(root / "b" / "away.bin")] == str((tmp_path / "disk" / "far" / "away.bin").resolve())


@links
def test_a_link_to_too_much_hides_nothing_that_another_leads_to(tmp_path, monkeypatch, caplog):
    touch(tmp_path, *(f"disk/{number}.bin" for number in range(20)), "disk/models/good.bin")
    root = tmp_path / "models"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "disk")
    (root / "b").symlink_to(tmp_path / "disk" / "models")
    monkeypatch.setattr(scan, "MAX_LINKED", 20)
    assert found(root) == ["b/good.bin"]
    assert caplog.messages == [
        f"{root / 'a'} is left out: it is a link to more than 20 files and folders; link to the models among them."
    ]


def test_a_folder_of_too_much_is_listed_in_part_and_hides_nothing_beside_it(tmp_path, monkeypatch, caplog):
    touch(tmp_path, *(f"a/{number:02}.bin" for number in range(50)), "b/c/good.bin")
    monkeypatch.setattr(scan, "MAX_ENTRIES", 40)
    seen = found(tmp_path)
    assert seen[-1] == "b/c/good.bin"
    assert len(seen) == 20
    assert caplog.messages == [f"{tmp_path / 'a'} is listed in part: there are more than 19 files and folders in it."]
    caplog.clear()
    monkeypatch.setattr(scan, "MAX_ENTRIES", 2)
    assert found(tmp_path / "b") == ["c/good.bin"]
    monkeypatch.setattr(scan, "MAX_ENTRIES", 1)
    assert found(tmp_path / "b") == []
    assert caplog.messages == [f"{tmp_path / 'b'} is listed in part: there are more than 1 files and folders in it."]


def test_names_of_the_top_are_passed_over(tmp_path):
    touch(tmp_path, "vae/x.bin", "a/vae/y.bin")
    entries = scan.scan(tmp_path, 3, without=["vae"])
    assert [entry.path for entry in entries if entry.kind == "file"] == [str(tmp_path / "a" / "vae" / "y.bin")]


def test_what_is_passed_over_is_named_in_a_few_lines(tmp_path, caplog):
    scan._named.clear()
    with named_together():
        for number in range(3000):
            name_left_out(tmp_path / f"model-{number:04}", "there is no safetensors file in this folder.")
        for number in range(2000):
            name_left_out(tmp_path / "lib" / str(number) / "x.bin", "it is neither.")
        name_left_out(tmp_path / "vae" / "x.pth", "it is cut short")
    assert len(caplog.messages) < 4
    assert any(
        "model-0000, model-0001, model-0002, … The first is left out: there is no" in m for m in caplog.messages
    )
    counted = [int(message.split(": ")[1].split()[0]) for message in caplog.messages if "files and folders" in message]
    assert sum(counted) + len(caplog.messages) - len(counted) == 5001
    caplog.clear()
    with named_together():
        name_left_out(tmp_path / "model-0001", "there is no safetensors file in this folder.")
        name_left_out(tmp_path / "vae" / "y.pth", "it is cut short")
    assert caplog.messages == [f"{tmp_path / 'vae' / 'y.pth'} is left out: it is cut short."]
