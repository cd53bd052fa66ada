"""Results are whole or not there, and there once."""

from __future__ import annotations

import sys
import threading

import pytest
from piying.core.errors import PiyingError
from piying.serve.results import result_store

ID = "0" * 32


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return result_store(str(tmp_path / "results"))
    pytest.importorskip("fsspec")
    return result_store(f"memory://{tmp_path.name}-{request.node.name}/results")


def attempt(store, number, text):
    folder = store.attempt_folder(ID, number)
    (folder / "video").mkdir()
    (folder / "video" / "a.txt").write_text(text)
    (folder / "b.txt").write_text("b")
    return folder


def test_the_first_attempt_is_kept(store):
    assert store.find(ID) is None
    first, second = attempt(store, 1, "first"), attempt(store, 1, "second")
    files = store.publish(ID, first)
    assert [file["name"] for file in files] == ["b.txt", "video/a.txt"]
    assert store.publish(ID, second) == files == store.find(ID)
    assert b"".join(store.read(ID, "video/a.txt")) == b"first"
    assert not first.exists() and not second.exists()
    store.delete(ID)
    assert store.find(ID) is None
    store.delete(ID)


def test_attempts_that_end_together_leave_one(store):
    folders = [attempt(store, number, str(number)) for number in range(8)]
    found = []
    threads = [threading.Thread(target=lambda one=one: found.append(store.publish(ID, one))) for one in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    content = b"".join(store.read(ID, "video/a.txt")).decode()
    assert content in "01234567" and [file["name"] for file in store.find(ID)] == ["b.txt", "video/a.txt"]


def test_a_job_without_files_has_results(store):
    assert store.publish(ID, store.attempt_folder(ID, 1)) == () == store.find(ID)


def test_an_attempt_that_was_killed_is_no_result(tmp_path):
    store = result_store(str(tmp_path))
    attempt(store, 1, "half")
    assert store.find(ID) is None
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "result.json").write_text('[{"name": "a')
    assert store.find(ID) is None


def test_links_are_no_results(tmp_path):
    store = result_store(str(tmp_path / "results"))
    folder = store.attempt_folder(ID, 1)
    (folder / "passwords").symlink_to("/etc/passwd")
    assert store.publish(ID, folder) == ()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PiyingError, match="a file stands where a folder is needed"):
        result_store(str(tmp_path / "file" / "results")).attempt_folder(ID, 1)


def test_an_address_that_nothing_here_knows_is_refused(monkeypatch):
    pytest.importorskip("fsspec")
    with pytest.raises(PiyingError, match="--results nothing://x: Protocol not known: nothing. Install"):
        result_store("nothing://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(PiyingError, match="Install what is missing, or name a folder"):
        result_store("s3://bucket")
