"""Timelines: prompts with times are read as they are meant, and long videos follow them window by window."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from piying.core.catalog.selection import ChosenLora, ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.media.video import read_frames
from piying.core.wan.family import WAN_VACE
from piying.core.wan.guidance import Guidance
from piying.core.wan.long import sample as long_make
from piying.core.wan.long.request import LongRequest, windows
from piying.core.wan.long.sample import make_long_video
from piying.core.wan.long.timeline import check_timeline, direct, has_times, largest_cfg, parse_timeline
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import Strength
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.wan_video.run import sample as sample_video
from piying.nodes.long_video import PiyingVACELongVideo

from .vace_clips import clip

TIMES = """0s: a red circle
which moves right
5s cfg 3 blend 1s: a green circle

160f task 0.5 lora -0.8: a (yellow:1.2) circle: round"""
HANDLE = ModelHandle(WAN_VACE, "built-in", precision="fp32")


@pytest.fixture
def host(tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    return HeadlessHost(chosen_device="cpu", **folders, cache=tmp_path / "cache")


def test_times_settings_and_lines_that_go_on():
    first, second, third = parse_timeline(TIMES)
    assert (first.start, first.prompt) == (0, "a red circle\nwhich moves right")
    assert (second.start, second.prompt, second.cfg, second.blend) == (80, "a green circle", 3.0, 16)
    assert (third.start, third.prompt) == (160, "a (yellow:1.2) circle: round")
    assert (third.cfg, third.task, third.lora) == (None, 0.5, -0.8) and (first.task, first.lora) == (1.0, 1.0)
    assert largest_cfg((first, second), 1.0) == 3.0 and largest_cfg((second,), 5.0) == 3.0
    chinese = parse_timeline("0秒：红色圆形\n2.5秒：绿色圆形\n80帧：黄色圆形")
    assert [one.start for one in chinese] == [0, 40, 80]
    spelled = parse_timeline("0 Seconds: a\n2.5sec CFG 3 blend 1S: b\n5秒钟：c\n96 frames: d")
    assert [one.start for one in spelled] == [0, 40, 80, 96] and spelled[1].cfg == 3.0


@pytest.mark.parametrize(
    "prompt",
    [
        "a clock shows 5s: late",
        "",
        "at 10s\nthe end",
        "scene 5s: x",
        "5 apples: red",
        "4:30 pm\na fox",
        "80s disco",
        "1: a\n2: b",
    ],
)
def test_other_prompts_are_taken_as_they_are(prompt):
    assert not has_times(prompt)
    assert [one.prompt for one in parse_timeline(prompt)] == [prompt]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a fox\n5s: a hare", "begins with 'a fox' before its first time"),
        ("5s: a hare", "begins at 5s, and says nothing of the time before"),
        ("0s: a\n5s: b\n5s: c", "has 5s after 5s"),
        ("0s: a\n5s: b\n2s: c", "has 2s after 5s"),
        ("0s: a\n5s:", "says nothing at 5s"),
        ("0s speed 3: a", "sets 'speed' at 0s. What can be set there: cfg, task, lora, blend"),
        ("0s cfg 3.1.2: a", "sets cfg to '3.1.2' at 0s, which is no number"),
        ("0s: a\n5s cfg high: b", "sets cfg to 'high' at 5s, which is no number"),
        ("0-1s: a\n1s-2s: b", "has the line '0-1s: a', whose time cannot be read"),
        ("0到2秒：红\n2到4秒：蓝", "has the line '0到2秒：红'"),
        ("0s: a\n1s cfg: b", "has the line '1s cfg: b'"),
        ("0s a\n1s b", "has the line '0s a'"),
        ("00:00 a\n00:01 b", "has the line '00:00 a'"),
        ("0s: a\n-1s: b", "has the line '-1s: b'"),
        ("0s: a\n.5s: b", "has the line '.5s: b'"),
        ("0s: a\n1.s cfg 2: b", "has the line '1.s cfg 2: b'"),
        ("0s: a\n0,5s: b", "has the line '0,5s: b'"),
        ("0s: a\n1min: b", "has the line '1min: b'"),
        ("0秒：红\n1分30秒：蓝", "has the line '1分30秒：蓝'"),
        ("0秒：红\n一秒：蓝", "has the line '一秒：蓝'"),
        ("0s: a\n5: b", "has the line '5: b'"),
        ("[0s] a\n[5s] b", r"has the line '\[0s\] a'"),
        ("**0s**: a\n**5s**: b", r"has the line '\*\*0s"),
        ("0s: a\n1.5s: b\n1.51s: c", "has 1.51s after 1.5s. Times rise from line to line, by a frame at least"),
        ("0s: a\n1s cfg 3 cfg 4: b", "sets cfg twice at 1s. Leave one of them out"),
        ("0s cfg 99: a", "sets cfg to 99 at 0s. It goes from 1 to 30"),
    ],
)
def test_what_is_no_timeline_is_refused_before_the_run(prompt, says):
    with pytest.raises(PiyingError, match=says):
        parse_timeline(prompt)
    answer = PiyingVACELongVideo.VALIDATE_INPUTS(None, None, None, None, None, prompt=prompt)
    assert isinstance(answer, str) and says.split(" '")[0] in answer


def test_a_time_that_no_number_holds_is_behind_the_end():
    moments = parse_timeline("0s: a\n" + "9" * 400 + "s: b")
    (said,) = check_timeline(moments, WanRequest("", num_frames=81), has_task=False, has_loras=False)
    assert "behind the video's end" in said and len(said) < 200
    assert [(one.start, one.blend) for one in parse_timeline("第0秒：红\n第1秒 blend 2秒：绿")] == [(0, 0), (16, 32)]


def test_many_times_behind_the_end_are_said_in_a_few_lines():
    moments = parse_timeline("\n".join(f"{frame}f: a" for frame in range(1000)))
    said = check_timeline(moments, WanRequest("", num_frames=81), has_task=False, has_loras=False)
    assert len(said) < 8 and said[-1].startswith(f"prompt: {1000 - 81 - len(said) + 1} more times are behind")


@pytest.mark.parametrize("prompt", [" " * 100_000 + "x", "1" + " " * 100_000 + "x", "0s: a\n" + "on\n" * 100_000])
def test_long_texts_are_read_at_once(prompt):
    began = time.process_time()
    parse_timeline(prompt)
    assert time.process_time() - began < 5  # a hundred times what it takes; it took minutes


@pytest.mark.parametrize(
    ("line", "guidance", "said"),
    [
        ("1s task 0.5: b", Guidance(), "sets task at 1s, and no task is connected"),
        ("1s lora 2: b", Guidance(), "sets lora at 1s, and the model has no LoRA"),
        ("1s cfg 2: b", Guidance(cfg_steps=(4.0, 1.0)), "sets cfg at 1s, and cfg_steps"),
    ],
)
def test_what_a_timeline_needs_is_asked_for_before_the_run(host, line, guidance, said):
    set_host(host)
    known = {"model": HANDLE, "prompt": f"0s: a\n{line}", "guidance": guidance, "num_frames": 25}
    try:
        assert said in PiyingVACELongVideo.refusal(known, [])
        assert not PiyingVACELongVideo.refusal(known | {"prompt": "0s: a\n1s: b"}, ["task"])
    finally:
        set_host(None)


def test_what_it_needs_must_be_there_and_what_is_behind_the_end_is_said():
    moments, video = parse_timeline(TIMES), WanRequest(TIMES, num_frames=81)
    with pytest.raises(PiyingError, match="sets task at 160f, and no task is connected"):
        check_timeline(moments, video, has_task=False, has_loras=True)
    with pytest.raises(PiyingError, match="sets lora at 160f, and the model has no LoRA"):
        check_timeline(moments, video, has_task=True, has_loras=False)
    with pytest.raises(PiyingError, match="sets cfg at 5s, and cfg_steps"):
        steps = replace(video, guidance=Guidance(cfg_steps=(4.0, 1.0)))
        check_timeline(moments, steps, has_task=True, has_loras=True)
    said = check_timeline(moments, video, has_task=True, has_loras=True)
    assert said == ["prompt: 160f is behind the video's end (5.0625 s) and is left out."]


def test_each_window_is_made_by_what_holds_in_its_middle():
    request = LongRequest(WanRequest(TIMES, num_frames=241, cfg=6.0, seed=5), window=81, overlap=13)
    made = [direct(request, parse_timeline(TIMES), one) for one in windows(241, 81, 13)]
    assert [one.moment.mark for one in made] == ["0s", "5s", "160f", "160f"]
    assert [one.request.cfg for one in made] == [6.0, 3.0, 6.0, 6.0]
    assert [one.request.seed for one in made] == [5, 6, 7, 8]
    assert not made[1].request.earlier_share, "the blend of a second is over in the window's middle"
    slow = TIMES.replace("blend 1s", "blend 4s")
    turning = direct(request, parse_timeline(slow), windows(241, 81, 13)[1]).request
    # The window's new frames are 81 to 148; their middle is 35 frames behind 5 s.
    assert turning.earlier_prompt.startswith("a red circle") and turning.earlier_share == pytest.approx(1 - 35 / 64)


def colour_of(frames):
    """Return whether red or green is more, beside the blue of the background."""
    red, green = (
        float(np.clip(frames[..., channel].astype(float), 0, 255).max(axis=(1, 2)).mean()) for channel in (0, 1)
    )
    return "red" if red > green else "green"


def test_a_colour_changes_on_time(host):
    prompt = "0s: a red circle moves right on a blue background\n13f: a green circle moves right on a blue background"
    video = WanRequest(prompt, "", 64, 64, 25, steps=10, cfg=4.0, shift=5.0, seed=3)
    path, record = make_long_video(HANDLE, LongRequest(video, window=13, overlap=1), host)
    frames = np.stack(list(read_frames(path)))
    assert (colour_of(frames[4:12]), colour_of(frames[17:])) == ("red", "green")
    assert record["prompt"] == prompt


def test_strengths_and_cfg_of_each_window_reach_the_model(host, monkeypatch):
    asked = []

    def look(handle, request, inputs, *given, **named):
        asked.append((request.prompt, request.cfg, inputs.strength.value, [lora.strength for lora in handle.loras]))
        return sample_inputs(handle, request, inputs, *given, **named)

    sample_inputs = long_make.sample_inputs
    monkeypatch.setattr(long_make, "sample_inputs", look)
    prompt = "0s: a red circle\n9f cfg 2 task 0.5: a green circle"
    request = LongRequest(WanRequest(prompt, "", 32, 32, 17, steps=1, cfg=1.0, shift=5.0, seed=3), 9, 1)
    task = repaint(clip(17, 32, 32), strength=Strength(0.8))
    make_long_video(HANDLE, request, host, task)
    assert [one[:3] for one in asked] == [("a red circle", 1.0, 0.8), ("a green circle", 2.0, 0.4)]
    direction = long_make._LongVideo(
        replace(HANDLE, loras=(ChosenLora("x.safetensors", 0.5),)),
        replace(request, video=replace(request.video, prompt="0s: a\n9f lora 0.5: b")),
        host,
        task,
        None,
    )
    assert [direction._handle(one).loras[0].strength for one in direction.windows] == [0.5, 0.25]


def test_only_windows_from_the_changed_line_on_are_made_again(host):
    def make(second):
        prompt = f"0s: a red circle\n9f: {second}\n9s: a fox"
        video = WanRequest(prompt, "", 32, 32, 25, steps=1, cfg=1.0, shift=5.0, seed=3)
        return make_long_video(HANDLE, LongRequest(video, 9, 1), host)[1]

    assert make("a green circle")["windows_kept_from_before"] == 0
    assert make("a green circle")["windows_kept_from_before"] == 3
    record = make("a yellow circle")
    assert record["windows_kept_from_before"] == 1
    assert record["note"] == "prompt: 9s is behind the video's end (1.5625 s) and is left out."


def test_a_short_video_says_that_times_are_words_to_it(host, caplog):
    request = WanRequest("0s: a red circle\n5s: a green circle", "", 32, 32, 5, steps=1, cfg=1.0)
    _, record = sample(HANDLE, request, host)
    assert record["note"] == "The prompt has times, which VACE Long Video follows: here they are read as words."
    assert record["note"] in caplog.messages
    caplog.clear()
    _, _, record = sample_video(ModelHandle(WAN_VIDEO, "built-in"), request, host)
    assert record["note"] in caplog.messages
