"""Context windows: which frames each holds, what is made of their predictions, and what a creator sees of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.families.diffusion_model import estimate
from piying.core.host.headless import HeadlessHost
from piying.core.wan.context import Context, check_window, free_noise, mean_of_windows, riflex_enabled, weights
from piying.core.wan.family import WAN_VACE
from piying.core.wan.phases import VideoWork
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample as sample_vace
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.wan_video.run import sample as sample_video

REQUEST = WanRequest("a red circle moves right", "", 64, 48, 17, steps=8, cfg=3.0, shift=5.0, seed=3)


@pytest.fixture
def host(tmp_path):
    return HeadlessHost(chosen_device="cpu", models=[], cache=tmp_path / "cache", output=tmp_path)


def video(host, **changes):
    """Return the frames that Wan Sample makes with the built-in model, and their record."""
    frames, _, record = sample_video(ModelHandle(WAN_VIDEO, "built-in"), replace(REQUEST, **changes), host)
    return frames, record


def test_windows_overlap_and_the_last_ends_with_the_video():
    context = Context(window=17, overlap=8)
    # 5 latent frames a window, of which 2 are shared.
    assert context.windows(12, 0) == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10], [7, 8, 9, 10, 11]]
    assert context.windows(12, 7) == context.windows(12, 0)


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_a_video_no_longer_than_a_window_is_one(frames):
    assert Context(window=17, overlap=8).windows(frames, 0) == [list(range(frames))]


@pytest.mark.parametrize("context", [Context(window=17, overlap=8, loop=True), Context(loop=True)])
@pytest.mark.parametrize("step", [0, 1, 2, 9])
def test_a_loop_goes_on_from_the_last_frame_to_the_first(context, step):
    frames = 12
    windows = context.windows(frames, step)
    for window in windows:
        assert [(place + 1) % frames for place in window[:-1]] == window[1:]
    assert {place for window in windows for place in window} == set(range(frames))
    assert windows[0][0] == 4 * step % frames
    # Somewhere the two ends are predicted together.
    assert any(frames - 1 in window[:-1] and 0 in window[1:] for window in windows) or windows[0][0] == 0


def test_every_frame_of_every_length_is_predicted():
    for window in range(5, 40, 4):
        for overlap in range(0, window - 1, 4):
            check_window(window, overlap)
            for frames in range(1, 30):
                for loop in (False, True):
                    windows = Context(window, overlap, loop=loop).windows(frames, 3)
                    assert {place for one in windows for place in one} == set(range(frames))
                    assert all(len(set(one)) == len(one) == min(frames, 1 + (window - 1) // 4) for one in windows)


def test_the_mean_is_weighted_to_the_middle_of_windows():
    assert [weights(length) for length in (1, 2, 4, 5)] == [[1], [1, 1], [1, 2, 2, 1], [1, 2, 3, 2, 1]]
    windows = [[0, 1, 2], [1, 2, 3]]
    flows = [[torch.full((1, 2, 4, 1, 1), value)] for value in (1.0, 5.0)]
    (mean,) = mean_of_windows(flows, windows, 4, in_front=1)
    # Frame 1: weights 2 and 1; frame 2: 1 and 2. The reference in front counts once for each window.
    assert mean[0, 0, :, 0, 0].tolist() == pytest.approx([3.0, 1.0, 7 / 3, 11 / 3, 5.0])


def test_predictions_that_agree_are_kept():
    flow = torch.randn(1, 3, 12, 2, 2, generator=torch.Generator().manual_seed(0))
    for context in (Context(17, 8), Context(17, 4, loop=True), Context(loop=True)):
        windows = context.windows(12, 5)
        (mean,) = mean_of_windows([[flow[:, :, window]] for window in windows], windows, 12, in_front=0)
        assert torch.allclose(mean, flow, atol=1e-6)


def test_free_noise_repeats_the_first_window_in_another_order():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 1 + 14, 2, 2, generator=generator)
    made = free_noise(noise, Context(window=17, overlap=8), generator, in_front=1)
    assert torch.equal(made[:, :, :6], noise[:, :, :6])  # a reference and the first window
    first = [noise[:, :, place] for place in range(1, 6)]
    for start in range(6, 15, 3):
        those = [made[:, :, place] for place in range(start, min(15, start + 3))]
        sources = [next(number for number, one in enumerate(first) if torch.equal(one, frame)) for frame in those]
        assert len(set(sources)) == len(sources)


def toy_transformer():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=24, num_layers=1, ffn_dim=8, text_dim=8, freq_dim=8
    )  # fmt: skip


def test_riflex_slows_one_frequency_below_a_turn():
    transformer = toy_transformer()
    before = transformer.rope.freqs_cos.clone(), transformer.rope.freqs_sin.clone()
    with riflex_enabled(transformer, Context(riflex=2), frames=10):
        changed = (transformer.rope.freqs_cos != before[0]).any(0).nonzero().flatten().tolist()
        assert changed == [2, 3]  # diffusers has each frequency twice, side by side
        cos, sin = transformer.rope.freqs_cos[10, 2], transformer.rope.freqs_sin[10, 2]
        # 0.9 of a turn after as many latent frames as the video has (RIFLEx, equation 8).
        assert math.atan2(sin, cos) % (2 * math.pi) == pytest.approx(0.9 * 2 * math.pi, abs=1e-4)
    assert torch.equal(transformer.rope.freqs_cos, before[0])
    assert torch.equal(transformer.rope.freqs_sin, before[1])


def test_a_frequency_that_a_model_has_not_is_refused():
    with (
        pytest.raises(PiyingError, match=r"riflex is 5, and this model has 4 temporal frequencies. Choose 1 to 4."),
        riflex_enabled(toy_transformer(), Context(riflex=5), frames=10),
    ):
        pass


@pytest.mark.parametrize(
    ("window", "overlap", "said"),
    [
        (3, 0, "window is 3. Choose 4n\\+1"),
        (82, 32, "window is 82. Choose 4n\\+1"),
        (81, 6, "overlap is 6. Choose a multiple of 4"),
        (17, 16, "overlap is 16, and window 17. Choose an overlap below 16."),
    ],
)
def test_what_is_no_window_is_refused(window, overlap, said):
    with pytest.raises(PiyingError, match=said):
        check_window(window, overlap)


def test_one_window_is_the_plain_video(host):
    plain, _ = video(host)
    one, record = video(host, context=Context(window=81, overlap=32, free_noise=True))
    assert torch.equal(plain, one)
    assert record["context"]["window"] == 81


@pytest.mark.parametrize(
    "context", [Context(loop=True), Context(window=9, overlap=4, loop=True)], ids=["whole", "windows"]
)
def test_the_ends_of_a_loop_meet(host, caplog, context):
    caplog.set_level("INFO")
    plain, _ = video(host)
    frames, _ = video(host, context=context, step_cache=0.1)
    assert torch.isfinite(frames).all() and len(frames) == len(plain) + 3
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    seam = (frames[-1] - frames[0]).abs().mean()
    # From the last frame to the first is no more than from any frame to the next.
    assert seam < steps.max() and seam < 0.25 * (plain[-1] - plain[0]).abs().mean()
    assert "step_cache is left out: the windows of a step differ from those of the next." in caplog.text
    assert f"context: the loop has {len(frames)} frames, 4 for each latent frame." in caplog.text


def test_windows_run_on_vace_and_need_no_caution(host, caplog):
    caplog.set_level("INFO")
    trained = WAN_VACE.trained_on("built-in").frames
    request = replace(REQUEST, num_frames=trained + 8, steps=2, context=Context(window=17, overlap=8, free_noise=True))
    frames, _ = sample_vace(ModelHandle(WAN_VACE, "built-in"), request, host)
    assert frames.shape == (trained + 8, 48, 64, 3)
    assert "windows of 17 frames." in caplog.text
    assert "expect repetitions" not in caplog.text
    (caution,) = WAN_VACE.cautions("built-in", replace(request, context=Context()))
    assert "expect repetitions" in caution


def test_a_plan_holds_one_window_and_counts_all(host):
    handle = ModelHandle(WAN_VACE, "built-in")
    work = VideoWork.of(replace(REQUEST, width=832, height=480, num_frames=321))
    phases = []
    for context in (Context(), Context(window=81, overlap=32)):
        made = estimate(handle, host, replace(work, context=context)).plan
        phases.append(next(phase for phase in made.phases if phase.phase == "sample"))
    assert phases[1].ram < phases[0].ram
    one = estimate(handle, host, replace(work, num_frames=81)).plan
    assert phases[1].seconds > 5 * next(phase for phase in one.phases if phase.phase == "sample").seconds
