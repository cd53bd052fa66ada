"""A soundtrack moves with the frames it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.media.audio import align


def counted(samples=1600, channels=2, rate=1600):
    """One second whose samples say when they were."""
    return {"waveform": (torch.arange(samples) + 1.0).expand(1, channels, -1), "sample_rate": rate}


def test_frames_in_front_are_silent():
    made = align(counted(), num_frames=32, fps=16, frames_before=8)["waveform"]
    assert made.shape == (1, 2, 3200)
    assert made[0, 0, :800].abs().max() == 0
    assert made[0, 1, 800:2400].tolist() == [k + 1 for k in range(1600)]
    assert made[0, 0, 2400:].abs().max() == 0


def test_frames_cut_off_in_front_take_their_sound_with_them():
    made = align(counted(), num_frames=8, fps=16, frames_before=-4)["waveform"]
    assert made[0, 0].tolist() == [400.0 + k + 1 for k in range(800)]


def test_what_is_beyond_the_video_is_cut():
    assert align(counted(), 8, 16, 0)["waveform"].shape[-1] == 800
    assert align(counted(), 8, 16, 100)["waveform"].abs().max() == 0
    assert align(counted(), 8, 16, -100)["waveform"].abs().max() == 0


def test_fractional_rates_do_not_drift():
    made = align(counted(48000 * 10, 1, 48000), 300, 30000 / 1001, 0)["waveform"]
    assert made.shape[-1] == 480480  # 300 frames of 1001/30000 s


def test_no_sound_stays_none_and_other_keys_stay():
    assert align(None, 5, 16, 0) is None
    assert align({**counted(), "title": "x"}, 5, 16, 0)["title"] == "x"


def test_sound_that_is_read_when_asked_for():
    """Video Helper Suite gives a mapping that is no dict."""

    class Lazy(Mapping):
        def __getitem__(self, key):
            return counted()[key]

        def __iter__(self):
            return iter(counted())

        def __len__(self):
            return 2

    assert align(Lazy(), 16, 16, 0)["waveform"].shape[-1] == 1600


@pytest.mark.parametrize(
    ("audio", "num_frames", "fps", "sentence"),
    [
        ("song.mp3", 5, 16, "audio is not a sound"),
        ({"waveform": torch.zeros(5)}, 5, 16, "audio is not a sound"),
        ({"waveform": torch.zeros(5), "sample_rate": 8}, 5, 16, "audio is not a sound"),
        (counted(), 0, 16, "num_frames is 0"),
        (counted(), 5, 0, "fps is 0"),
    ],
)
def test_mistakes_are_sentences(audio, num_frames, fps, sentence):
    with pytest.raises(PiyingError, match=sentence):
        align(audio, num_frames, fps, 0)
