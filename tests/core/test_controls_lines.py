"""Gray, edges, scribble and layout, against OpenCV and against what can be counted."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from piying.core.controls import layout, lines
from piying.core.controls.choices import OUTLINES
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost

HOST = HeadlessHost()
PATTERN = np.random.default_rng(5).integers(0, 256, (3, 40, 56, 3), np.uint8)


def image(pixels):
    return torch.from_numpy(pixels).float() / 255


def levels(frames):
    return (frames * 255).round().to(torch.uint8).numpy()


def step(left, right, width=48, height=32):
    """One frame, of one colour up to the middle and of another after it."""
    frame = np.empty((1, height, width, 3), np.uint8)
    frame[:, :, : width // 2], frame[:, :, width // 2 :] = left, right
    return image(frame)


@pytest.mark.parametrize(("weights", "code"), [("brightness", cv2.COLOR_RGB2GRAY), ("as VACE", cv2.COLOR_BGR2GRAY)])
def test_gray_is_opencvs(weights, code):
    made = levels(lines.gray(image(PATTERN), weights, HOST))
    expected = np.stack([cv2.cvtColor(frame, code) for frame in PATTERN])
    assert made.shape == PATTERN.shape
    assert all(np.array_equal(made[..., channel], expected) for channel in range(3))


def test_pure_red_tells_the_weights_apart():
    red = step((255, 0, 0), (255, 0, 0))
    assert levels(lines.gray(red, "brightness", HOST)).max() == 76  # 0.299
    assert levels(lines.gray(red, "as VACE", HOST)).max() == 29  # 0.114


def test_edges_are_cannys():
    made = levels(lines.edges(image(PATTERN), low=300, high=600, lines="white on black", host=HOST))
    expected = np.stack([cv2.Canny(frame, 300, 600) for frame in PATTERN])
    assert 0 < (expected > 0).mean() < 0.5
    assert np.array_equal(made[..., 0], expected)
    assert np.array_equal(
        levels(lines.edges(image(PATTERN), low=300, high=600, lines="black on white", host=HOST))[..., 1],
        255 - expected,
    )


def test_equally_bright_colours_have_an_edge():
    """(200, 0, 0) and (0, 102, 0) are one gray."""
    drawn = lines.edges(step((200, 0, 0), (0, 102, 0)), low=100, high=200, lines="black on white", host=HOST)
    gray = lines.gray(step((200, 0, 0), (0, 102, 0)), "brightness", HOST)
    assert gray.max() - gray.min() < 0.01
    assert drawn[0, :, 22:26].min() == 0


def test_scribble_is_one_dark_line_on_white_paper():
    drawn = lines.scribble(
        step((255, 255, 255), (0, 0, 0)), line_width=1.0, strength=1.0, lines="black on white", host=HOST
    )
    row = drawn[0, 16, :, 0]
    assert row[:18].min() == 1
    assert row[30:].min() == 1  # black areas are paper too: lines without shading
    assert row.argmin() in (23, 24)
    assert row.min() < 0.05
    inside = (row < 0.5).nonzero().flatten()
    assert inside.tolist() == list(range(int(inside[0]), int(inside[-1]) + 1))
    inverse = lines.scribble(
        step((255, 255, 255), (0, 0, 0)), line_width=1.0, strength=1.0, lines="white on black", host=HOST
    )
    assert torch.allclose(inverse, 1 - drawn)


def test_an_edge_in_one_channel_is_drawn():
    drawn = lines.scribble(
        step((200, 60, 60), (30, 60, 60)), line_width=1.0, strength=1.0, lines="black on white", host=HOST
    )
    assert drawn[0, 16, 23, 0] < 0.3


def test_progress_counts_frames_and_can_stop_there():
    class Stopped(Exception):
        pass

    class Bar:
        def step(self, done, preview=None):
            steps.append(done)
            if done == stop_at:
                raise Stopped

    host = HeadlessHost(on_progress=lambda phase, total: Bar())
    steps, stop_at = [], None
    lines.gray(image(PATTERN), "as VACE", host)
    assert steps == [1, 2, 3]
    steps, stop_at = [], 2
    with pytest.raises(Stopped):
        layout.mask_layout(torch.ones(3, 8, 8), "box", "black on white", host)
    assert steps == [1, 2]


def test_scribble_strength_and_width():
    weak = step((120, 120, 120), (150, 150, 150))
    faint, strong = (
        lines.scribble(weak, line_width=1.0, strength=power, lines="black on white", host=HOST).min()
        for power in (1.0, 4.0)
    )
    assert strong < faint - 0.2
    narrow, wide = (
        (
            lines.scribble(step(0, 255), line_width=width, strength=1.0, lines="black on white", host=HOST)[
                0, 16, :, 0
            ]
            < 0.5
        ).sum()
        for width in (1, 3)
    )
    assert wide > narrow


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lines.gray(torch.zeros(0, 8, 8, 3), "brightness", HOST), r"frames has the shape \[0, 8, 8, 3\]"),
        (lambda: lines.gray(torch.zeros(8, 8), "brightness", HOST), r"frames has the shape \[8, 8\]"),
        (lambda: lines.gray("x", "brightness", HOST), "frames is of the type str"),
        (lambda: lines.gray(torch.zeros(1, 8, 8, 3), "sepia", HOST), "weights is 'sepia'. Choose one of: as VACE"),
        (
            lambda: lines.edges(torch.zeros(1, 8, 8, 3), low=9, high=3, lines="white on black", host=HOST),
            "low is 9 and high is 3",
        ),
        (
            lambda: lines.scribble(
                torch.zeros(1, 8, 8, 3), line_width=0, strength=1, lines="white on black", host=HOST
            ),
            "line_width is 0",
        ),
        (lambda: layout.mask_layout(torch.zeros(1, 2, 8, 8), "box", "black on white", HOST), "mask has the shape"),
        (
            lambda: layout.box_path(
                (0, 0, 1, 1), (0, 0, 1, 1), num_frames=0, width=8, height=8, lines="black on white", host=HOST
            ),
            "layout of 0 frames",
        ),
        (
            lambda: layout.box_path(
                (0, 0, 1, 1), (0, 0, 1, 1), num_frames=1, width=8, height=9**9, lines="black on white", host=HOST
            ),
            "from 1 to 16384",
        ),
        (lambda: layout.parse_box("start", "1, 2, 3", 64, 64), "start is '1, 2, 3'. Give four numbers"),
        (lambda: layout.parse_box("end", "0.5, 0.5, 0.2, 0.9", 64, 64), "nothing of that box"),
        (lambda: layout.parse_box("end", "70, 10, 90, 20", 64, 64), "nothing of that box is in a picture of 64×64"),
    ],
)
def test_mistakes_are_sentences(call, sentence):
    with pytest.raises(PiyingError, match=sentence):
        call()


def test_alpha_is_left_out():
    with_alpha = torch.cat([image(PATTERN), torch.rand(3, 40, 56, 1)], dim=3)
    assert torch.equal(lines.gray(with_alpha, "brightness", HOST), lines.gray(image(PATTERN), "brightness", HOST))


def test_boxes_in_parts_and_in_pixels():
    assert layout.parse_box("start", "0.25, 0.5, 0.75, 1", 64, 32) == (16, 16, 48, 32)
    assert layout.parse_box("start", "16 16 48 32", 64, 32) == (16, 16, 48, 32)


def ink(frame, half=1):
    """Return left, top, right, bottom of what is drawn, middles of lines that reach `half` pixels further."""
    rows, columns = (frame[..., 0] < 0.5).nonzero(as_tuple=True)
    return [int(v) for v in (columns.min() + half, rows.min() + half, columns.max() - half, rows.max() - half)]


def test_a_box_goes_from_start_to_end():
    made = layout.box_path(
        (10, 12, 20, 22), (40, 32, 60, 52), num_frames=5, width=80, height=60, lines="black on white", host=HOST
    )
    assert made.shape == (5, 60, 80, 3)
    assert ink(made[0]) == [10, 12, 20, 22]
    assert ink(made[2]) == [25, 22, 40, 37]
    assert ink(made[4]) == [40, 32, 60, 52]
    assert made[0, 17, 15, 0] == 1  # outlined, not filled


def test_one_frame_shows_the_start():
    assert (
        ink(
            layout.box_path(
                (10, 12, 20, 22), (1, 1, 4, 4), num_frames=1, width=32, height=32, lines="black on white", host=HOST
            )[0]
        )[0]
        == 10
    )


def test_the_box_of_a_mask():
    mask = torch.zeros(2, 40, 40)
    mask[0, 10:20, 8:30] = 1
    made = layout.mask_layout(mask, "box", "black on white", HOST)
    assert ink(made[0], half=2) == [8, 10, 29, 19]
    assert made[1].min() == 1  # nothing there: empty paper
    assert layout.mask_layout(mask, "box", "white on black", HOST)[1].max() == 0


def test_outlines_keep_two_things_apart_and_boxes_do_not():
    mask = torch.zeros(1, 40, 60)
    mask[0, 10:20, 5:15] = mask[0, 10:20, 40:50] = 0.9
    outline, box, hull = (layout.mask_layout(mask, way, "black on white", HOST)[0, ..., 0] for way in OUTLINES[::-1])
    assert outline[10, 28] == 1
    assert box[10, 28] == hull[10, 28] == 0


def test_the_hull_of_a_corner_is_cut_across():
    mask = torch.zeros(1, 60, 60)
    mask[0, 10:50, 10:16] = mask[0, 44:50, 10:50] = 1
    hull = layout.mask_layout(mask, "hull", "black on white", HOST)[0, ..., 0]
    assert hull[10, 45] == 1  # the box's corner is not in it
    assert hull[26:31, 31].min() == 0  # on the way from (15, 10) to (49, 44)
