"""A window that turns from the one before in its latents: exact where that is taken as it is, between on the ramp."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.wan.denoise import PrefixLatents, denoise
from piying.core.wan.samplers import sampler

Z = 9  # channels of the built-in latents


@pytest.fixture(scope="module")
def sampled():
    """Sample three latent frames and a reference in front, steered by what is given."""
    from diffusers import UniPCMultistepScheduler, WanVACETransformer3DModel

    path = built_in("wan_vace").path
    transformer = WanVACETransformer3DModel.from_pretrained(path / "transformer", torch_dtype=torch.float32)
    config, draw = transformer.config, torch.Generator().manual_seed(1)
    noise = torch.randn(1, config.in_channels, 5, 4, 4, generator=draw)
    control = torch.randn(1, config.vace_in_channels, 5, 4, 4, generator=draw)
    embeds = [torch.randn(1, 8, config.text_dim, generator=draw) for _ in range(2)]

    def run(steer):
        config = UniPCMultistepScheduler.load_config(path / "scheduler")
        generator, device = torch.Generator(), torch.device("cpu")
        made = sampler("uni_pc", config, shift=5.0, steps=6, sigmas=None, device=device, generator=generator)
        with torch.no_grad():
            return denoise(
                transformer,
                made,
                noise,
                embeds,
                control=control,
                steps=6,
                cfg_at=lambda step, steps: 3.0,
                scale_at=lambda step, steps: 1.0,
                on_step=lambda done, latents, clean: None,
                check_cancelled=lambda: None,
                steer=steer,
            )

    return run


def test_weights_fall_over_the_ramp_alone():
    weights = PrefixLatents(torch.zeros(1, Z, 5, 4, 4), ramp=3).weights()
    assert weights.shape == (1, 1, 5, 1, 1)
    assert weights.flatten().tolist() == [1, 1, 0.75, 0.5, 0.25]


def test_what_is_taken_as_it_is_comes_out_as_it_is(sampled):
    before = torch.randn(1, Z, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    plain, steered = sampled(None), sampled(PrefixLatents(before, ramp=0).steer(references=1))
    torch.testing.assert_close(steered[:, :, 2:4], before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain[:, :, 2:4], before, atol=0.1)
    assert not torch.equal(steered[:, :, 4:], plain[:, :, 4:]), "what follows is made to go with it"


def test_on_the_ramp_it_lies_between(sampled):
    before = torch.randn(1, Z, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    plain, steered = sampled(None), sampled(PrefixLatents(before, ramp=3).steer(references=1))
    far = [(steered[:, :, 2 + place] - before[:, :, place]).abs().mean() for place in range(3)]
    assert far[0] < far[1] < far[2] < (plain[:, :, 4] - before[:, :, 2]).abs().mean()
