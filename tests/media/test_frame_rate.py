"""Another frame rate shows the same things at the same times."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from piying.core.errors import PiyingError
from piying.core.media.frame_rate import LENGTHS, change_rate, exact_rate, fitted_count, new_count

few = settings(max_examples=40, deadline=None)
RATES = st.sampled_from([8.0, 12.5, 16.0, 23.976, 24.0, 29.97, 30.0, 50.0, 60.0])


def numbered(count):
    """Frames that hold their own number."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)


def shown(frames):
    return frames[:, 0, 0, 0].tolist()


@few
@given(st.integers(1, 90), RATES, RATES)
def test_frames_are_shown_when_they_were(count, fps, to_fps):
    found = shown(change_rate(numbered(count), fps=fps, to_fps=to_fps, method="nearest", length="as it is"))
    source, target = exact_rate("fps", fps), exact_rate("fps", to_fps)
    assert found == [int(k * source / target) for k in range(len(found))]
    assert abs(len(found) / target - count / source) < 1 / target
    assert len(found) / target >= count / source


@few
@given(st.integers(1, 60), RATES, RATES)
def test_blending_keeps_the_mean_and_the_order(count, fps, to_fps):
    found = shown(change_rate(numbered(count), fps=fps, to_fps=to_fps, method="blend", length="as it is"))
    assert found == sorted(found)
    assert found[0] >= 0 and found[-1] <= count - 1 + 1e-4
    assert len(found) == new_count(count, exact_rate("a", fps), exact_rate("b", to_fps))


def test_blending_is_what_is_on_screen_meanwhile():
    assert shown(change_rate(numbered(4), fps=32, to_fps=16, method="blend", length="as it is")) == [0.5, 2.5]
    slower = change_rate(numbered(3), fps=24, to_fps=16, method="blend", length="as it is")
    assert shown(slower) == pytest.approx([1 / 3, 5 / 3])
    faster = change_rate(numbered(2), fps=16, to_fps=24, method="blend", length="as it is")
    assert shown(faster) == pytest.approx([0, 0.5, 1])


def test_known_rates():
    slower = change_rate(numbered(30), fps=30, to_fps=16, method="nearest", length="as it is")
    assert shown(slower)[:6] == [0, 1, 3, 5, 7, 9]
    assert shown(change_rate(numbered(3), fps=8, to_fps=16, method="nearest", length="as it is")) == [0, 0, 1, 1, 2, 2]
    assert exact_rate("fps", 29.97) == Fraction(2997, 100)
    assert exact_rate("fps", 30000 / 1001) == Fraction(30000, 1001)


def test_the_same_rate_changes_nothing():
    for method in ("nearest", "blend"):
        assert torch.equal(change_rate(numbered(7), fps=24, to_fps=24, method=method, length="as it is"), numbered(7))


@few
@given(st.integers(1, 300))
def test_lengths_are_4n_plus_1(count):
    as_it_is, trimmed, held = (fitted_count(count, length) for length in LENGTHS)
    assert as_it_is == count
    assert trimmed % 4 == held % 4 == 1
    assert trimmed <= count <= held
    assert held - trimmed in (0, 4)


def test_trimming_cuts_the_end_and_holding_repeats_it():
    assert shown(change_rate(numbered(7), fps=16, to_fps=16, method="nearest", length="trim to 4n+1")) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert shown(change_rate(numbered(7), fps=16, to_fps=16, method="nearest", length="hold to 4n+1")) == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        6,
        6,
    ]
    assert shown(change_rate(numbered(2), fps=16, to_fps=16, method="blend", length="trim to 4n+1")) == [0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 16, "nearest", "as it is"), "fps is 0. Allowed: above 0"),
        ((16, -1, "nearest", "as it is"), "to_fps is -1"),
        ((0.0001, 16, "nearest", "as it is"), "fps is 0.0001"),
        ((16, float("inf"), "nearest", "as it is"), "to_fps is inf"),
        ((16, float("nan"), "nearest", "as it is"), "to_fps is nan"),
        ((16, 16, "fast", "as it is"), "method is 'fast'. Choose one of: nearest, blend"),
        ((16, 16, "blend", "81"), "length is '81'"),
    ],
)
def test_mistakes_are_sentences(arguments, sentence):
    with pytest.raises(PiyingError, match=sentence):
        change_rate(numbered(3), **dict(zip(("fps", "to_fps", "method", "length"), arguments, strict=True)))
