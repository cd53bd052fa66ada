"""`python -m runner`: what it makes, what it says, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from piying.core.media.metadata import read_workflow
from piying.core.media.video import read_frames

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "PiyingVACESample.steps=2", "--set", "PiyingExpandPrompt.max_new_tokens=4"]
LONG = ["--set", "PiyingVACESample.steps=1000", "--set", "PiyingExpandPrompt.max_new_tokens=4"]


def frames(path):
    return np.stack(list(read_frames(path)))


def test_text_to_video_prints_the_path_of_an_mp4(finished):
    command, ran = finished
    assert ran.returncode == 0, ran.stderr
    path = Path(ran.stdout.strip())
    assert command.files() == [path]
    assert path.name == "piying_t2v_00001_.mp4"
    assert frames(path).shape == (17, 64, 96, 3)
    assert "built-in toy model" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_file_is_what_players_expect(finished):
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]
    path = finished[1].stdout.strip()
    shown = json.loads(subprocess.run([*probe, path], capture_output=True, check=True).stdout)
    (stream,) = shown["streams"]
    expected = {
        "codec_name": "h264",
        "pix_fmt": "yuv420p",
        "width": 96,
        "height": 64,
        "r_frame_rate": "16/1",
        "nb_read_frames": "17",
        "color_space": "bt709",
        "color_primaries": "bt709",
        "color_transfer": "bt709",
        "color_range": "tv",
    }
    assert {name: stream[name] for name in expected} == expected
    data = Path(path).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "faststart"
    assert {"prompt", "workflow"} <= set(shown["format"]["tags"])


def test_what_ran_is_written_into_the_file(finished):
    texts = read_workflow(Path(finished[1].stdout.strip()))
    prompt = json.loads(texts["prompt"])
    (sampler,) = [node for node in prompt.values() if node["class_type"] == "PiyingVACESample"]
    assert sampler["inputs"]["steps"] == 2
    assert sampler["inputs"]["shift"] == 16.0
    records = json.loads(texts["piying"]).values()
    assert {record["model"] for record in records} == {"built-in"}
    assert any("expanded" in record for record in records)


def test_the_workflow_in_the_file_has_the_values_of_the_command_line(finished):
    workflow = json.loads(read_workflow(Path(finished[1].stdout.strip()))["workflow"])
    (sampler,) = [node for node in workflow["nodes"] if node["type"] == "PiyingVACESample"]
    assert 2 in sampler["widgets_values"]
    assert 20 not in sampler["widgets_values"]


def test_running_the_mp4_makes_the_same_frames(finished, command):
    original = Path(finished[1].stdout.strip())
    ran = command(original, "--quiet")
    assert ran.returncode == 0, ran.stderr
    again = Path(ran.stdout.strip())
    assert np.array_equal(frames(again), frames(original))
    assert read_workflow(again)["prompt"] == read_workflow(original)["prompt"]


def test_text_to_image_and_running_the_png_again(command):
    ran = command("workflows/t2i.json", "--set", "PiyingHunyuanDiT.steps=2")
    assert ran.returncode == 0, ran.stderr
    first = Path(ran.stdout.strip())
    assert first.name == "piying_t2i_00001_.png"
    ran = command(first)
    assert ran.returncode == 0, ran.stderr
    second = Path(ran.stdout.strip())
    assert second.name == "piying_t2i_00002_.png"
    assert first.read_bytes()[-2000:] == second.read_bytes()[-2000:]


def test_a_newer_file_never_takes_an_older_ones_name(finished, command):
    shutil.copytree(finished[0].output, command.output)
    (old,) = command.files()
    kept = old.read_bytes()
    ran = command("workflows/t2v.json", *SMALL, "--seed", "5")
    assert ran.returncode == 0, ran.stderr
    assert old.read_bytes() == kept
    assert Path(ran.stdout.strip()).name == "piying_t2v_00002_.mp4"


def test_prompt_and_seed(command):
    ran = command("workflows/t2v.json", *SMALL, "--prompt", "一只红色的球", "--seed", "123")
    assert ran.returncode == 0, ran.stderr
    prompt = json.loads(read_workflow(Path(ran.stdout.strip()))["prompt"])
    inputs = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert inputs["PiyingExpandPrompt"]["prompt"] == "一只红色的球"
    assert inputs["PiyingExpandPrompt"]["seed"] == inputs["PiyingVACESample"]["seed"] == 123


def test_a_prompt_takes_the_place_of_a_frozen_one(command):
    frozen = ["--set", "PiyingExpandPrompt.frozen_prompt=a blue square"]
    target = command.output.parent / "api.json"
    ran = command("workflows/t2v.json", *frozen, "--export-api", target)
    assert ran.returncode == 0, ran.stderr
    ran = command(target, *SMALL, "--prompt", "a red ball", "--export-api", "-")
    inputs = {node["class_type"]: node["inputs"] for node in json.loads(ran.stdout).values()}["PiyingExpandPrompt"]
    assert (inputs["prompt"], inputs["frozen_prompt"]) == ("a red ball", "")
    assert "has a frozen_prompt, which is emptied" in ran.stderr


def test_the_api_form_runs_too(finished, command, write):
    prompt = read_workflow(Path(finished[1].stdout.strip()))["prompt"]
    ran = command(write(prompt))
    assert ran.returncode == 0, ran.stderr
    assert np.array_equal(frames(Path(ran.stdout.strip())), frames(Path(finished[1].stdout.strip())))


def test_check_runs_nothing(command):
    ran = command("workflows/t2v.json", "--check")
    assert ran.returncode == 0
    assert "nothing wrong" in ran.stderr
    assert not command.output.exists()


def test_json_events(command):
    ran = command("workflows/t2i.json", "--json", "--set", "PiyingHunyuanDiT.steps=3")
    assert ran.returncode == 0, ran.stderr
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    sampling = [event for event in events if event["event"] == "progress" and event["phase"] == "Sampling"]
    assert [event["value"] for event in sampling] == [1, 2, 3]
    (saved,) = [event["path"] for event in events if event["event"] == "saved"]
    assert Path(saved).is_file()
    assert events[-1]["event"] == "done"
    assert ran.stderr == ""


def test_json_errors(command):
    ran = command("workflows/t2v.json", "--json", "--set", "PiyingVACESample.num_frames=10")
    assert ran.returncode == 2
    event = json.loads(ran.stdout.splitlines()[-1])
    assert event["event"] == "error"
    assert event["exit_code"] == 2
    assert "use 9 or 13" in event["message"]


def test_quiet_shows_paths_alone(command):
    ran = command("workflows/t2i.json", "--quiet", "--set", "PiyingHunyuanDiT.steps=1")
    assert ran.stdout.strip() == str(command.files()[0])
    assert "steps" not in ran.stderr
    assert "Sampling" not in ran.stderr


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are Unix's")
def test_a_terminal_gets_a_bar_with_time_left(tmp_path):
    import fcntl
    import pty
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = ["workflows/t2i.json", "--output", str(tmp_path), "--set", "PiyingHunyuanDiT.steps=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # Linux reports the far end's closing as an error
            break
        if not block:
            break
        shown += block
    assert process.wait() == 0
    text = shown.decode()
    assert "Hunyuan-DiT Text to Image: Sampling: 100%" in text
    assert "3/3 [" in text
    assert "<00:00" in text


@pytest.mark.skipif(os.name == "nt", reason="signals are Unix's")
@pytest.mark.parametrize(
    ("signals", "code"), [(["SIGINT", "SIGINT", "SIGTERM"], 130), (["SIGTERM"], 130), (["SIGHUP", "SIGINT"], 129)]
)
def test_a_signal_stops_it_within_a_step_and_the_next_changes_nothing(command, signals, code):
    process = command.start("workflows/t2v.json", *LONG, "--json", "--output", command.output)
    assert process.stdout is not None
    for line in process.stdout:
        if '"Sampling"' in line:
            break
    begun = time.monotonic()
    for name in signals:
        process.send_signal(getattr(signal, name))
        time.sleep(0.05)
    last = next(line for line in process.stdout if '"exit_code"' in line)
    assert time.monotonic() - begun < 3
    assert json.loads(last)["exit_code"] == code
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert command.files() == []


def test_it_runs_from_any_folder(tmp_path):
    shutil.copy(ROOT / "workflows" / "t2i.json", tmp_path)
    arguments = [str(ROOT / "runner" / "__main__.py"), "t2i.json", "--quiet", "--set", "PiyingHunyuanDiT.steps=1"]
    ran = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "output" / "piying_t2i_00001_.png").is_file()
