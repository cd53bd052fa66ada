"""Z-Image's formulas of memory against live tensors of the real widths, counted on the meta device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from piying.core.catalog.component_sizes import TensorInfo, component, listed_components
from piying.core.families.image_vae import TILE, vae_memory
from piying.core.z_image.family import Z_IMAGE
from piying.core.z_image.phases import TEXT_TOKENS, ZImageWork, phases, sampling_memory

from .test_plan_peaks import RankAlone, attention_counts_by_its_output, on_meta, peak  # noqa: F401
from .test_sizes import flux_vae

PARTS = listed_components("z-image-turbo-bf16")


@pytest.fixture(autouse=True)
def attention_of_z_image_counts_by_its_output(monkeypatch):
    import diffusers.models.transformers.transformer_z_image as transformer_z_image
    from piying.core.z_image import shared_sampling

    for module in (transformer_z_image, shared_sampling):
        monkeypatch.setattr(module, "dispatch_attention_fn", lambda query, *others, **options: torch.empty_like(query))


def in_bf16(module):
    for parameter in module.eval().requires_grad_(False).parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return module


ROWS = [((1024, 1024), 1, 1), ((1280, 720), 2, 1), ((512, 512), 1, 1)]
SHARED_ROWS = [
    ((1024, 1024), 1, 2),
    ((1280, 720), 2, 3),
    ((1280, 720), 2, 4),
    ((1024, 1024), 1, 8),
    ((512, 512), 1, 10),
]


@pytest.mark.parametrize(("size", "branches", "cards"), [*ROWS, *SHARED_ROWS])
def test_sampling(size, branches, cards):
    """Four of the thirty layers: no block leaves anything for the next ones. 30 heads are not divided by 4 and 8."""
    from diffusers import ZImageTransformer2DModel
    from piying.core.z_image.shared_sampling import ZImageJob

    with torch.device("meta"):
        module = in_bf16(ZImageTransformer2DModel(n_layers=4))
    rotary = module.rope_embedder
    rotary.freqs_cis = [
        on_meta(length, width // 2, dtype=torch.complex64)
        for length, width in zip(rotary.axes_lens, rotary.axes_dims, strict=True)
    ]
    latents = [on_meta(16, 1, size[1] // 8, size[0] // 8) for _ in range(branches)]
    texts = [on_meta(TEXT_TOKENS, 2560) for _ in range(branches)]
    timestep = on_meta(branches, dtype=torch.float32)
    given = (timestep, *latents, *texts)
    with nullcontext() if cards == 1 else ZImageJob.tokens_split(module, RankAlone(cards)):
        measured = peak(module, lambda: module(latents, timestep, texts, return_dict=False), *given)
    tokens = size[0] * size[1] // 256 + TEXT_TOKENS
    predicted = sampling_memory(PARTS["transformer"], tokens, branches, cards=cards).peak("bf16")
    assert predicted == pytest.approx(measured, rel=0.05)
    assert predicted >= measured


@pytest.mark.parametrize("blocks", [4, 12])
def test_encoding_a_prompt(blocks):
    """A Qwen3 of an eighth of the width and the proportions of 4B: masks are not made on the meta device."""
    from transformers import Qwen3Config, Qwen3Model

    sizes = {"hidden_size": 320, "intermediate_size": 1216, "num_hidden_layers": blocks, "head_dim": 128}
    config = Qwen3Config(vocab_size=64, num_attention_heads=4, num_key_value_heads=1, **sizes)
    module = Qwen3Model(config).eval().requires_grad_(False)
    tokens, mask = torch.zeros(1, TEXT_TOKENS, dtype=torch.long), torch.ones(1, TEXT_TOKENS, dtype=torch.bool)
    mask[0, 300:] = False
    measured = peak(
        module,
        lambda: module(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-2],
        tokens,
        mask,
    )
    entries = {name: TensorInfo(tuple(tensor.shape), "F32") for name, tensor in module.state_dict().items()}
    encoder = component("text_encoder", entries, Z_IMAGE.rules["text_encoder"])
    encode = phases({**PARTS, "text_encoder": encoder}, ZImageWork())[0]
    predicted = encode.variants[0].peak("fp32")
    assert predicted == pytest.approx(measured, rel=0.05)
    assert predicted >= 0.98 * measured


@pytest.mark.parametrize("variant", ["whole", "tiled"])
@pytest.mark.parametrize("decodes", [False, True])
def test_the_vae(decodes, variant):
    width, height = 1280, 1024
    with torch.device("meta"):
        vae = in_bf16(flux_vae())
    vae.tile_sample_min_size, vae.tile_latent_min_size, vae.use_tiling = TILE, TILE // 8, variant == "tiled"
    if decodes:
        given = on_meta(1, 16, height // 8, width // 8)
        measured = peak(vae, lambda: vae.decode(given, return_dict=False), given)
    else:
        given = on_meta(1, 3, height, width)
        measured = peak(vae, lambda: vae.encode(given)) + given.numel() * 2
    (found,) = [one for one in vae_memory(PARTS["vae"], width, height, decodes=decodes) if one.name == variant]
    assert found.peak("bf16") == pytest.approx(measured, rel=0.05)
