"""The process around a run: outputs that are closed, gone or full, and signals that come one after the other."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from piying.core import process
from piying.core.host import headless
from piying.core.host.headless import HeadlessHost
from piying.core.process import Interruption, Output, standard_outputs
from piying.runner import cli
from piying.tests.runner.conftest import ROOT

unix = pytest.mark.skipif(os.name == "nt", reason="descriptors and signals are Unix's")
PICTURE = {
    "1": {"class_type": "PiyingSampleImage", "inputs": {"sample": "first frame"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
}


@unix
def test_a_run_outlives_its_outputs(tmp_path):
    """The files are there, whoever reads; only an output that is full is an error."""
    (tmp_path / "picture.json").write_text(json.dumps(PICTURE))
    ways = {
        "--json >&-": 0,
        ">&- 2>&-": 0,
        "--json | head -c 0": 0,
        ">/dev/full": 1,
        "--help >/dev/full": 1,
        "--nothing-of-this-name >/dev/full": 2,
        "--check >/dev/full 2>/dev/full": 0,
    }
    running = {}
    for number, way in enumerate(ways):
        run = f"{sys.executable} -m runner {tmp_path / 'picture.json'} --output {tmp_path / str(number)} {way}"
        command = ["bash", "-c", f"{run}; exit ${{PIPESTATUS[0]}}"]
        running[way] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for number, (way, run) in enumerate(running.items()):
        out, err = run.communicate(timeout=120)
        assert run.returncode == ways[way], (way, out, err)
        assert "Traceback" not in err and "Exception ignored" not in err, way
        files = [path.name for path in tmp_path.glob(f"{number}/*")]
        assert files == ([] if way.startswith(("--check", "--help", "--nothing")) else ["a_00001_.png"]), way
        assert ("stdout cannot be written (No space left on device)" in err) == (ways[way] == 1)


@unix
def test_text_that_cannot_be_written_is_dropped():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        gone = Output(pipe)
        for _ in range(3):
            assert gone.write("text\n") == 5
            gone.flush()
        assert gone.failure is None
    with Path("/dev/full").open("w") as device:
        full = Output(device)
        full.write("text\n")
        full.flush()
        full.write("more\n")
        full.flush()
    assert full.failure is not None and full.failure.errno == errno.ENOSPC


def test_characters_that_an_encoding_lacks_are_escaped(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        output = Output(file)
        output.write("红 é\udcff 😀\n")
        assert not output.isatty() and output.encoding == "ascii"
    assert (tmp_path / "out").read_text() == "\\u7ea2 \\xe9\\udcff \\U0001f600\n"


def test_outputs_that_are_none_take_what_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with standard_outputs():
        sys.stdout.write("text")
        print("text", file=sys.stderr)
    assert sys.stdout is sys.stderr is None


@pytest.fixture
def interruption():
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT)
    with interruption.caught():
        yield interruption
    assert signal.getsignal(signal.SIGINT) is before


@unix
@pytest.mark.parametrize(("first", "code"), [("SIGINT", 130), ("SIGTERM", 130), ("SIGHUP", 129)])
def test_the_first_signal_stops_the_run_and_later_ones_do_not_disturb_the_clean_up(interruption, first, code):
    interruption.check()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(getattr(signal, first))
    for name in process.EXIT_CODES:
        signal.raise_signal(getattr(signal, name))
    assert interruption.exit_code == code
    with pytest.raises(KeyboardInterrupt):
        interruption.check()  # as if a library had swallowed the first
    interruption.end()
    interruption.check()
    signal.raise_signal(signal.SIGINT)


@unix
def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption = Interruption()
    with interruption.caught():
        signal.raise_signal(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN
    assert interruption.exit_code is None


@unix
def test_a_clean_up_that_does_not_end_is_ended_by_one_more_signal(interruption, monkeypatch):
    codes = []
    monkeypatch.setattr(process.os, "_exit", codes.append)
    monkeypatch.setattr(process, "PATIENCE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert codes == [130]


@unix
def test_what_fails_after_a_swallowed_signal_is_cancelled(monkeypatch):
    """As numpy does where its import was interrupted."""

    def fail(*_):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr(cli, "_prepare_process", lambda *_: None)  # it adds to the loggers of this process
    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["workflow.json"]) == 130


def nobody():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("cache", [None, "file/cache"])
def test_where_no_cache_can_be_written_the_temp_folder_has_it(tmp_path, monkeypatch, caplog, cache):
    """As in a container that runs under a number no account has."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(headless.Path, "home", nobody)
    if cache is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    host = HeadlessHost(temp=tmp_path / "temp")
    assert host.cache_folder() == host.cache_folder() == tmp_path / "temp" / "cache"
    assert len(caplog.messages) == 1 and "Nothing is cached beyond this run" in caplog.text


def test_a_cache_that_is_not_there_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    assert HeadlessHost().cache_folder() == tmp_path / "new" / "cache" / "piying"
    assert (tmp_path / "new" / "cache" / "piying").is_dir()
