"""People as sticks: OpenPose's points, order and colours."""

from __future__ import annotations

import numpy as np
import pytest
from piying.core.controls.pose import NECK, draw_people, hue, openpose_points

# The eighteen colours of OpenPose's drawings.
COLOURS = [
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
]  # fmt: skip
COCO = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
]  # fmt: skip
OPENPOSE = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
]  # fmt: skip


def coco_person():
    rng = np.random.default_rng(4)
    return np.concatenate([rng.uniform(20, 200, (1, 17, 2)), np.full((1, 17, 1), 0.9)], axis=2).astype(np.float32)


def test_colours_are_openposes():
    assert [hue(index) for index in range(18)] == COLOURS


def test_points_are_reordered_by_name():
    person = coco_person()
    (found,) = openpose_points(person)
    for index, name in enumerate(OPENPOSE):
        if name != "neck":
            assert np.array_equal(found[index], person[0, COCO.index(name)]), name
    shoulders = person[0, [COCO.index("left_shoulder"), COCO.index("right_shoulder")]]
    assert np.allclose(found[NECK], shoulders.mean(0))


def test_the_neck_needs_both_shoulders():
    person = coco_person()
    person[0, COCO.index("left_shoulder"), 2] = 0.1
    assert openpose_points(person)[0, NECK, 2] == pytest.approx(0.1)


def arm(sure=1.0):
    """The neck at (64, 64), the right shoulder at (128, 64), nothing else."""
    points = np.zeros((1, 18, 3), np.float32)
    points[0, 1], points[0, 2] = (64, 64, sure), (128, 64, sure)
    return points


def test_a_stick_lies_between_its_points():
    drawn = draw_people(arm() * (8, 8, 1), 1024, 1024, "OpenPose")
    assert drawn.shape == (1024, 1024, 3)
    assert drawn[512, 768].tolist() == [153, 0, 0]  # the first colour, shaded to 0.6
    assert drawn[512, 512].tolist() == [255, 85, 0]  # the neck in its own colour
    rows, columns = np.nonzero(drawn.any(2))
    assert (rows.min(), rows.max()) == (512 - 4, 512 + 4)
    assert (columns.min(), columns.max()) == (512 - 4, 1024 - 1)
    assert draw_people(arm(), 256, 192, "OpenPose").shape == (192, 256, 3)


def test_vaces_videos_have_red_and_blue_exchanged():
    assert np.array_equal(draw_people(arm(), 256, 192, "as VACE"), draw_people(arm(), 256, 192, "OpenPose")[..., ::-1])


def test_thickness_is_part_of_the_picture():
    small, large = (draw_people(arm() * (s, s, 1), 128 * s, 96 * s, "OpenPose") for s in (2, 8))
    thick = [frame[:, 96 * s].any(1).sum() for frame, s in ((small, 2), (large, 8))]
    assert 2 <= thick[1] / thick[0] <= 5


def test_uncertain_points_and_nobody_leave_the_picture_black():
    assert draw_people(arm(0.2), 64, 64, "OpenPose").max() == 0
    assert draw_people(np.zeros((0, 18, 3), np.float32), 64, 64, "OpenPose").shape == (64, 64, 3)
