"""VACE's tasks: what each gives the model, how they lie over each other, and what comes back untouched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from piying.core.wan.conditioning import paste, prepare
from piying.core.wan.task.extend import GivenFrames, extend
from piying.core.wan.task.inpaint import Brush, inpaint
from piying.core.wan.task.mask_ops import kept_weight
from piying.core.wan.task.outpaint import Sides, margins, outpaint
from piying.core.wan.task.reference import reference
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import Strength, VACETask, frame_indices, offered_length, resampled, spread

from .vace_clips import box, clip, moving_box

SIZE, FRAMES = (64, 48), 9


def made(task, size=SIZE, count=FRAMES):
    """Return what a model that makes everything magenta gives, with the task's kept pixels back."""
    magenta = torch.tensor([1.0, 0.0, 1.0]).expand(count, size[1], size[0], 3).contiguous()
    return paste(magenta, prepare(task, *size, count))


def is_magenta(frames):
    return (frames == torch.tensor([1.0, 0.0, 1.0])).all(-1)


# --- kept pixels come back untouched ---------------------------------------------------------------------------


@pytest.mark.parametrize("feather", [0, 1, 8])
def test_inpaint_brings_the_rest_back_bit_for_bit(feather):
    video, mask = clip(), moving_box()
    result, inside = made(inpaint(video, mask, feather=feather)), mask > 0
    assert is_magenta(result)[inside].all()
    far = ~(torch.nn.functional.max_pool2d(inside.float(), 2 * feather + 1, 1, feather) > 0)
    assert torch.equal(result[far], video[far])
    between = ~far & ~inside
    assert not between.any() or not torch.equal(result[between], video[between])


def test_inpaint_leaves_everything_to_the_model_where_asked():
    assert is_magenta(made(inpaint(clip(), box(), keep=False))).all()


def test_extend_brings_given_frames_back_bit_for_bit():
    given = clip(4)
    parts = GivenFrames(given[:1], given[3:], given[1:3], "3, 0.25s")
    result = made(extend(parts, FRAMES))
    assert torch.equal(result[[0, 3, 4, 8]], given)
    assert is_magenta(result)[[1, 2, 5, 6, 7]].all()
    assert is_magenta(made(extend(parts, FRAMES, keep=False))).all()


def test_keeping_is_decided_by_each_task():
    task = extend(GivenFrames(clip(1, seed=1)), FRAMES, keep=False, task=inpaint(clip(), box(), feather=0))
    result = made(task)
    assert is_magenta(result)[0].all(), "the given frame as the model gives it"
    assert torch.equal(result[1:, :16], clip()[1:, :16])


def test_outpaint_brings_the_video_back():
    video = clip(width=32)
    result = made(outpaint(video, Sides(left=16, right=16, unit="pixels"), feather=0))
    assert torch.equal(result[:, :, 16:48], video)
    assert is_magenta(result)[:, :, :16].all()


def test_the_weight_rises_evenly_from_the_border():
    kept = box(1, 12, slice(0, 1), slice(0, 8)) > 0
    assert kept_weight(kept, 3)[0, 0].tolist() == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    assert kept_weight(kept, 0)[0, 0].tolist() == [1] * 8 + [0] * 4
    assert (kept_weight(torch.ones(1, 2, 2) > 0, 3) == 1).all()


def test_pasting_changes_neither_the_frames_nor_the_task():
    video, frames = clip(), torch.zeros(FRAMES, 48, 64, 3)
    inputs = prepare(inpaint(video, box()), *SIZE, FRAMES)
    paste(frames, inputs)
    assert (frames == 0).all()
    assert torch.equal(video, clip())
    assert paste(frames, prepare(None, *SIZE, FRAMES)) is frames


# --- inpaint and outpaint --------------------------------------------------------------------------------------


def area(task):
    return prepare(task, *SIZE, FRAMES).mask[0, 0]


def test_the_brush():
    video, drawn = clip(), box(rows=slice(10, 20), columns=slice(10, 20))
    drawn[:, 10:14, 10:14] = 0
    as_drawn, whole = area(inpaint(video, drawn)), box(rows=slice(10, 20), columns=slice(10, 20))
    assert torch.equal(as_drawn, drawn.expand(FRAMES, -1, -1))
    assert torch.equal(area(inpaint(video, drawn, Brush(shape="box"))), whole.expand(FRAMES, -1, -1))
    hull = area(inpaint(video, drawn, Brush(shape="hull")))
    assert as_drawn.sum() < hull.sum() < FRAMES * 100
    assert torch.equal(area(inpaint(video, 1 - drawn, Brush(invert=True))), as_drawn)
    larger = area(inpaint(video, whole, Brush(grow=3)))[0]
    assert (larger.any(0).sum(), larger.any(1).sum()) == (16, 16)
    smaller = area(inpaint(video, whole, Brush(grow=-3)))[0]
    assert (smaller.any(0).sum(), smaller.any(1).sum()) == (4, 4)


def test_boxes_follow_a_moving_mask():
    mask = moving_box()
    mask[:, 20:24] = 0
    assert torch.equal(area(inpaint(clip(), mask, Brush(shape="box"))), moving_box())


@pytest.mark.parametrize(
    ("sides", "wanted"),
    [
        (Sides(left=25), (16, 0, 0, 0)),
        (Sides(left=20, right=40), (15, 0, 33, 0)),  # 12 and 25 make 101 wide, 112 is the next multiple
        (Sides(16, 0, 16, 0, "pixels"), (16, 0, 16, 0)),
        (Sides(10, 0, 0, 0, "pixels"), (10, 0, 0, 0)),
        (Sides(aspect="16:9"), (16, 0, 16, 0)),
        (Sides(aspect="1:1"), (0, 8, 0, 8)),
        (Sides(top=10, aspect="1:1"), (0, 16, 0, 0)),
        (Sides(0, 0, 16, 0, "pixels", "1:1"), (0, 16, 16, 16)),
    ],
)
def test_margins(sides, wanted):
    assert margins((64, 48), sides) == wanted


@settings(deadline=None, max_examples=60)
@examples(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.integers(0, 100), min_size=4, max_size=4),
    st.sampled_from(["as given", "16:9", "9:16", "1:1", "21:9"]),
)
def test_a_canvas_in_percent_is_one_the_model_makes_on_every_side_that_grows(size, percents, aspect):
    width, height = 16 * size[0], 16 * size[1]
    left, top, right, bottom = margins((width, height), Sides(*percents, "percent", aspect))
    canvas = left + width + right, top + height + bottom
    assert (canvas[0] % 16, canvas[1] % 16) == (0, 0)
    asked = [side * percent // 100 for side, percent in zip((width, height) * 2, percents, strict=True)]
    assert all(added >= least for added, least in zip((left, top, right, bottom), asked, strict=True))


@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_overlap_makes_the_edge_anew_only_where_the_canvas_grows(side):
    task = outpaint(clip(height=32, width=32), Sides(**{side: 16}, unit="pixels"), overlap=4)
    mask = prepare(task, *task.offered_size(), FRAMES).mask[0, 0, 0]
    turned = {"left": mask, "right": mask.flip(1), "top": mask.T, "bottom": mask.T.flip(1)}[side]
    assert (turned[:, :20] == 1).all()
    assert (turned[:, 20:] == 0).all()


def test_outpainting_keeps_the_place_of_the_video():
    video = clip(width=32)
    inputs = prepare(outpaint(video, Sides(left=8, right=24, unit="pixels")), *SIZE, FRAMES)
    assert torch.equal(inputs.canvas.frames[:, :, 8:40], video)


# --- size and length -------------------------------------------------------------------------------------------


def test_crop_letterbox_and_stretch():
    wide = torch.ones(1, 32, 128, 3)
    wide[:, :, 60:68] = 0
    frames = {fit: prepare(repaint(wide, fit=fit), 64, 64, 1).canvas.frames[0, ..., 0] for fit in ("crop", "stretch")}
    assert (frames["crop"][:, 30:34] == 0).all() and (frames["crop"][32] < 0.5).sum() == 16
    assert (frames["stretch"][32] < 0.5).sum() == 4
    boxed = prepare(repaint(wide, fit="letterbox"), 64, 64, 1).canvas.frames[0, ..., 0]
    assert (boxed[:24] == 0).all() and (boxed[40:] == 0).all() and (boxed[24:40, :20] == 1).all()


def test_fine_lines_are_averaged_when_a_video_shrinks():
    lines = torch.zeros(1, 64, 256, 3)
    lines[:, :, ::4] = 1
    shrunk = prepare(repaint(lines, fit="stretch"), 64, 64, 1).canvas.frames[:, :, 2:-2]
    torch.testing.assert_close(shrunk, torch.full_like(shrunk, 0.25), atol=0.05, rtol=0)


def test_a_mask_is_fitted_like_its_video():
    video, mask = clip(1, 96, 128), box(96, 128, slice(0, 48), slice(0, 64))
    inputs = prepare(inpaint(video, mask, fit="stretch"), *SIZE, 1)
    assert torch.equal(inputs.mask[0, 0], box(rows=slice(0, 24), columns=slice(0, 32)))
    letterboxed = prepare(inpaint(video, mask, fit="letterbox"), 64, 64, 1)
    assert letterboxed.mask[0, 0, 0, :8].sum() == 0, "bars are kept"


def test_mask_and_video_keep_step():
    count = torch.arange(20)
    video = (count[:, None, None, None] / 255).expand(-1, 48, 64, 3)
    mask = ((count % 2)[:, None, None] * box()).float()
    for length, fps in (("trim", 16), ("spread", 16), ("resample", 30)):
        inputs = prepare(inpaint(video, mask, length=length, fps=fps), *SIZE, FRAMES)
        shown = (inputs.canvas.frames[:, 0, 0, 0] * 255).round().int()
        assert torch.equal(inputs.mask[0, 0].amax((1, 2)).int(), shown % 2)


@settings(deadline=None)
@examples(st.integers(1, 400), st.integers(0, 60))
def test_spread_keeps_first_last_and_order(count, quarter):
    wanted = 4 * quarter + 1
    picks = spread(count, wanted)
    assert len(picks) == wanted
    assert picks == sorted(picks)
    assert picks[0] == 0
    assert wanted == 1 or picks[-1] == count - 1
    assert spread(count, count) == list(range(count))


def test_resampling_keeps_the_speed():
    assert resampled(9, 32) == [0, 2, 4, 6, 8]
    assert resampled(4, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(resampled(240, 24)) == 160
    assert len(resampled(240, 23.976)) == 161
    assert resampled(3, 16) == [0, 1, 2]


@settings(deadline=None)
@examples(st.integers(1, 241), st.sampled_from(["trim", "hold", "resample", "spread", "continue"]), st.floats(8, 60))
def test_the_offered_length_can_be_made(count, length, fps):
    offered = offered_length(count, length, fps)
    assert offered % 4 == 1
    assert len(frame_indices(count, offered, length, fps)) == offered


def test_hold_repeats_the_last_frame():
    frames = prepare(repaint(clip(5), length="hold"), *SIZE, FRAMES).canvas.frames
    assert torch.equal(frames[:5], clip(5))
    assert all(torch.equal(frame, clip(5)[4]) for frame in frames[5:])


def test_continue_leaves_the_rest_to_the_model():
    video = clip(5)
    task = repaint(clip(3, seed=1), length="continue", task=inpaint(video, box(), feather=0, length="continue"))
    inputs, result = prepare(task, *SIZE, FRAMES), made(task)
    assert (inputs.mask[0, 0, 5:] == 1).all() and (inputs.video[0, :, 5:] == 0).all()
    assert torch.equal(inputs.mask[0, 0, :5], box().expand(5, -1, -1))
    assert torch.equal(inputs.canvas.frames[2, 16:40, 8:30], clip(3, seed=1)[2, 16:40, 8:30])
    assert (inputs.video[0, :, 3:5, 16:40, 8:30] == 0).all()
    assert torch.equal(result[:5, :16], video[:, :16]) and is_magenta(result)[5:].all()


def test_clips_of_another_rate_keep_their_speed():
    task = extend(GivenFrames(clip(9), fps=32), FRAMES)
    assert torch.equal(task.layers[0].frames, clip(9)[::2])
    assert len(extend(GivenFrames(clip(1), fps=24), FRAMES).layers[0].frames) == 1


def test_part_of_a_clip():
    clips = clip(12)
    task = extend(GivenFrames(clips[:6], clips[6:], clip_frames=2), FRAMES)
    assert torch.equal(made(task)[[0, 1, 7, 8]], clips[[4, 5, 6, 7]])


def test_what_is_offered_for_wiring():
    task = inpaint(clip(11, 50, 70), box(50, 70), fit="crop", length="trim")
    assert (task.offered_size(), task.offered_length()) == ((64, 48), 9)
    fixed = extend(GivenFrames(clip(1)), 13, task=task)
    assert fixed.offered_length() == 13, "a length that cannot give way decides"
    assert outpaint(clip(width=32), Sides(50, 0, 50, 0)).offered_size() == (64, 48)


# --- together --------------------------------------------------------------------------------------------------


def test_order_of_tasks_does_not_matter_where_they_do_not_meet():
    start, video, pose = clip(1, seed=1), clip(seed=2), clip(seed=3)
    steps = [
        lambda task: inpaint(video, moving_box(), task=task),
        lambda task: repaint(pose, task=task),
        lambda task: extend(GivenFrames(start), FRAMES, task=task),
        lambda task: reference([(clip(1, seed=4), None)], task=task),
    ]
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        task = None
        for index in order:
            task = steps[index](task)
        results.append(prepare(task, *SIZE, FRAMES))
    for other in results[1:]:
        assert torch.equal(results[0].video, other.video)
        assert torch.equal(results[0].mask, other.mask)
        assert torch.equal(results[0].references[0], other.references[0])


def test_two_areas_of_one_video_are_both_made_anew():
    left, right = box(columns=slice(0, 10)), box(columns=slice(50, 64))
    task = inpaint(clip(), right, task=inpaint(clip(), left))
    assert torch.equal(area(task), torch.maximum(left, right).expand(FRAMES, -1, -1))


def test_control_in_a_part_leaves_gray_elsewhere():
    video = prepare(repaint(clip(), box()), *SIZE, FRAMES).video
    assert torch.equal(video[0, :, :, 16:40, 8:30], clip()[:, 16:40, 8:30].permute(3, 0, 1, 2) * 2 - 1)
    assert (video[0, :, :, :16] == 0).all()


def test_building_on_a_task_leaves_it_as_it_was():
    before = repaint(clip())
    reference([(clip(1), None)], task=before)
    inpaint(clip(seed=1), box(), task=before)
    assert (len(before.layers), before.references) == (1, ())


def test_strength_counts_in_its_part_of_the_steps():
    strength = Strength(0.7, 0.2, 0.6)
    assert [strength.at(step, 10) for step in range(10)] == [0, 0, 0.7, 0.7, 0.7, 0.7, 0, 0, 0, 0]
    assert {Strength().at(step, 7) for step in range(7)} == {1.0}
    inputs = prepare(repaint(clip(), strength=strength), *SIZE, FRAMES)
    assert (inputs.scale_at(1, 10), inputs.scale_at(2, 10)) == (0, 0.7)
    assert prepare(None, *SIZE, FRAMES).scale_at(0, 1) == 1


def test_no_task_takes_no_memory_for_its_frames():
    canvas = prepare(None, 1280, 720, 81).canvas
    assert canvas.frames.untyped_storage().nbytes() < 100
    assert canvas.make.untyped_storage().nbytes() < 100


def test_a_task_describes_itself_for_the_metadata():
    import json

    task = extend(GivenFrames(clip(1)), FRAMES, task=inpaint(clip(), box(), fit="crop", length="trim"))
    described = reference([(clip(1, 20, 30), None)], task=task).describe()
    assert json.loads(json.dumps(described)) == {
        "layers": [
            {"node": "VACE: Inpaint", "frames": 9, "width": 64, "height": 48, "fit": "crop", "length": "trim"},
            {"node": "VACE: Extend", "frames": 1, "width": 64, "height": 48, "fit": "refuse", "length": [0]},
        ],
        "references": ["30×20"],
        "strength": {"value": 1.0, "start": 0.0, "end": 1.0},
    }
    assert VACETask().describe()["layers"] == []
