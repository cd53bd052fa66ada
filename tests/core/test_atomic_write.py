"""Atomic writes: the old file or the new one, whatever stops the writer, and nothing left beside it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from piying.core.atomic_write import atomic_write, write_bytes, write_text

PREAMBLE = f"""
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("conftest", {str(Path(__file__).parents[1] / "conftest.py")!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
from piying.core.atomic_write import atomic_write
"""


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.json"
    with atomic_write(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
        assert unfinished.parent == tmp_path and unfinished.name.startswith(".")
        assert not unfinished.name.endswith((".json", ".part")), "scans by ending pass it over"
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_what_was_there_survives_a_failure(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as unfinished:
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "a file cannot replace a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_errors_of_the_disk_come_through(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"x")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "gone" / "a") as unfinished:
        unfinished.touch()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    code = PREAMBLE + (
        "with atomic_write(Path(sys.argv[1]) / 'a') as unfinished:\n"
        "    unfinished.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=-1) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert (tmp_path / "a").read_text() == "old"
    (left,) = (path for path in tmp_path.iterdir() if path.name != "a")
    assert str(process.pid) in left.name, "whose it was can be told"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, start = tmp_path / "a", threading.Barrier(4)
    seen = set()

    def write(who: int) -> None:
        start.wait()
        for _ in range(50):
            write_text(path, f"{who}" * 5000)
            seen.add(path.read_text())

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen <= {f"{who}" * 5000 for who in range(4)} and len(seen) > 1
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_and_bytes_are_the_ordinary_ones(tmp_path):
    (tmp_path / "ordinary").touch()
    write_text(tmp_path / "a", "皮影\n")
    assert (tmp_path / "a").read_bytes() == "皮影\n".encode()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    write_bytes(tmp_path / ("x" * 255), memoryview(b"x"))
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]
