"""The shipped workflows in ComfyUI give what the headless runner gives, to the bit."""

from __future__ import annotations

import json

import pytest
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.headless import assert_same_frames, read_frames, run_headless, shown_files, with_frames_saved

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module", params=["t2v", "t2i"])
def run(request, comfyui):
    """(name, graph, history entry) of one run of a shipped workflow with an extra SaveImage."""
    prompt = api_form(WORKFLOWS / f"{request.param}.json")
    prompt = with_frames_saved(prompt, f"comfyui/{request.param}")
    return request.param, prompt, comfyui.run(prompt, {"extra_pnginfo": {}})


def test_runs_to_the_end(run):
    _, _, entry = run
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
    assert entry["status"]["completed"] is True


def test_frames_equal_the_headless_run(run, comfyui, tmp_path):
    name, prompt, _ = run
    headless = run_headless(prompt, tmp_path)
    assert_same_frames(read_frames(comfyui.output_dir / "comfyui", name), read_frames(headless / "comfyui", name))


def test_what_ran_is_in_the_png(run, comfyui):
    from PIL import Image

    name, _, _ = run
    first = sorted((comfyui.output_dir / "comfyui").glob(f"{name}_*.png"))[0]
    with Image.open(first) as image:
        assert json.loads(image.text["piying"])


def test_saved_files_run_headless(run, comfyui, tmp_path):
    name, _, entry = run
    files = shown_files(entry, comfyui.output_dir)
    saved = [file for file in files if file.suffix == ".mp4"] if name == "t2v" else files
    again = run_headless(saved[0], tmp_path)
    assert_same_frames(read_frames(comfyui.output_dir / "comfyui", name), read_frames(again / "comfyui", name))
