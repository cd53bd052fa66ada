"""JSON files: what is read, and what is refused with a sentence."""

from __future__ import annotations

import os

import pytest
from piying.core.errors import PiyingError
from piying.core.files import json_file
from piying.core.files.json_file import load_json, parse_json, read_json, read_json_or_empty

DEEP = b"[" * 60000


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, "é"]}


@pytest.mark.parametrize("content", [b"", b"{", DEEP, b'{"a": "\xff"}', b"[1]", b'"text"', b"\0" * 100, b"9" * 5000])
def test_what_holds_no_object_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(PiyingError, match=r"a\.json: .*Fetch it again"):
        read_json(path)
    assert read_json_or_empty(path) == {}


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}", encoding="utf-16")
    with pytest.raises(PiyingError, match="not in UTF-8; an editor may have saved it in another encoding"):
        read_json(tmp_path / "a.json")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(PiyingError, match="Install Piying anew"):
            read_json(path, "Install Piying anew.")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are Unix's")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(PiyingError, match="not a regular file"):
        read_json(tmp_path / "config.json")


def test_a_file_over_the_limit_is_not_parsed(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2]")
    assert load_json(tmp_path / "a.json", 6) == [1, 2]
    monkeypatch.setattr(json_file, "parse_json", lambda text: pytest.fail("was parsed"))
    with pytest.raises(ValueError, match="more than 5 bytes"):
        load_json(tmp_path / "a.json", 5)


def test_every_fault_of_a_text_is_a_value_error():
    assert parse_json(b'{"a": 1}') == parse_json('{"a": 1}') == {"a": 1}
    for text in (DEEP, DEEP.decode(), b"\xff", "{", ""):
        with pytest.raises(ValueError):
            parse_json(text)
