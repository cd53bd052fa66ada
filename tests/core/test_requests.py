"""Sizes and lengths: what is refused, and what is offered instead."""

from __future__ import annotations

import pytest
from piying.core.errors import PiyingError
from piying.core.hunyuan_dit.request import SIZES, check_size
from piying.core.wan.request import check_num_frames, check_side


@pytest.mark.parametrize("value", [16, 480, 832, 1280, 2048])
def test_good_sides(value):
    check_side("width", value)


@pytest.mark.parametrize(
    ("value", "advice"),
    [(100, "96 or 112"), (15, "use 16"), (481, "480 or 496"), (5000, "use 2048"), (0, "use 16"), (-7, "use 16")],
)
def test_bad_sides_name_the_nearest(value, advice):
    with pytest.raises(PiyingError, match=f"width is {value}.*{advice}"):
        check_side("width", value)


@pytest.mark.parametrize("value", [1, 5, 81, 241])
def test_good_lengths(value):
    check_num_frames(value)


@pytest.mark.parametrize(("value", "advice"), [(10, "9 or 13"), (80, "77 or 81"), (0, "use 1"), (9999, "use 241")])
def test_bad_lengths_name_the_nearest(value, advice):
    with pytest.raises(PiyingError, match=f"num_frames is {value}.*{advice}"):
        check_num_frames(value)


def test_hunyuan_sizes_are_those_of_diffusers():
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import SUPPORTED_SHAPE

    assert set(SIZES) == set(SUPPORTED_SHAPE)
    for width, height in SIZES:
        check_size(width, height, is_built_in=False)


@pytest.mark.parametrize(
    ("size", "near"), [((1000, 1000), "1024×1024"), ((512, 300), "1280×768"), ((300, 512), "768×1280")]
)
def test_other_sizes_name_the_nearest(size, near):
    with pytest.raises(PiyingError, match=f"Nearest: {near}"):
        check_size(*size, is_built_in=False)
