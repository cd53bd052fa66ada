"""Contact sheets: every frame where the layout says, masks over them, and no more pixels than a page can hold."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from piying.core.media.contact_sheet import (
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SIDE,
    layout_of,
    write_sheet_of_file,
    write_sheets,
)
from piying.core.media.mp4 import write_mp4


def clip(count: int, width: int = 32, height: int = 16) -> torch.Tensor:
    """Frames of one gray each, from black to white."""
    return torch.linspace(0, 1, count)[:, None, None, None].expand(count, height, width, 3)


def cell(sheets, pixels, number):
    row, column = divmod(number, sheets["columns"])
    top, left = row * sheets["height"], column * sheets["width"]
    return pixels[top : top + sheets["height"], left : left + sheets["width"]]


def test_each_frame_is_in_its_place(tmp_path):
    sheets = write_sheets(tmp_path / "temp", clip(9), before=1 - clip(9))
    assert (sheets["width"], sheets["height"], sheets["total"], sheets["frames"]) == (32, 16, 9, list(range(9)))
    for name, frames in (("sheet", clip(9)), ("before", 1 - clip(9))):
        pixels = np.asarray(Image.open(tmp_path / "temp" / sheets[name])) / 255
        for number in range(9):
            assert np.abs(cell(sheets, pixels, number) - frames[number].numpy()).max() < 0.03


def test_of_a_long_file_frames_are_taken_throughout(tmp_path):
    count = 2 * MAX_FRAMES
    grays = np.linspace(0, 255, count).round().astype(np.uint8)
    write_mp4(tmp_path / "long.mp4", (np.full((16, 32, 3), gray, np.uint8) for gray in grays), Fraction(16))
    sheets = write_sheet_of_file(tmp_path / "temp", tmp_path / "long.mp4")
    assert (sheets["total"], len(sheets["frames"]), sheets["frames"][-1]) == (count, MAX_FRAMES, count - 1)
    pixels = np.asarray(Image.open(tmp_path / "temp" / sheets["sheet"])).astype(int)
    for number, index in enumerate(sheets["frames"]):
        assert np.abs(cell(sheets, pixels, number) - int(grays[index])).max() < 8


@pytest.mark.parametrize("count", [1, 9])
def test_a_mask_lets_through_what_it_leaves_out(tmp_path, count):
    mask = torch.zeros(count, 16, 32)
    mask[:, :, 16:] = 1.0
    mask[:, :, :8] = 0.4
    sheets = write_sheets(tmp_path, clip(9), mask=mask)
    pixels = np.asarray(Image.open(tmp_path / sheets["mask"]).convert("RGBA"))
    for number in range(9):
        marks = cell(sheets, pixels, number)[..., 3]
        assert (marks[:, :16] == 0).all()
        assert (marks[:, 16:] == marks[0, 16]).all()
        assert 0 < marks[0, 16] < 255, "the video is seen under its mask"


@pytest.mark.parametrize("size", [(832, 480), (1280, 720), (64, 2048), (2048, 16), (96, 64)])
@pytest.mark.parametrize("count", [1, 17, 81, 241, 5000])
def test_a_sheet_is_of_a_size_that_a_page_can_hold(count, size):
    layout = layout_of(count, *size)
    width, height = layout.size
    assert max(layout.width, layout.height) <= MAX_SIDE
    assert width * height <= 1.3 * MAX_PIXELS
    assert max(width, height) < 16384
    assert len(layout.frames) == min(count, MAX_FRAMES)
    assert sorted(set(layout.frames)) == list(layout.frames)
    assert (layout.frames[0], layout.frames[-1]) == (0, count - 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_of_any_channels(tmp_path, channels):
    sheets = write_sheets(tmp_path, torch.full((5, 16, 16, channels), 0.5))
    assert Image.open(tmp_path / sheets["sheet"]).mode == "RGB"
