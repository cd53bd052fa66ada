"""Long videos: windows that cover the whole, seams that do not show, and a run that can stop anywhere."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor import execute_plan, model_cache
from piying.core.host.headless import HeadlessHost
from piying.core.media.video import read_frames
from piying.core.planner.machine import synthetic
from piying.core.wan.context import Context
from piying.core.wan.family import WAN_VACE
from piying.core.wan.long import sample as long_make
from piying.core.wan.long.colour_match import colours_of, colours_of_all, matched, moved, pulled_back
from piying.core.wan.long.request import (
    LongRequest,
    check_lengths,
    check_long_request,
    check_loop,
    loop_windows,
    shown,
    windows,
    windows_of,
)
from piying.core.wan.long.sample import make_long_video
from piying.core.wan.long.task_window import cut
from piying.core.wan.long.window_cache import FinishedWindow, WindowCache, rounded
from piying.core.wan.model import load
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from piying.core.wan.task.canvas import compose, compose_part
from piying.core.wan.task.extend import GivenFrames, extend
from piying.core.wan.task.inpaint import inpaint
from piying.core.wan.task.outpaint import Sides, outpaint
from piying.core.wan.task.reference import reference
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import VACETask
from piying.nodes.long_video import PiyingVACELongVideo

from .vace_clips import box, clip, moving_box

PROMPT = "a red circle moves right on a blue background"
HANDLE = ModelHandle(WAN_VACE, precision="fp32")


def small(num_frames=13, **joining):
    """Return a request of two windows, as fast as can be; of one more for each further four frames."""
    video = WanRequest(PROMPT, "", 32, 32, num_frames, steps=1, cfg=1.0, shift=5.0, seed=3)
    return LongRequest(video, 9, 5, **joining)


FILM = small(17)


class Bar:
    """Notes what a host is told, and stops the run where asked to."""

    def __init__(self, phase, total):
        self.phase, self.total, self.steps = phase, total, []

    def step(self, done, preview=None):
        self.steps.append(done)
        self.when(done)

    def text(self, text):
        pass

    def when(self, done):
        pass


def host_in(folder, when=None):
    bars = []

    def begin(phase, total):
        bars.append(Bar(phase, total))
        if when is not None:
            bars[-1].when = when
        return bars[-1]

    host = HeadlessHost(chosen_device="cpu", temp=folder / "temp", cache=folder / "cache", on_progress=begin)
    return host, bars


def kept_frames(host):
    """Return the windows in the cache, oldest first, uint8 [n, h, w, 3] each."""
    files = sorted((host.cache_folder() / "long_video").glob("*.mkv"), key=lambda path: path.stat().st_mtime_ns)
    return [np.stack(list(read_frames(path))) for path in files]


def whole(host, asked):
    """Return the frames of the whole video as they were before they were encoded."""
    parts = windows_of(asked)
    frames = zip(kept_frames(host), shown(parts, asked.overlap), strict=True)
    return torch.from_numpy(np.concatenate([window[first:behind] for window, (first, behind) in frames])) / 255


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video of three windows."""
    host, bars = host_in(tmp_path_factory.mktemp("film"))
    path, record = make_long_video(HANDLE, FILM, host)
    return host, bars, path, record


@pytest.fixture
def after_film(film, tmp_path):
    """A host that finds the windows of the film, in files of its own."""
    shutil.copytree(film[0].cache_folder(), tmp_path / "cache")
    return host_in(tmp_path)


# --- windows ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 60), st.integers(0, 59))
def test_windows_cover_every_frame_once_and_are_of_one_length(length, window, overlap):
    length, window, overlap = 1 + 4 * length, 1 + 4 * window, 1 + 4 * min(overlap, window - 1)
    found = windows(length, window, overlap)
    taken = [
        each.start + index
        for each, (first, behind) in zip(found, shown(found, overlap), strict=True)
        for index in range(first, behind)
    ]
    assert taken == list(range(length))
    for before, each in pairwise(found):
        assert each.count == window and each.given % 4 == 1
        assert overlap <= each.given < window, "something is given, and something is left to make"
        assert before.start <= each.start and each.start + each.given == before.end


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 60), st.integers(0, 59))
def test_windows_of_a_loop_cover_it_once_and_join_its_ends(length, window, overlap):
    length, window, overlap = 1 + 4 * length, 1 + 4 * window, 1 + 4 * min(overlap, window - 1)
    try:
        check_loop(length, window, overlap)
    except PiyingError as error:
        assert length <= window or overlap == 1 or overlap > window // 3, error
        return
    found = loop_windows(length, window, overlap)
    taken = [
        each.start + index
        for each, (first, behind) in zip(found, shown(found, overlap), strict=True)
        for index in range(first, behind)
    ]
    assert taken == list(range(length))
    for before, each in pairwise(found):
        assert each.count == window and each.start + each.given == before.end and each.given >= overlap
        assert each.given + each.closing < window, "something is left to make"
    first, last = found[0], found[-1]
    assert (first.start, last.end) == (1 - overlap, length)
    assert [each.closing for each in found] == [0] * (len(found) - 1) + [overlap - 1]


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((81, 81, 13), "num_frames is 81 and window 81. Set num_frames to 85 or more"),
        ((161, 81, 1), "overlap of 5 or more, and overlap is 1"),
        ((141, 81, 61), "overlap is 61, .* Set overlap to [0-9]+ or less"),
        ((17, 9, 5), "window is 9, .* a loop of 17 frames .* Set window to 13 and overlap to 5"),
        ((13, 9, 5), "window is 9, .* a loop of 13 frames .* Set num_frames higher"),
    ],
)
def test_a_loop_that_cannot_be_made_is_refused(lengths, said):
    with pytest.raises(PiyingError, match=said) as refused:
        check_loop(*lengths)
    if "or less" in said:
        advised = int(str(refused.value).split()[-3])
        check_loop(*lengths[:2], advised)
    if "Set window to" in said:
        check_loop(17, 13, 5)
    if "or more, or" in str(refused.value):
        check_loop(85, *lengths[1:])


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((240, 81, 13), "num_frames is 240.*237 or 241"),
        ((241, 80, 13), "window is 80.*77 or 81"),
        ((241, 81, 12), "overlap is 12.*9 or 13"),
        ((241, 81, 81), "overlap is 81.*from 1 to 77: use 77"),
    ],
)
def test_lengths_that_cannot_be_made_are_refused(lengths, said):
    with pytest.raises(PiyingError, match=said):
        check_lengths(*lengths)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        ({"waveform": torch.zeros(1, 1, 9)}, "at 0 Hz. Give"),
        ({"waveform": torch.zeros(3), "sample_rate": 8000}, r"a waveform \[3\]"),
        ({"sample_rate": 8000}, "holds no sound. Connect an AUDIO"),
    ],
)
def test_sound_that_is_none_is_refused_before_anything_is_sampled(tmp_path, audio, said):
    host = HeadlessHost(temp=tmp_path, cache=tmp_path, chosen_device="cpu")
    with pytest.raises(PiyingError, match=said):
        make_long_video(HANDLE, FILM, host, audio=audio)
    assert not (tmp_path / "long_video").exists()


def test_words_and_strengths_are_checked():
    with pytest.raises(PiyingError, match="match_colours is 2. It goes from 0"):
        check_long_request(small(match_colours=2.0))
    with pytest.raises(PiyingError, match="seams is 'glue'. Choose one of: crossfade, cut"):
        check_long_request(small(seams="glue"))


# --- made ------------------------------------------------------------------------------------------------------


def test_a_video_of_one_window_is_what_vace_sample_makes(tmp_path):
    host, _ = host_in(tmp_path)
    asked = small(9)
    make_long_video(HANDLE, asked, host)
    frames, _ = sample(HANDLE, asked.video, host)
    assert torch.equal(whole(host, asked), (frames * 255).round() / 255)


def test_the_file_holds_the_whole_video(film):
    host, _, path, record = film
    frames = torch.from_numpy(np.stack(list(read_frames(path)))) / 255
    assert frames.shape == (17, 32, 32, 3)
    assert (frames - whole(host, FILM)).abs().mean() < 0.02, "what H.264 leaves of it"
    assert (record["windows"], record["windows_kept_from_before"], record["num_frames"]) == (3, 0, 17)


def test_one_bar_goes_over_the_whole(film):
    _, bars, _, _ = film
    (bar,) = bars
    assert bar.phase == "Long video"
    assert bar.steps == sorted(bar.steps) and bar.steps[-1] == bar.total
    assert len(set(bar.steps)) > 3 * 5


def test_seams_are_no_worse_than_what_is_inside_a_window(film, tmp_path):
    """A tenth more at most, of a video made in one step; docs/long_video.md has what better ones measure."""
    crossfade = worst_at_seams(film[0], FILM)
    inside = [step for part in kept_frames(film[0]) for step in np.abs(np.diff(part / 255, axis=0)).mean((1, 2, 3))]
    host, _ = host_in(tmp_path)
    make_long_video(HANDLE, small(17, seams="cut"), host)
    assert crossfade <= 1.1 * max(inside)
    assert crossfade < worst_at_seams(host, FILM)


def worst_at_seams(host, asked):
    """Return the largest change between frames where windows meet."""
    frames = whole(host, asked)
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    ends = [window.end for window in windows(asked.video.num_frames, asked.window, asked.overlap)[:-1]]
    return float(max(steps[end - 6 : end].max() for end in ends))


def test_a_stopped_run_goes_on_and_gives_the_same_file(film, tmp_path):
    _, _, expected, _ = film

    def stop_in_the_third(done):
        if done > 2100:
            raise KeyboardInterrupt

    host, _ = host_in(tmp_path, stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_long_video(HANDLE, FILM, host)
    assert len(kept_frames(host)) == 2
    assert not list((tmp_path / "cache" / "long_video").glob(".*")), "no half file is left"
    host, bars = host_in(tmp_path)
    path, record = make_long_video(HANDLE, FILM, host)
    assert record["windows_kept_from_before"] == 2
    assert bars[0].steps[:2] == [1000, 2000]
    assert path.read_bytes() == expected.read_bytes()


def keys_of(host, asked, task=None):
    """Return the names that the windows of a request have in the cache."""
    film = long_make._LongVideo(HANDLE, asked, host, task or VACETask(), load(HANDLE, host))
    keys = []
    for window in film.windows:
        keys.append(film._key(window, film._canvas(window), keys))
    return keys


def test_what_decides_a_window_gives_it_another_name(tmp_path):
    host, _ = host_in(tmp_path)
    keys = keys_of(host, small())
    assert keys_of(host, small()) == keys
    assert keys_of(host, small(17))[:2] == keys, "a longer video goes on from a shorter one"
    for joining in ({"match_colours": 0.5}, {"seams": "cut"}, {"anchor": "colours"}):
        first, second = keys_of(host, small(**joining))
        assert first == keys[0] and second != keys[1], "how windows are joined is no matter of the first"
    control = clip(13, 32, 32)
    changed = control.clone()
    changed[12] = 1 - changed[12]
    with_control, with_another = (keys_of(host, small(), repaint(frames)) for frames in (control, changed))
    assert with_control[0] not in keys
    assert with_control[0] == with_another[0] and with_control[1] != with_another[1], "only the last shows that frame"
    other = replace(small(), video=replace(small().video, seed=4))
    assert not set(keys_of(host, other)) & set(keys)


def test_a_damaged_window_is_made_again(film, after_film):
    host, _ = after_film
    path = max((host.cache_folder() / "long_video").glob("*.mkv"), key=lambda path: path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:400])
    assert make_long_video(HANDLE, FILM, host)[1]["windows_kept_from_before"] == 2
    assert torch.equal(whole(host, FILM), whole(film[0], FILM))


def test_memory_does_not_grow_with_the_windows(tmp_path):
    """Bytes of live tensors at the end of each window."""
    alive = measuring()._Alive()
    held = []

    def note(done):
        if done % 1000 == 0:
            held.append(alive.now)

    host, _ = host_in(tmp_path, note)
    with alive:
        make_long_video(HANDLE, small(21), host)
    frame = 32 * 32 * 3 * 4
    assert len(held) == 4
    assert held[-1] - held[1] < frame


def measuring():
    path = Path(__file__).parents[2] / "benchmarks" / "measuring.py"
    spec = importlib.util.spec_from_file_location("measuring", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_window_that_runs_out_of_memory_is_made_by_another_plan(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(execute_plan, "read_machine", lambda host, second: synthetic(8.0, 32.0))
    model_cache.evict_models()
    from .test_recovery import OutOfMemoryAt

    real = long_make.sample_inputs

    def short_of_memory(handle, asked, inputs, host, **more):
        with OutOfMemoryAt(fails_at=400, times=int(more["reporter"].index == 1)):
            return real(handle, asked, inputs, host, **more)

    monkeypatch.setattr(long_make, "sample_inputs", short_of_memory)
    host, bars = host_in(tmp_path)
    _, record = make_long_video(HANDLE, small(), host)
    assert len([line for line in caplog.messages if "Out of memory" in line]) == 1
    assert record["windows"] == 2 and bars[0].steps == sorted(bars[0].steps)
    model_cache.evict_models()


def test_the_plan_is_said_once_for_all_windows(tmp_path, caplog):
    caplog.set_level("INFO", logger="piying")
    host, _ = host_in(tmp_path)
    asked = replace(FILM, video=replace(FILM.video, speed="draft"))
    make_long_video(HANDLE, asked, host)
    for once in ("Plan for", "time, measured", "Speed:"):
        assert len([line for line in caplog.messages if once in line]) == 1, once
    assert len([line for line in caplog.messages if "window " in line]) == 3


# --- blended -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blended(tmp_path_factory):
    host, _ = host_in(tmp_path_factory.mktemp("blended"))
    path, record = make_long_video(HANDLE, small(17, seams="blended"), host)
    return host, path, record


def latents_of(host):
    shelf = WindowCache(host.cache_folder() / "long_video")
    files = sorted(shelf.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    return [shelf.get(path.stem).latents for path in files]


def test_blended_windows_turn_from_the_latents_of_the_one_before(blended, film, tmp_path, monkeypatch):
    host, _, record = blended
    assert record["seams"] == "blended"
    turned = latents_of(host)
    assert len(turned) == 3 and not latents_of(film[0]), "only this way of joining needs them"
    monkeypatch.setattr(long_make._LongVideo, "_before", lambda *_: None)
    alone, _ = host_in(tmp_path)
    make_long_video(HANDLE, small(17, seams="blended"), alone)
    apart = latents_of(alone)
    # Of nine frames, three latent ones, five overlap: the second latent frame is both windows'.
    for each in (turned, apart):
        assert torch.equal(each[0], turned[0])
    distances = [float((each[1][:, :, 1] - each[0][:, :, -1]).abs().mean()) for each in (turned, apart)]
    assert distances[0] < 0.6 * distances[1], "half of it is the window's before"


def test_a_blended_run_that_was_stopped_gives_the_same_file(blended, tmp_path):
    def stop_in_the_third(done):
        if done > 2100:
            raise KeyboardInterrupt

    host, _ = host_in(tmp_path, stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_long_video(HANDLE, small(17, seams="blended"), host)
    host, _ = host_in(tmp_path)
    path, record = make_long_video(HANDLE, small(17, seams="blended"), host)
    assert record["windows_kept_from_before"] == 2
    assert path.read_bytes() == blended[1].read_bytes()


def test_blended_needs_latent_frames_that_both_windows_have():
    asked = replace(small(seams="blended"), overlap=1)
    with pytest.raises(PiyingError, match="seams is blended and overlap 1.*Set overlap to 5 or more"):
        check_long_request(asked)
    answer = PiyingVACELongVideo.VALIDATE_INPUTS(None, None, None, None, 1, seams="blended")
    assert isinstance(answer, str) and answer.startswith("seams is blended and overlap 1")


# --- context ---------------------------------------------------------------------------------------------------

LOOP = LongRequest(
    WanRequest(PROMPT, "", 64, 48, 33, steps=8, cfg=3.0, shift=5.0, seed=3, context=Context(loop=True)), 17, 5
)


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    host, _ = host_in(tmp_path_factory.mktemp("loop"))
    path, record = make_long_video(HANDLE, LOOP, host)
    return host, path, record


def test_the_end_of_a_long_loop_leads_to_its_beginning(loop, tmp_path):
    host, _, record = loop
    plain, _ = host_in(tmp_path)
    straight = replace(LOOP, video=replace(LOOP.video, context=Context()))
    make_long_video(HANDLE, straight, plain)
    frames, others = whole(host, LOOP), whole(plain, straight)
    assert len(frames) == len(others) == 33
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    seam = (frames[-1] - frames[0]).abs().mean()
    assert seam < steps.max() and seam < 0.5 * (others[-1] - others[0]).abs().mean()
    assert record["windows"] == len(loop_windows(33, 17, 5))


def test_a_loop_goes_on_after_its_finished_windows(loop, tmp_path):
    shutil.copytree(loop[0].cache_folder(), tmp_path / "cache")
    host, _ = host_in(tmp_path)
    last = max((tmp_path / "cache" / "long_video").glob("*.mkv"), key=lambda path: path.stat().st_mtime_ns)
    last.unlink()
    path, record = make_long_video(HANDLE, LOOP, host)
    assert record["windows_kept_from_before"] == record["windows"] - 1
    assert path.read_bytes() == loop[1].read_bytes()


def test_a_loop_without_a_crossfade_ends_with_frames_of_the_first_window(tmp_path):
    host, _ = host_in(tmp_path)
    make_long_video(HANDLE, replace(LOOP, video=replace(LOOP.video, steps=1), seams="cut"), host)
    kept = kept_frames(host)
    assert np.array_equal(kept[0][:4], kept[-1][-4:])


def test_the_windows_of_a_step_are_parts_of_a_window(tmp_path, caplog):
    host, _ = host_in(tmp_path)
    caplog.set_level("INFO", "piying")
    asked = LongRequest(replace(LOOP.video, num_frames=25, steps=1, context=Context(window=9, overlap=4)), 17, 5)
    _, record = make_long_video(HANDLE, asked, host)
    assert "context: each step predicts 2 windows of 9 frames." in caplog.text
    parted = whole(host, asked)
    assert record["context"]["window"] == 9 and len(parted) == 25
    plain, _ = host_in(tmp_path / "plain")
    make_long_video(HANDLE, replace(asked, video=replace(asked.video, context=Context())), plain)
    assert not torch.equal(parted, whole(plain, asked))


# --- tasks -----------------------------------------------------------------------------------------------------


def tasks():
    """Return a task of every kind, for 17 frames of 64×48."""
    video, mask = clip(17), moving_box(17)
    return {
        "repaint": repaint(video),
        "repaint where": repaint(video, mask),
        "repaint spread": repaint(clip(30), length="spread"),
        "repaint resampled": repaint(clip(30), length="resample", fps=24.0),
        "repaint held": repaint(clip(10), length="hold"),
        "repaint, then free": repaint(clip(6), length="continue"),
        "repaint a part, then free": repaint(clip(11), moving_box(11), length="continue"),
        "inpaint": inpaint(video, mask),
        "inpaint one mask": inpaint(video, box(), keep=False),
        "inpaint, then free": inpaint(clip(7), moving_box(7), length="continue"),
        "outpaint": outpaint(clip(17, 48, 32), Sides(left=50, right=50)),
        "extend": extend(GivenFrames(clip(3), clip(2, seed=1), clip(2, seed=2), "6, 11"), 17),
        "reference": reference([(clip(1, seed=1), None)]),
        "all": extend(
            GivenFrames(last=clip(1, seed=4)),
            17,
            task=repaint(clip(17, seed=1), mask, task=inpaint(video, box(columns=slice(0, 40)))),
        ),
    }


@pytest.mark.parametrize("name", tasks())
def test_a_window_sees_its_part_of_the_task(name):
    task = tasks()[name]
    together = compose(task, 64, 48, 17)
    for window in windows(17, 9, 5):
        part = compose_part(cut(task, window, 17), 64, 48, window.count)
        span = slice(window.start, window.end)
        assert torch.equal(part.frames, together.frames[span])
        assert torch.equal(part.make, together.make[span])
        wanted = together.weights
        if wanted is None or part.weights is None:
            assert wanted is None or not wanted[span].any()
        else:
            assert torch.equal(part.weights, wanted[span])


@pytest.mark.parametrize("name", tasks())
def test_a_window_of_a_loop_sees_its_part_of_the_task(name):
    task = tasks()[name]
    together = compose(task, 64, 48, 17)
    for window in loop_windows(17, 9, 5):
        if "free" in name and (window.start < 0 or window.closing):
            with pytest.raises(PiyingError, match="whose end leads to its beginning. Choose another length"):
                cut(task, window, 17)
            continue
        part = compose_part(cut(task, window, 17), 64, 48, window.count)
        places = [index % 17 for index in range(window.start, window.end)]
        assert torch.equal(part.frames, together.frames[places])
        assert torch.equal(part.make, together.make[places])


def test_windows_of_a_task_are_not_copied():
    video = clip(17)
    window = windows(17, 9, 5)[1]
    part = cut(repaint(video), window, 17).layers[0].frames
    assert part.untyped_storage().data_ptr() == video.untyped_storage().data_ptr()


def test_a_length_that_does_not_go_with_the_task_is_refused_before_sampling(tmp_path):
    host, bars = host_in(tmp_path)
    for task, said in (
        (repaint(clip(17, 32, 32)), "VACE: Repaint: the control video has 17 frames; num_frames is 13"),
        (extend(GivenFrames(clip(1, 32, 32)), 17), "makes a video of 17 frames, VACE Long Video is set to 13"),
        (repaint(clip(13)), "is 64×48, the sampler is set to 32×32"),
        (extend(GivenFrames(clip(13, 32, 32)[:12], clip(1, 32, 32)), 17), "17 frames"),
    ):
        with pytest.raises(PiyingError, match=said):
            make_long_video(HANDLE, small(), host, task)
    assert not bars


def test_kept_pixels_come_back_untouched_in_every_window(tmp_path):
    host, _ = host_in(tmp_path)
    video, mask = clip(13, 32, 32), box(32, 32, slice(8, 20), slice(8, 20))
    make_long_video(HANDLE, small(), host, inpaint(video, mask, feather=0))
    frames, outside = whole(host, small()), mask[0] == 0
    assert torch.equal(frames[:, outside], video[:, outside])
    assert not torch.equal(frames[:, ~outside], video[:, ~outside])


def test_given_frames_come_back_wherever_they_are(tmp_path):
    host, _ = host_in(tmp_path)
    picture = clip(3, 32, 32)
    given_frames = GivenFrames(picture[:1], picture[1:2], picture[2:], "6")
    make_long_video(HANDLE, small(), host, extend(given_frames, 13))
    assert torch.equal(whole(host, small())[[0, 12, 6]], picture)


def test_where_nothing_is_to_be_made_nothing_is_sampled(tmp_path):
    host, _ = host_in(tmp_path)
    mask = box(32, 32, slice(8, 20), slice(8, 20), count=13)
    mask[:9] = 0
    _, record = make_long_video(HANDLE, small(), host, inpaint(clip(13, 32, 32), mask))
    assert torch.equal(whole(host, small())[:9], clip(13, 32, 32)[:9])
    assert record["windows"] == 2


def test_later_windows_are_held_to_the_first(film, after_film):
    host, _ = after_film
    plain = kept_frames(film[0])[1]
    for anchor in ("colours", "reference"):
        _, record = make_long_video(HANDLE, small(anchor=anchor), host)
        assert record["windows_kept_from_before"] == 1
        assert not np.array_equal(kept_frames(host)[-1], plain)


# --- colours ---------------------------------------------------------------------------------------------------


def test_a_shift_of_colours_is_taken_back():
    true = 0.25 + clip(9) / 2
    shifted = true * torch.tensor([0.8, 1.1, 1.0]) + torch.tensor([0.02, -0.05, 0.1])
    back = matched(shifted, true[:5], 1.0, over=4)
    assert torch.allclose(back[:5], true[:5], atol=1e-5)
    assert torch.equal(matched(shifted, true[:5], 0.0, over=4), shifted.clamp(0, 1))


def test_what_was_moved_at_the_seam_is_let_go_of():
    true = 0.25 + clip(9) / 2
    shifted = true + 0.1
    left = (matched(shifted, true[:5], 1.0, over=4) - true).mean((1, 2, 3)) / 0.1
    torch.testing.assert_close(left, torch.tensor([0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0]), atol=1e-3, rtol=0)
    long = (matched(shifted, true[:5], 1.0, over=8) - true).mean((1, 2, 3)) / 0.1
    assert float(long[-1]) == pytest.approx(0.5, abs=1e-3)


def test_another_picture_is_not_taken_for_a_drift():
    flat = torch.full((2, 8, 8, 3), 0.5)
    assert moved(flat, colours_of(flat), colours_of(clip(2)), 1.0).isfinite().all()
    faint = 0.5 + (clip(2) - 0.5) / 100
    stretched = moved(faint, colours_of(faint), colours_of(clip(2)), 1.0)
    assert (colours_of(stretched).spread < 2.01 * colours_of(faint).spread).all()


def test_the_way_back_begins_at_the_seam_and_ends_at_the_first_window():
    frames, wanted = 0.3 + clip(9) / 4, colours_of(0.35 + clip(9, seed=1) / 4)
    led = pulled_back(frames, 5, 4, wanted)
    assert torch.equal(led[:5], frames[:5])
    assert torch.allclose(led[-1:], moved(frames, colours_of(frames[-4:]), wanted, 1.0)[-1:])
    between = (led - frames).abs().mean((1, 2, 3))
    assert between[5] < between[-1]


def test_colours_of_frames_one_by_one_are_those_of_all():
    frames = clip(9)
    each = colours_of_all((frame * 255).round().byte().numpy() for frame in frames)
    torch.testing.assert_close(each.mean, colours_of(frames).mean)
    torch.testing.assert_close(each.spread, colours_of(frames).spread)


# --- on disk ---------------------------------------------------------------------------------------------------


def test_the_cache_keeps_eight_bits_exactly_and_lets_the_oldest_go(tmp_path, monkeypatch):
    shelf = WindowCache(tmp_path / "shelf")
    assert not shelf.has("a", 5)
    for name in "abc":
        shelf.put(name, FinishedWindow(rounded(clip(5)), torch.full((1, 2, 3), 0.1)))
    shelf.put("plain", FinishedWindow(rounded(clip(5))))
    back = shelf.get("a")
    assert torch.equal(back.last(2), clip(5)[-2:]) and torch.equal(back.frames, rounded(clip(5)))
    assert shelf.has("a", 5) and not shelf.has("a", 6)
    assert torch.equal(back.latents, torch.full((1, 2, 3), 0.1)) and shelf.get("plain").latents is None
    monkeypatch.setattr("piying.core.wan.long.window_cache.KEPT_BYTES", 0)
    shelf.evict(["b"])
    assert [shelf.has(name, 5) for name in "abc"] == [False, True, False]
    assert sorted(path.name for path in (tmp_path / "shelf").iterdir()) == ["b.mkv", "b.safetensors"]
