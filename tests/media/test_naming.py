"""Numbered names: ComfyUI's counting, no way out of the folder, no file lost or half written."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from piying.core.errors import PiyingError
from piying.core.media import naming

PREAMBLE = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("conftest", {str(Path(__file__).parents[1] / "conftest.py")!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
from piying.core.media import naming
"""


def save(folder: Path, prefix: str, text: str = "x", suffix: str = ".txt") -> Path:
    with naming.writing(folder, prefix, suffix) as out:
        out.path.write_text(text)
    return out.path


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], "Clip_00001_.png"),
        (["Clip_00001_.png"], "Clip_00002_.png"),
        (["Clip_00001_.png", "Clip_00007_.mp4"], "Clip_00008_.png"),
        (["Clip_00003_extra.txt"], "Clip_00004_.png"),
        (["Clip_other_00009_.png", "Clip2_00009_.png", "Clip.png", "Clip_.png"], "Clip_00001_.png"),
        (["Clip_99999_.png"], "Clip_100000_.png"),
        (["CLIP_00004_.PNG"], "Clip_00005_.png"),
        (["Clip_00012.png"], "Clip_00001_.png"),
    ],
)
def test_counts_as_comfyui_does(tmp_path, present, expected):
    for name in present:
        (tmp_path / name).touch()
    assert naming.numbered(tmp_path, "Clip", ".png").name == expected


@pytest.mark.comfyui
@pytest.mark.parametrize("prefix", ["ComfyUI", "video/ComfyUI", "a//b/./c", "%width%x%height%", "x_%year%-%month%"])
def test_agrees_with_comfyui_itself(tmp_path, prefix):
    root = os.environ.get("COMFYUI_PATH")
    if not root:
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout")
    for _ in range(2):
        save(tmp_path, prefix.replace("%width%", "64").replace("%height%", "48"))
    code = (
        "import sys, folder_paths; print(*folder_paths.get_save_image_path(sys.argv[1], sys.argv[2], 64, 48), sep='|')"
    )
    ran = subprocess.run([sys.executable, "-c", code, prefix, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    folder, name, counter, *_ = ran.stdout.strip().split("|")
    ours = naming.numbered(tmp_path, prefix, ".png", width=64, height=48)
    assert ours == Path(folder) / f"{name}_{int(counter):05}_.png"
    assert counter == "3"


def test_tokens(tmp_path):
    path = naming.numbered(
        tmp_path, "%year%/%width%x%height%-%hour%%minute%%second%-%unknown%", ".png", width=7, height=9
    )
    assert re.fullmatch(r"20\d\d/7x9-\d{6}-%unknown%_00001_\.png", path.relative_to(tmp_path).as_posix())
    assert path.parent.name == time.strftime("%Y")


@pytest.mark.parametrize(
    "prefix",
    [
        "../x",
        "a/../../x",
        "a/..",
        "..",
        "/etc/x",
        "\\\\server\\x",
        "..\\x",
        "C:\\x",
        "c:x",
        "a\0b",
        "",
        "/",
        "./.",
        "\ud800",
    ],
)
def test_a_prefix_that_leaves_the_folder_is_refused(tmp_path, prefix):
    with pytest.raises(PiyingError, match="filename_prefix .*inside the output folder"):
        save(tmp_path, prefix)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("-rf", "_-rf_00001_.txt"),
        ("con/nul.a", "_con/_nul.a_00001_.txt"),
        ("COM1/x", "_COM1/x_00001_.txt"),
        ("console/x", "console/x_00001_.txt"),
        ('take: 1?"<>|*\x01\n', "take_ 1_________00001_.txt"),
        ("dots./x. ", "dots/x_00001_.txt"),
        (".../x", "_/x_00001_.txt"),
        ("a\\b", "a/b_00001_.txt"),
        ("皮影/影", "皮影/影_00001_.txt"),
        ("video/", "video_00001_.txt"),
        ("100%d%s$(x)`y`;&'", "100%d%s$(x)`y`;&'_00001_.txt"),
    ],
)
def test_names_are_made_safe_for_every_system(tmp_path, prefix, expected):
    path = save(tmp_path, prefix)
    assert path.relative_to(tmp_path).as_posix() == expected
    assert path.read_text() == "x"


def test_writing_shows_the_file_only_when_it_is_whole(tmp_path):
    with naming.writing(tmp_path, "a", ".txt") as out:
        out.path.write_text("half")
        assert [name.name for name in tmp_path.iterdir()] == [out.path.name]
        assert out.path.name.startswith(".")
    assert [name.name for name in tmp_path.iterdir()] == ["a_00001_.txt"]
    assert out.path == tmp_path / "a_00001_.txt"


def test_a_saved_file_has_the_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").touch()
    assert save(tmp_path, "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError, PiyingError])
def test_an_interrupted_writer_leaves_nothing(tmp_path, error):
    with pytest.raises(error), naming.writing(tmp_path, "a", ".txt") as out:
        out.path.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_sigint_leaves_nothing(tmp_path):
    code = PREAMBLE + (
        "import time\n"
        "with naming.writing(Path(sys.argv[1]), 'a', '.txt') as out:\n"
        "    out.path.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert list(tmp_path.iterdir()) == []


def _racer(folder: str, who: int, start) -> None:
    start.wait()
    for turn in range(40):
        save(Path(folder), "race", f"{who} {turn}")


def _race(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    racers = [context.Process(target=_racer, args=(str(folder), who, start)) for who in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
    assert [racer.exitcode for racer in racers] == [0] * 4
    texts = {path.read_text() for path in folder.iterdir()}
    assert texts == {f"{who} {turn}" for who in range(4) for turn in range(40)}
    assert sorted(path.name for path in folder.iterdir()) == [f"race_{n:05}_.txt" for n in range(1, 161)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_racing_processes_never_share_a_number(tmp_path):
    _race(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_racing_processes_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    _race(tmp_path)


def test_a_failed_move_without_hard_links_frees_the_name(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(PiyingError, match="disk is full"):
        save(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_overwritten(tmp_path):
    (tmp_path / "a_00001_.txt").write_text("old")
    assert save(tmp_path, "a", "new").read_text() == "new"
    assert (tmp_path / "a_00001_.txt").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_00001_.txt", "a_00002_.txt"]


def test_a_name_taken_between_looking_and_linking(tmp_path, monkeypatch):
    monkeypatch.setattr(naming, "_highest", lambda *_: 0)
    (tmp_path / "a_00001_.txt").write_text("old")
    (tmp_path / "a_00002_.txt").symlink_to("nowhere")
    assert save(tmp_path, "a").name == "a_00003_.txt"
    assert (tmp_path / "a_00001_.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EFBIG, "larger than"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_of_the_disk_name_the_folder(tmp_path, monkeypatch, number, words):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "touch", fails)
    with pytest.raises(PiyingError) as caught:
        save(tmp_path, "sub/a")
    assert words in str(caught.value) and str(tmp_path / "sub") in str(caught.value)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "video").write_text("mine")
    for prefix in ("video/a", "video/b/a"):
        with pytest.raises(PiyingError, match=r"video.*a file stands where a folder is needed"):
            save(tmp_path, prefix)
    assert (tmp_path / "video").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PiyingError, match="no permission"):
        save(tmp_path, "a")
    tmp_path.chmod(0o700)


def test_a_name_too_long_is_known_before_the_work(tmp_path):
    with pytest.raises(PiyingError, match="a name of 270 bytes"), naming.writing(tmp_path, "影" * 90, ".png"):
        pytest.fail("the body ran")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["a" * 201, "猫" * 80, "b" * 250 + "/x"])
def test_a_name_that_no_file_system_holds_is_refused_before_anything_is_made(tmp_path, prefix):
    with pytest.raises(PiyingError, match="bytes; there is room for 200. Give a shorter one."):
        naming.numbered(tmp_path, prefix, ".mp4")
    assert naming.numbered(tmp_path, "a" * 200, ".mp4").name.endswith("a_00001_.mp4")
