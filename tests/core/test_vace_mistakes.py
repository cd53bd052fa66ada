"""The mistakes of size, length, mask and order that fill issue trackers: refused with advice, or mended."""

from __future__ import annotations

import logging

import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.wan.conditioning import prepare
from piying.core.wan.task.extend import GivenFrames, extend
from piying.core.wan.task.inpaint import Brush, inpaint
from piying.core.wan.task.outpaint import Sides, outpaint
from piying.core.wan.task.reference import reference
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import Strength, VACETask

from .vace_clips import box, clip, moving_box

SIZE = (64, 48)
FRAMES = 9


def refused(text, make):
    """Call `make` and return the sentence it refuses with, which has to hold every part of `text`, in order."""
    with pytest.raises(PiyingError, match=text) as caught:
        make()
    return str(caught.value)


# --- sizes -----------------------------------------------------------------------------------------------------


def test_a_video_of_another_size_names_both_and_every_way_out():
    task = inpaint(clip(), box())
    said = refused(
        "VACE: Inpaint: the video is 64×48, the sampler is set to 832×480", lambda: prepare(task, 832, 480, FRAMES)
    )
    for way in ("width to 64", "height to 48", "wire", "crop, letterbox or stretch"):
        assert way in said


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("size", [(32, 32), (128, 96), (96, 160), (48, 16)])
def test_a_chosen_fit_never_leaves_the_grid_of_the_canvas(fit, size):
    """diffusers takes a smaller video, or one of another aspect, and puts the control in the wrong place."""
    inputs = prepare(inpaint(clip(), box(), fit=fit), *size, FRAMES)
    assert inputs.video.shape == (1, 3, FRAMES, size[1], size[0])
    assert inputs.mask.shape == (1, 1, FRAMES, size[1], size[0])


def test_sides_that_are_no_multiples_of_16():
    odd = clip(height=50, width=70)
    refused(
        "The video is 70×50.*multiples of 16.*Bring it to width 64 or 80 and height 48 or 64, or choose a fit",
        lambda: inpaint(odd, box(height=50, width=70)),
    )
    task = inpaint(odd, box(height=50, width=70), fit="crop")
    assert task.offered_size() == (64, 48)
    prepare(task, *task.offered_size(), FRAMES)


def test_sides_beyond_what_one_run_makes():
    refused("4096×16.*up to 2048", lambda: repaint(torch.rand(1, 16, 4096, 3)))
    assert repaint(torch.rand(1, 16, 4096, 3), fit="stretch").offered_size() == (2048, 16)


def test_two_tasks_of_different_size():
    refused(
        "control video of VACE: Repaint goes with 64×48, the video of VACE: Inpaint with 48×64.*same.*fit",
        lambda: inpaint(clip(height=64, width=48), box(64, 48), task=repaint(clip())),
    )
    inpaint(clip(height=64, width=48), box(64, 48), fit="crop", task=repaint(clip()))


def test_first_and_last_frame_of_different_size():
    given = GivenFrames(clip(1), clip(1, 64, 64))
    refused("first frame.*64×48.*last frame.*64×64.*fit", lambda: extend(given, FRAMES))
    assert prepare(extend(given, FRAMES, fit="crop"), *SIZE, FRAMES).mask.sum() == (FRAMES - 2) * 64 * 48


# --- lengths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "advice"), [(10, r"trim \(9\) or hold \(13\)"), (300, r"trim \(241\); resample")])
def test_a_video_that_is_no_4n_plus_1(count, advice):
    said = refused(
        f"control video has {count} frames.*4n\\+1.*{advice}", lambda: repaint(torch.rand(count, 16, 16, 3))
    )
    assert ("hold" in said) == (count < 241)


@pytest.mark.parametrize(
    ("length", "wanted", "advice"),
    [
        ("refuse", 5, "Set num_frames to 9, or choose another length: trim or spread"),
        ("refuse", 13, "Set num_frames to 9, or choose another length: hold, spread or continue"),
        ("trim", 13, "Set num_frames to 9, or choose another length: hold, spread or continue"),
        ("continue", 5, "Set num_frames to 9, or choose another length: trim or spread"),
        ("hold", 5, "Set num_frames to 9, or choose another length: trim or spread"),
        ("resample", 13, "Set num_frames to 5, or choose another length: hold, spread or continue"),
    ],
)
def test_a_video_of_another_length(length, wanted, advice):
    task = repaint(clip(), length=length, fps=24 if length == "resample" else 16)
    said = refused(f"VACE: Repaint: .* num_frames is {wanted}.*{advice}", lambda: prepare(task, *SIZE, wanted))
    assert ("9 frames, 6 at 16 a second" if length == "resample" else "has 9 frames;") in said


def test_the_length_a_refusal_offers_works():
    for length, fps, wanted in (("refuse", 16, 13), ("trim", 16, 13), ("hold", 16, 5), ("resample", 24, 13)):
        task = repaint(clip(), length=length, fps=fps)
        said = refused("Set num_frames to", lambda: prepare(task, *SIZE, wanted))  # noqa: B023
        prepare(task, *SIZE, int(said.split("Set num_frames to ")[1].split(",")[0]))


def test_a_video_longer_than_81_frames_is_resampled_only_when_asked_to():
    long = torch.arange(121)[:, None, None, None].expand(-1, 16, 16, 3) / 255
    refused("121 frames", lambda: prepare(repaint(long), 16, 16, 81))
    taken = prepare(repaint(long, length="spread"), 16, 16, 81).canvas.frames[:, 0, 0, 0]
    assert (taken[0] * 255, taken[-1] * 255) == (0, 120), "first and last are kept"


def test_extend_counts_like_the_node_says():
    one = GivenFrames(clip(1))
    assert extend(one, 80, "new").offered_length() == 81
    assert extend(one, 81, "in all").offered_length() == 81
    refused("82 frames, 1 of them given.*81 or 85 in all, that is 80 or 84 new", lambda: extend(one, 81, "new"))
    refused("9 in all and 9 frames are given.*clip_frames", lambda: extend(GivenFrames(clip(9)), 9))
    refused(
        "VACE: Extend makes a video of 9 frames, VACE Sample is set to 81", lambda: prepare(extend(one, 9), *SIZE, 81)
    )


def test_two_tasks_of_different_length():
    refused(
        "first frame of VACE: Extend goes with 13 frames, the video of VACE: Inpaint with 9 frames.*another length",
        lambda: inpaint(clip(), box(), task=extend(GivenFrames(clip(1)), 13)),
    )


# --- masks -----------------------------------------------------------------------------------------------------


def test_a_mask_of_another_length():
    """One frame, or as many as the video; other tools repeat or cut it without a word."""
    refused(
        "The mask has 5 frames, the video 9. Give one mask frame, or as many as the video has",
        lambda: inpaint(clip(), moving_box(5)),
    )


def test_a_mask_of_another_size():
    refused("The mask is 32×24, the video 64×48.*draw it on one of its frames", lambda: inpaint(clip(), box(24, 32)))
    refused("64×64.*what Load Image gives for a picture without", lambda: inpaint(clip(), torch.zeros(1, 64, 64)))


def test_a_mask_the_wrong_way_round(caplog):
    refused("black everywhere.*White marks what is generated.*invert", lambda: inpaint(clip(), torch.zeros(1, 48, 64)))
    refused("white everywhere.*turn invert on", lambda: inpaint(clip(), torch.ones(1, 48, 64)))
    refused(
        "white everywhere and invert is on.*Turn invert off",
        lambda: inpaint(clip(), torch.ones(1, 48, 64), Brush(invert=True)),
    )
    with caplog.at_level(logging.WARNING):
        inpaint(clip(), 1 - box(rows=slice(0, 4)))
    assert "use invert" in caplog.text


def test_a_mask_too_soft_to_count():
    refused("0.40 at its brightest; only what is above 0.5", lambda: inpaint(clip(), box() * 0.4))


def test_a_mask_shrunk_away():
    refused("grow is -40", lambda: inpaint(clip(), box(), Brush(grow=-40)))


def test_a_mask_that_is_no_mask():
    refused("The mask has the shape", lambda: inpaint(clip(), torch.rand(9)))
    for shape in ((48, 64), (1, 1, 48, 64), (1, 48, 64, 1)):
        assert prepare(inpaint(clip(), box().reshape(shape)), *SIZE, FRAMES).mask.sum() == FRAMES * 24 * 22


# --- gray ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gray", [0.0, 0.5, 127 / 255, 128 / 255, 1.0])
def test_whatever_gray_is_painted_by_hand_the_model_sees_zero(gray):
    """VACE #107: 127, 127.5 and 128 are all in use; the model was trained with the middle."""
    video = torch.where(box()[..., None] > 0.5, gray, clip())
    inputs = prepare(inpaint(video, box()), *SIZE, FRAMES)
    assert (inputs.video * inputs.mask == 0).all()
    assert (prepare(None, *SIZE, FRAMES).video == 0).all()


def test_gray_frames_in_a_control_video_are_pointed_out(caplog):
    control = clip()
    control[1:] = 127 / 255
    with caplog.at_level(logging.WARNING):
        repaint(control)
    assert "8 of 9 control frames are plain gray" in caplog.text
    assert "VACE: Extend" in caplog.text


# --- references ------------------------------------------------------------------------------------------------


def test_references_of_any_number_size_and_form_keep_their_order(caplog):
    batch, alone = clip(2, 30, 70, seed=1), clip(1, 90, 20, seed=2)
    transparent = torch.cat([torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16, 1)], dim=-1)
    with caplog.at_level(logging.WARNING):
        task = reference([(alone, None)], task=reference([(batch, None), (transparent, None)]))
    assert [tuple(picture.shape[:2]) for picture in task.references] == [(30, 70), (30, 70), (16, 16), (90, 20)]
    assert torch.equal(task.references[1], batch[1])
    assert torch.equal(task.references[3], alone[0])
    assert (task.references[2] == 1).all(), "what alpha hides is white"
    assert "4 reference pictures" in caplog.text
    inputs = prepare(task, *SIZE, FRAMES)
    assert all(picture.shape == (3, 48, 64) for picture in inputs.references)
    assert (inputs.references[3][:, :, 0] == 1).all(), "letterboxed on white"


def test_a_reference_thinner_than_the_canvas_can_show():
    assert prepare(reference([(torch.rand(1, 900, 2, 3), None)]), *SIZE, FRAMES).references[0].shape == (3, 48, 64)


def test_the_subject_of_a_reference():
    picture = clip(1)
    cut = reference([(picture, box())]).references[0]
    assert torch.equal(cut[16:40, 8:30], picture[0, 16:40, 8:30])
    assert (cut[:16] == 1).all()
    assert torch.equal(reference([(picture, 1 - box())], invert_mask=True).references[0], cut)
    assert torch.equal(reference([(picture, box())], crop=True).references[0], picture[0, 16:40, 8:30])
    refused("mask of a reference picture is black everywhere.*invert_mask", lambda: reference([(picture, 0 * box())]))
    refused("The mask has 2 frames, the reference picture 1", lambda: reference([(picture, box(count=2))]))
    refused("64×64.*reference picture 64×48.*Load Image", lambda: reference([(picture, torch.zeros(1, 64, 64))]))


# --- tasks that contradict each other ----------------------------------------------------------------------------


def test_two_videos_for_the_same_place():
    task = inpaint(clip(seed=2), moving_box(), task=inpaint(clip(seed=1), box()))
    refused("VACE: Inpaint and VACE: Inpaint keep different videos", lambda: prepare(task, *SIZE, FRAMES))
    prepare(inpaint(clip(seed=1), moving_box(), task=inpaint(clip(seed=1), box())), *SIZE, FRAMES)


def test_two_frames_for_the_same_moment():
    task = extend(GivenFrames(clip(1, seed=2)), FRAMES, task=extend(GivenFrames(clip(1, seed=1)), FRAMES))
    refused("Two different pictures are given for frame 0", lambda: prepare(task, *SIZE, FRAMES))
    prepare(extend(GivenFrames(clip(1)), FRAMES, task=extend(GivenFrames(clip(1)), FRAMES)), *SIZE, FRAMES)


def test_a_control_nobody_would_see():
    hidden = repaint(clip(seed=2), task=repaint(clip(seed=1)))
    refused("all of the control video lies under a later control video", lambda: prepare(hidden, *SIZE, FRAMES))
    prepare(repaint(clip(seed=2), box(), task=repaint(clip(seed=1))), *SIZE, FRAMES)
    elsewhere = repaint(clip(), box(columns=slice(40, 60)), task=inpaint(clip(), box()))
    refused("lies where the task keeps what is there", lambda: prepare(elsewhere, *SIZE, FRAMES))


def test_a_control_mask_without_white():
    refused("mask of the control video is black everywhere", lambda: repaint(clip(), box() * 0))


def test_nothing_left_to_make():
    everything = extend(GivenFrames(between=clip(8), times="0 1 2 3 4 5 6 7"), FRAMES)
    everything = extend(GivenFrames(last=clip(1)), FRAMES, task=everything)
    refused("keeps every pixel of every frame", lambda: prepare(everything, *SIZE, FRAMES))


def test_two_strengths():
    weak = repaint(clip(), box(), strength=Strength(0.5))
    refused("strength is 1 .* here and 0.5 .* in the task", lambda: repaint(clip(), box(), task=weak))
    assert repaint(clip(seed=1), task=reference([(clip(1), None)])).strength == Strength()


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (-1, 1), (0, 2)])
def test_a_range_without_steps(start, end):
    refused("start_percent is .* leaves no step", lambda: repaint(clip(), strength=Strength(1, start, end)))


# --- extend and outpaint -----------------------------------------------------------------------------------------


def test_extend_from_nothing():
    refused("first, last and between are all empty", lambda: extend(GivenFrames()))


@pytest.mark.parametrize(
    ("times", "advice"),
    [
        ("", "times names 0 places.*between has 2 frames"),
        ("1", "times names 1 places"),
        ("1, 2, 3", "times names 3 places"),
        ("1, soon", "times has “soon”.*40.*2.5s"),
        ("1, 1e999s", "times has “1e999s”"),
        ("1, 9", "times has 9, outside of a video of 9 frames. Choose frames from 0 to 8, or times up to 0.5s"),
        ("1, 0.6s", "times has 0.6s, outside"),
        ("-1, 3", "times has -1, outside"),
        ("3, 3", "between and between both give frame 3"),
    ],
)
def test_times_that_cannot_be(times, advice):
    refused(advice, lambda: extend(GivenFrames(between=clip(2), times=times), FRAMES))


def test_clips_that_overlap():
    refused("first and between both give frame 2", lambda: extend(GivenFrames(clip(3), None, clip(1), "2"), FRAMES))


def test_outpainting_nothing():
    refused("are 0, so there is nothing to add", lambda: outpaint(clip(), Sides()))
    refused("overlap is 30.*leaves nothing", lambda: outpaint(clip(), Sides(25, 25, 25, 25), overlap=30))


def test_an_outpainted_canvas_in_pixels_has_to_be_a_multiple_of_16():
    refused(
        "canvas is 74×48.*Bring it to width 64 or 80, or choose",
        lambda: outpaint(clip(), Sides(left=10, unit="pixels")),
    )


# --- what arrives on the sockets ---------------------------------------------------------------------------------


def test_pictures_that_are_none():
    refused("control video has the shape", lambda: repaint(torch.rand(9, 48, 64, 2)))
    refused("at least one frame", lambda: repaint(torch.rand(0, 48, 64, 3)))


def test_pictures_of_other_forms_are_taken():
    gray, rgba, half = torch.rand(9, 48, 64, 1), torch.rand(9, 48, 64, 4), clip().half()
    assert prepare(repaint(gray), *SIZE, FRAMES).canvas.frames.shape[-1] == 3
    assert torch.equal(prepare(repaint(rgba), *SIZE, FRAMES).canvas.frames, rgba[..., :3])
    assert prepare(repaint(half), *SIZE, FRAMES).video.dtype == torch.float32
    broken = clip()
    broken[0, 0, 0], broken[0, 0, 1], broken[0, 0, 2] = float("nan"), 7.0, -7.0
    assert prepare(repaint(broken), *SIZE, FRAMES).canvas.frames[0, 0, :3, 0].tolist() == [0, 1, 0]


def test_a_task_without_pictures_offers_no_size():
    assert VACETask().offered_size() is None
    assert reference([(clip(1), None)]).offered_length() is None
