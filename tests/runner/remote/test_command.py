"""`python -m runner WORKFLOW --server URL`, as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from piying.tests.runner.remote.fake_comfyui import failure, fake_comfyui, picture_workflow

unix = pytest.mark.skipif(os.name == "nt", reason="signals are Unix's")


@pytest.fixture
def workflow(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"cat")
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(picture_workflow()))
    return path


def test_files_on_stdout_and_sentences_on_stderr(command, workflow):
    with fake_comfyui() as fake:
        ran = command(workflow, "--server", fake.url, "--input", workflow.parent)
        assert (ran.returncode, ran.stdout) == (0, f"{command.output / 'a_00001_.png'}\n"), ran.stderr
        assert f"Runs on {fake.url}." in ran.stderr and ran.stderr.splitlines()[-1].startswith("Done in ")
        fake.status = failure("2", "builtins.ValueError", "odd")
        ran = command(workflow, "--server", fake.url, "--input", workflow.parent, "--quiet", "--verbose")
        assert ran.returncode == 1 and "  File x" in ran.stderr
        line = "error: Foreign (node 2): ValueError: odd. Run with --verbose for the traceback."
        assert line in ran.stderr.splitlines()


def test_check_and_export(command, workflow, tmp_path):
    with fake_comfyui() as fake:
        ran = command(workflow, "--server", fake.url, "--input", workflow.parent, "--check")
        assert ran.returncode == 0 and f"3 nodes, nothing wrong on {fake.url} (0 waiting)." in ran.stderr
        ran = command(workflow, "--server", fake.url, "--set", "2.amount=99", "--export-api", tmp_path / "api.json")
        assert ran.returncode == 0
        assert "would be refused: Foreign (node 2): amount is 99. It must be at most 9." in ran.stderr
        assert "would be refused: LoadImage (node 1): image is 'cat.png', which is neither in" in ran.stderr
        assert json.loads((tmp_path / "api.json").read_text())["2"]["inputs"]["amount"] == 99
        assert not fake.jobs and not fake.input


@pytest.mark.parametrize(
    "option",
    ["--plan", "--device=cpu", "--models=.", "--custom-nodes=.", "--comfyui=.", "--vram-gb=16", "--object-info=x"],
)
def test_options_of_this_machine_are_refused(command, workflow, option):
    ran = command(workflow, "--server", "http://127.0.0.1:9", option)
    name = option.partition("=")[0]
    assert ran.returncode == 2 and f"argument {name}: not allowed with argument --server" in ran.stderr


@unix
def test_ctrl_c_cancels_the_job_there(command, workflow):
    with fake_comfyui(seconds=60) as fake:
        process = command.start(workflow, "--server", fake.url, "--input", workflow.parent, "--output", command.output)
        deadline = time.monotonic() + 30
        while not fake.jobs and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert fake.interrupted == list(fake.jobs)
    assert err.splitlines()[-1] == "cancelled: stopped; no unfinished file is left."
    assert command.files() == []
