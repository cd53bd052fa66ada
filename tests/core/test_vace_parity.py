"""What a task sends to the model equals what diffusers' WanVACEPipeline makes of the same inputs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.wan.conditioning import append_mask, encode_task, encode_video, prepare
from piying.core.wan.task.extend import GivenFrames, extend
from piying.core.wan.task.inpaint import inpaint
from piying.core.wan.task.outpaint import Sides, outpaint
from piying.core.wan.task.reference import reference
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import VACETask

from .vace_clips import box, clip, moving_box

WIDTH, HEIGHT, FRAMES = 64, 48, 9


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import WanVACEPipeline

    return WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32, text_encoder=None)


def pil(picture):
    from PIL import Image

    return Image.fromarray((picture * 255).round().byte().numpy())


def theirs(pipeline, video=None, mask=None, references=(), size=(WIDTH, HEIGHT)):
    """Return diffusers' control latents of a video [N, H, W, 3] in 0..1, a mask [N, H, W] and PIL references."""
    # diffusers puts the references in reverse order; the first has to be the first.
    images = [pil(picture) for picture in reversed(references)] or None
    video = None if video is None else video.permute(0, 3, 1, 2)[None]
    mask = None if mask is None else mask[None, :, None]
    video, mask, images = pipeline.preprocess_conditions(
        video, mask, images, 1, size[1], size[0], FRAMES, torch.float32, "cpu"
    )
    with torch.no_grad():
        latents = pipeline.prepare_video_latents(video, mask, images, None, "cpu")
    return torch.cat([latents, pipeline.prepare_masks(mask, images)], dim=1)


def ours(pipeline, task, size=(WIDTH, HEIGHT)):
    with torch.no_grad():
        inputs = prepare(task, *size, FRAMES)
        return append_mask(encode_task(partial(encode_video, pipeline.vae), inputs), inputs)


def same(ours, theirs):
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs)


def test_text_to_video(pipeline):
    same(ours(pipeline, None), theirs(pipeline))
    same(ours(pipeline, VACETask()), theirs(pipeline))
    assert ours(pipeline, None).shape == (1, 2 * 9 + 64, 3, HEIGHT // 8, WIDTH // 8)


@pytest.mark.parametrize("sizes", [[(48, 64)], [(32, 32), (104, 24)], [(48, 64), (8, 96), (96, 128)]])
def test_references_come_in_the_order_given(pipeline, sizes):
    """Sizes in multiples of 8, to which diffusers rounds references; the authors and we do not."""
    pictures = [clip(1, *size, seed=index)[0] for index, size in enumerate(sizes)]
    task = reference([(picture[None], None) for picture in pictures])
    result = ours(pipeline, task)
    same(result, theirs(pipeline, references=pictures))
    first = ours(pipeline, reference([(pictures[0][None], None)]))
    assert torch.equal(result[:, :, 0], first[:, :, 0]), "slot 0 holds the first reference"


def test_repaint(pipeline):
    control = clip(seed=3)
    same(ours(pipeline, repaint(control)), theirs(pipeline, control))


@pytest.mark.parametrize("mask", [box(), moving_box()])
def test_inpaint_shows_exact_gray_inside_the_mask(pipeline, mask):
    video = clip(seed=4)
    whole = mask.expand(FRAMES, -1, -1)
    gray = torch.where(whole[..., None] > 0.5, 0.5, video)
    same(ours(pipeline, inpaint(video, mask)), theirs(pipeline, gray, whole))


@pytest.mark.parametrize("where", ["first", "last", "both"])
@pytest.mark.parametrize("given", [1, 3])
def test_extend(pipeline, where, given):
    pictures = clip(2 * given, seed=5)
    video, mask = torch.full((FRAMES, HEIGHT, WIDTH, 3), 0.5), torch.ones(FRAMES, HEIGHT, WIDTH)
    first = pictures[:given] if where != "last" else None
    last = pictures[given:] if where != "first" else None
    if first is not None:
        video[:given], mask[:given] = first, 0
    if last is not None:
        video[-given:], mask[-given:] = last, 0
    same(ours(pipeline, extend(GivenFrames(first, last), FRAMES)), theirs(pipeline, video, mask))


def test_outpaint(pipeline):
    video = clip(height=48, width=32, seed=6)
    canvas, mask = torch.full((FRAMES, HEIGHT, WIDTH, 3), 0.5), torch.ones(FRAMES, HEIGHT, WIDTH)
    canvas[:, :, 8:40], mask[:, :, 8:40] = video, 0
    task = outpaint(video, Sides(left=8, right=24, unit="pixels"))
    same(ours(pipeline, task), theirs(pipeline, canvas, mask))


def test_everything_at_once(pipeline):
    """A reference, a region made anew under a control, and the first frame given."""
    video, pose, picture, start = clip(seed=7), clip(seed=8), clip(1, 24, 56, seed=9), clip(1, seed=10)
    mask = moving_box()
    task = reference([(picture, None)], task=inpaint(video, mask))
    task = extend(GivenFrames(start), FRAMES, task=repaint(pose, task=task))
    shown = torch.where(mask[..., None] > 0.5, pose, video)
    shown[0], mask[0] = start[0], 0
    same(ours(pipeline, task), theirs(pipeline, shown, mask, [picture[0]]))


def test_a_soft_mask_is_cut_in_the_middle_for_latents_and_mask_channels_alike(pipeline):
    video, mask = clip(seed=11), box()
    soft = mask * 0.6 + (1 - mask) * 0.4
    same(ours(pipeline, inpaint(video, soft)), ours(pipeline, inpaint(video, mask)))


def test_each_part_is_encoded_once(pipeline):
    calls = []

    def encode(video):
        calls.append(video.shape)
        return encode_video(pipeline.vae, video)

    with torch.no_grad():
        encode_task(encode, prepare(None, 32, 32, 5))
        assert calls == [(1, 3, 5, 32, 32)], "gray is the same on both sides of the mask"
        calls.clear()
        encode_task(encode, prepare(reference([(clip(2, seed=1), None)], task=repaint(clip(5, 32, 32))), 32, 32, 5))
    assert calls == [(1, 3, 5, 32, 32)] * 2 + [(1, 3, 1, 32, 32)] * 2
