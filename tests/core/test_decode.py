"""Frames decoded a few at a time are the frames that diffusers decodes at once."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor
from piying.core.catalog.installed_model import built_in
from piying.core.wan.decode import decode, decode_steps
from piying.core.wan.latent_scale import denormalised


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKLWan.from_pretrained(built_in("wan_vace").path / "vae").eval()


def latents(vae, frames, height, width):
    shape = (1, vae.config.z_dim, 1 + (frames - 1) // 4, height // 8, width // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))


def by_diffusers(vae, z):
    video = vae.decode(denormalised(vae.config, z)).sample
    return VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="pt")[0].permute(0, 2, 3, 1)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 48), (5, 48, 32), (17, 64, 96)])
@torch.no_grad()
def test_whole(vae, frames, height, width):
    z, done = latents(vae, frames, height, width), []
    result = decode(vae, z, tiled=False, on_step=done.append)
    assert torch.equal(result, by_diffusers(vae, z))
    assert result.shape == (frames, height, width, 3)
    assert done == list(range(1, decode_steps(vae, z, False) + 1))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (112, 64), (48, 48), (80, 80)])
@torch.no_grad()
def test_tiled(vae, height, width):
    """Small tiles: several rows and columns, cut ones at the edges."""
    z, done = latents(vae, 5, height, width), []
    vae.enable_tiling(48, 48, 32, 32)
    try:
        expected = by_diffusers(vae, z)
        assert torch.equal(decode(vae, z, tiled=True, on_step=done.append), expected)
        assert done == list(range(1, decode_steps(vae, z, True) + 1))
    finally:
        vae.disable_tiling()


@torch.no_grad()
def test_an_error_leaves_no_cache_on_the_device(vae):
    def stop(done):
        raise KeyboardInterrupt

    z = latents(vae, 9, 32, 32)
    with pytest.raises(KeyboardInterrupt):
        decode(vae, z, tiled=False, on_step=stop)
    assert all(entry is None for entry in vae._feat_map)
