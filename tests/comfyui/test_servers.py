"""`--server` with a real ComfyUI: what comes back is what a run here makes, and what goes wrong there is told here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.headless import ROOT, assert_same_frames, read_frames, run_headless, with_frames_saved
from piying.tests.comfyui.server import request_json, running_server

pytestmark = pytest.mark.comfyui
LONG = ["--set", "PiyingVACESample.steps=400", "--set", "PiyingExpandPrompt.max_new_tokens=4"]


def start(workflow, *options):
    """Start the command; ComfyUI's Python runs it, which has aiohttp."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-m", "runner", str(workflow), *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def on_server(workflow, server, folder, *options):
    """Run a workflow on a server; return (exit code, stdout, stderr)."""
    process = start(workflow, "--server", server.url, "--output", folder, *options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def write(path, workflow):
    path.write_text(json.dumps(workflow), encoding="utf-8")
    return path


def wait_for_job(server, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running = request_json(f"{server.url}/queue")[1]["queue_running"]
        if running:
            return running[0][1]
        time.sleep(0.1)
    raise TimeoutError("no job came")


def test_a_video_is_that_of_a_run_here(comfyui, tmp_path):
    workflow = with_frames_saved(api_form(WORKFLOWS / "t2v.json"), "remote/t2v")
    path = write(tmp_path / "workflow.json", workflow)
    values = ("--seed", "11", "--set", "PiyingVACESample.steps=4", "--set", "PiyingExpandPrompt.max_new_tokens=8")
    code, out, err = on_server(path, comfyui, tmp_path / "there", *values, "--json")
    assert code == 0, err
    here = run_headless(path, tmp_path, "--device", "cpu", *values)
    assert_same_frames(read_frames(tmp_path / "there" / "remote", "t2v"), read_frames(here / "remote", "t2v"))
    events = [json.loads(line) for line in out.splitlines()]
    phases = {event["phase"] for event in events if event["event"] == "progress"}
    assert {"Sampling", "Decoding"} <= phases, "the phases of Piying's nodes did not come"
    assert [event for event in events if event["event"] == "saved" and event["path"].endswith(".mp4")]
    samplers = [event for event in events if event["event"] == "executed" and "piying" in event["output"]]
    assert samplers, "no record of a sampler came"
    assert not any("piying_frames" in event["output"] for event in samplers), "sheets were made for nobody"


def test_a_picture_goes_there_and_its_negative_comes_back(comfyui, tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(3)
    pictures = {"remote cat.png": rng.integers(0, 255, (8, 12, 3), "uint8"), "sub/remote cat.png": None}
    pictures["sub/remote cat.png"] = 255 - pictures["remote cat.png"]
    for name, pixels in pictures.items():
        path = tmp_path / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    workflow = {}
    for number, name in enumerate(pictures):
        workflow |= {
            f"{number}1": {"class_type": "LoadImage", "inputs": {"image": name}},
            f"{number}2": {"class_type": "ImageInvert", "inputs": {"image": [f"{number}1", 0]}},
            f"{number}3": {
                "class_type": "SaveImage",
                "inputs": {"images": [f"{number}2", 0], "filename_prefix": f"n{number}"},
            },
        }
    path = write(tmp_path / "workflow.json", workflow)
    code, _, err = on_server(path, comfyui, tmp_path / "out", "--input", tmp_path / "input")
    assert code == 0, err
    for number, pixels in enumerate(pictures.values()):
        with Image.open(tmp_path / "out" / f"n{number}_00001_.png") as image:
            # ComfyUI rounds down as it saves.
            assert np.abs(np.asarray(image).astype(int) + pixels - 255).max() <= 1
            assert "workflow" not in image.text and "prompt" in image.text
    # Another picture of the same name does not take the place of the one that is there.
    Image.fromarray(pictures["sub/remote cat.png"]).save(tmp_path / "input" / "remote cat.png")
    code, _, err = on_server(path, comfyui, tmp_path / "out", "--input", tmp_path / "input")
    assert code == 0, err
    assert sorted(each.name for each in (comfyui.base / "input").glob("remote cat*")) == [
        "remote cat (1).png",
        "remote cat.png",
    ]


def test_a_node_that_fails_is_told_as_here(comfyui, tmp_path):
    """A linked value is checked by the node alone, when it runs."""
    workflow = api_form(WORKFLOWS / "t2v.json")
    sampler = next(node for node in workflow.values() if node["class_type"] == "PiyingVACESample")
    workflow["99"] = {"class_type": "PrimitiveInt", "inputs": {"value": 18}}
    sampler["inputs"]["num_frames"] = ["99", 0]
    path = write(tmp_path / "workflow.json", workflow)
    code, _, err = on_server(path, comfyui, tmp_path / "out", "--set", "PiyingExpandPrompt.max_new_tokens=4")
    assert code == 1, err
    assert "num_frames is 18. Wan VACE takes 4n+1 frames" in err.splitlines()[-1], err
    assert err.splitlines()[-1].startswith("error: VACE Sample (node ")


def test_ctrl_c_cancels_the_job_there_and_no_other(comfyui, tmp_path):
    process = start(WORKFLOWS / "t2v.json", "--server", comfyui.url, "--output", tmp_path / "out", *LONG)
    job = wait_for_job(comfyui)
    other = comfyui.post(
        {
            "1": {"class_type": "PiyingSampleImage", "inputs": {"sample": "first frame"}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
    )[1]["prompt_id"]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the job is cancelled there" in err, err
    assert comfyui.wait(job, 60)["status"]["completed"] is False
    assert comfyui.wait(other, 60)["status"]["completed"] is True
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_server_that_is_killed_gives_its_job_to_the_other(comfyui, tmp_path):
    with running_server(tmp_path / "second") as second:
        process = start(
            *(WORKFLOWS / "t2v.json", "--server", second.url, "--server", comfyui.url, "--output", tmp_path / "out"),
            *("--set", "PiyingVACESample.steps=30", "--set", "PiyingExpandPrompt.max_new_tokens=4", "--seed", "12"),
        )
        wait_for_job(second)
        time.sleep(1)
        second.process.kill()
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"{second.url}: nothing listens there." in err and f"Runs on {comfyui.url}." in err
    assert Path(out.strip()).is_file()
