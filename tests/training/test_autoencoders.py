"""The encoders set by hand are exact, and batches made without them equal what the pipeline makes with them."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import WanVACEPipeline
from piying.training import architectures, tasks, video_batches
from piying.training.data import clips, coverage, draw_paths
from piying.training.image_autoencoder import SCALE, image_autoencoder
from piying.training.image_autoencoder import picture_latents as image_latents
from piying.training.language import Scene
from torch.nn import functional

SCENE = Scene("red", "triangle", "moves left", "blue")


@pytest.fixture(scope="module")
def pipeline() -> WanVACEPipeline:
    torch.manual_seed(0)
    return architectures.wan_vace()


def test_video_latents_are_block_means(pipeline):
    clip = clips([SCENE], 9, 96, 64)
    with torch.no_grad():
        latents = pipeline.vae.encode(clip.transpose(1, 2)).latent_dist.mode()[0]
    means = functional.avg_pool2d(clip[0], 8)
    assert torch.allclose(latents[:3].transpose(0, 1), means[[0, 4, 8]], atol=1e-4)
    assert torch.allclose(latents[3:6].transpose(0, 1), means[[0, 2, 6]], atol=1e-4)


def test_video_decoder_starts_as_a_copier(pipeline):
    clip = clips([SCENE], 9, 64, 64)
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(clip.transpose(1, 2)).latent_dist.mode()).sample
    assert (decoded.transpose(1, 2) - clip).abs().mean() < 0.3


@pytest.mark.parametrize("task", ["first_frame", "last_frame", "inpaint", "outpaint", "edges", "boxes", "depth"])
def test_control_is_what_the_pipeline_prepares(pipeline, task):
    torch.manual_seed(0)
    paths = draw_paths([SCENE], 9, 64, 64)
    covered = coverage([SCENE.shape], paths, 64, 64)[0]
    clip = video_batches.paint(covered[None], torch.ones(1, 3), -torch.ones(1, 3))[0]
    made = tasks.make(task, clip[::2], covered[::2], paths.centres[0], paths.radii[0], random.Random(0))
    full = clip * (1 - made.mask[:, None])
    if task in tasks.CONTROLS:
        full = tasks.control_video(task, clip, covered, made.dark)
    mask = made.mask[None, None].expand(1, 3, -1, -1, -1)
    with torch.no_grad():
        latents = pipeline.prepare_video_latents(full.transpose(0, 1)[None], mask, [[]])
        expected = torch.cat([latents, pipeline.prepare_masks(mask, [[]])], dim=1)
    assert torch.allclose(
        video_batches.control_latents(made.video[None], made.mask[None]), expected.float(), atol=1e-3
    )


def test_image_latents_are_block_means():
    torch.manual_seed(0)
    vae, picture = image_autoencoder(), clips([SCENE], 1, 96, 64)[:, 0]
    with torch.no_grad():
        latents = vae.encode(picture).latent_dist.mode() * SCALE
        decoded = vae.decode(latents / SCALE).sample
    assert torch.allclose(latents, image_latents(picture), atol=1e-3)
    assert (decoded - picture).abs().mean() < 0.3
