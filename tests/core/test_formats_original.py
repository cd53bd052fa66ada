"""Files of the authors' own models: our module computes what their code computes.

WAN_PATH names a checkout of Wan-Video/Wan2.1, WAN22_PATH one of Wan-Video/Wan2.2, VIDEOX_PATH one of
aigc-apps/VideoX-Fun, HUNYUANDIT_PATH one of Tencent-Hunyuan/HunyuanDiT.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from piying.core.checkpoints import load_component
from piying.core.wan.transformer import predict

from .formats import models, originals, writers


def assert_close(found, expected, within=2e-5):
    """Compare with the output's size, as rounding grows with it."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= within * expected.abs().max()
    assert expected.std() > 1e-3


def run_original(model):
    inputs = models.wan_inputs()
    with torch.no_grad():
        return torch.stack(
            model(
                [inputs["hidden_states"][0]],
                t=inputs["timestep"],
                vace_context=[inputs["control_hidden_states"][0]],
                context=[inputs["encoder_hidden_states"][0]],
                seq_len=2 * 2 * 3,
            )
        )


@pytest.fixture(scope="module")
def wan():
    modules = originals.wan()
    return modules, originals.wan_transformer(modules)


@pytest.mark.parametrize("prefix", ["", writers.PREFIX])
def test_the_wan_transformer(wan, tmp_path, prefix):
    _, model = wan
    tensors = {prefix + name: tensor for name, tensor in models.tensors(model).items()}
    loaded = load_component("transformer", writers.save(tensors, tmp_path / "model.safetensors"))
    assert_close(models.run_wan(loaded), run_original(model))


FORMS = {
    "plain fp8": (writers.plain_fp8, lambda state: {n: t.float() for n, t in writers.plain_fp8(state).items()}),
    "old": (writers.comfy_old, lambda state: writers.dequantised(state, 0)),
    "old, by blocks": (
        lambda state: writers.comfy_old(state, blocks=4),
        lambda state: writers.dequantised(state, 4),
    ),
    "new": (writers.comfy_new, lambda state: writers.dequantised(state, 0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_wan_transformer_in_fp8(wan, tmp_path, form):
    modules, model = wan
    write, restore = FORMS[form]
    path = writers.save(write(models.tensors(model)), tmp_path / "model.safetensors")
    restored = originals.wan_transformer(modules)
    restored.load_state_dict(restore(models.tensors(model)))
    assert_close(models.run_wan(load_component("transformer", path, dtype=torch.float32)), run_original(restored))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_the_wan_transformer_in_gguf(wan, tmp_path, kind):
    pytest.importorskip("gguf", reason="the gguf package is optional")
    modules, model = wan
    restored = originals.wan_transformer(modules)
    restored.load_state_dict(writers.gguf(models.tensors(model), tmp_path / "model.gguf", kind))
    loaded = load_component("transformer", tmp_path / "model.gguf", dtype=torch.float32)
    assert_close(models.run_wan(loaded), run_original(restored))


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "wan_2.1_vae.safetensors"])
def test_the_wan_vae(wan, tmp_path, name):
    modules, _ = wan
    sizes = {"dim": 8, "z_dim": 16, "temperal_downsample": [False, True, True]}
    model = models.randomised(modules.vae.WanVAE_(**sizes))
    tensors = models.tensors(model)
    torch.save(tensors, tmp_path / name) if name.endswith("pth") else writers.save(tensors, tmp_path / name)
    loaded = load_component("vae", tmp_path / name)
    video = torch.randn(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = model.encode(video, [0.0, 1.0])
        assert_close(loaded.encode(video).latent_dist.mode(), latents)
        expected = model.decode(latents, [0.0, 1.0]).clamp(-1, 1)
        assert_close(loaded.decode(latents).sample, expected)


SMALL = {"dim": 128, "ffn_dim": 160, "num_heads": 1, "num_layers": 2, "text_dim": 48}


@pytest.mark.parametrize("kind", ["t2v", "i2v", "flf2v"])
def test_wan_without_vace(wan, tmp_path, kind):
    """Image-to-video models read the frames twice: as channels, and as what an image encoder makes of them."""
    modules, _ = wan
    channels = 16 if kind == "t2v" else 36
    model = modules.model.WanModel(model_type=kind, text_len=512, in_dim=channels, out_dim=16, **SMALL)
    models.randomised(model)
    loaded = load_component("transformer", writers.save(models.tensors(model), tmp_path / "model.safetensors"))
    assert loaded.config.in_channels == channels
    generator = torch.Generator().manual_seed(3)
    latents, beside = torch.randn(16, 2, 4, 6, generator=generator), torch.randn(20, 2, 4, 6, generator=generator)
    text, pictures = torch.randn(7, 48, generator=generator), 2 if kind == "flf2v" else 1
    seen = torch.randn(pictures, 257, 1280, generator=generator)
    given = {} if kind == "t2v" else {"y": [beside], "clip_fea": seen}
    read = latents if kind == "t2v" else torch.cat([latents, beside])
    with torch.no_grad():
        expected = model([latents], t=torch.tensor([500.0]), context=[text], seq_len=2 * 2 * 3, **given)[0]
        padded = torch.cat([text, torch.zeros(505, 48)])[None]
        picture = None if kind == "t2v" else seen
        found = predict(loaded, read[None], torch.tensor([500.0]), embeds=[padded], picture=picture)[0]
    assert_close(found[0], expected)


def test_an_expert_of_wan22_vace_fun(tmp_path):
    """VideoX-Fun's own network, each of whose two experts is this one."""
    module = originals.videox()
    sizes = {"dim": 128, "ffn_dim": 160, "num_heads": 1, "num_layers": 4, "text_dim": 48}
    model = module.VaceWanTransformer3DModel(vace_layers=[0, 2], vace_in_dim=96, **sizes)
    models.randomised(model)
    loaded = load_component("transformer", writers.save(models.tensors(model), tmp_path / "model.safetensors"))
    generator = torch.Generator().manual_seed(3)
    latents, control = (torch.randn(1, channels, 2, 4, 6, generator=generator) for channels in (16, 96))
    text, when = torch.randn(7, 48, generator=generator), torch.tensor([500.0])
    with torch.no_grad():
        expected = model(x=latents, t=when, context=[text], seq_len=12, vace_context=list(control))
        padded = torch.cat([text, torch.zeros(505, 48)])[None]
        found = predict(loaded, latents, when, embeds=[padded], control=control)[0]
    assert_close(found, torch.stack(list(expected)))


def test_wan_with_a_timestep_for_each_token(tmp_path):
    modules = originals.wan22()
    model = modules.model.WanModel(model_type="ti2v", text_len=512, in_dim=48, out_dim=48, **SMALL)
    models.randomised(model)
    loaded = load_component("transformer", writers.save(models.tensors(model), tmp_path / "model.safetensors"))
    generator = torch.Generator().manual_seed(3)
    latents, text = torch.randn(48, 2, 4, 6, generator=generator), torch.randn(7, 48, generator=generator)
    times = torch.tensor([[0.0] * 6 + [700.0] * 6])
    with torch.no_grad():
        expected = model([latents], t=times, context=[text], seq_len=12)[0]
        padded = torch.cat([text, torch.zeros(505, 48)])[None]
        found = predict(loaded, latents[None], times, embeds=[padded])[0]
    assert_close(found[0], expected)


@pytest.mark.parametrize("name", ["Wan2.2_VAE.pth", "wan2.2_vae.safetensors"])
def test_the_wan22_vae(tmp_path, name):
    modules = originals.wan22()
    sizes = {"dim": 8, "dec_dim": 12, "z_dim": 48, "temperal_downsample": [False, True, True]}
    model = models.randomised(modules.vae2_2.WanVAE_(**sizes))
    tensors = models.tensors(model)
    torch.save(tensors, tmp_path / name) if name.endswith("pth") else writers.save(tensors, tmp_path / name)
    loaded = load_component("vae", tmp_path / name)
    mean, spread = (torch.tensor(loaded.config[name]) for name in ("latents_mean", "latents_std"))
    assert torch.allclose(torch.stack([mean, 1 / spread]), torch.stack(wan22_scale(modules)))
    video = torch.randn(1, 3, 9, 32, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = model.encode(video, [0.0, 1.0])
        assert_close(loaded.encode(video).latent_dist.mode(), latents)
        expected = model.decode(latents, [0.0, 1.0]).clamp(-1, 1)
        assert_close(loaded.decode(latents).sample, expected)


def wan22_scale(modules):
    """Return mean and inverse spread of latents as the authors' class has them, without reading its file."""
    with mock.patch.object(modules.vae2_2, "_video_vae", lambda **sizes: torch.nn.Identity()):
        return modules.vae2_2.Wan2_2_VAE(device="cpu").scale


@pytest.mark.parametrize("name", ["models_t5_umt5-xxl-enc-bf16.pth", "umt5.safetensors"])
def test_umt5(wan, tmp_path, name):
    modules, _ = wan
    sizes = {"dim": 48, "dim_attn": 128, "dim_ffn": 80, "num_heads": 2, "num_layers": 3, "num_buckets": 32}
    model = models.randomised(modules.t5.T5Encoder(vocab=99, shared_pos=False, **sizes))
    tensors = models.tensors(model)
    torch.save(tensors, tmp_path / name) if name.endswith("pth") else writers.save(tensors, tmp_path / name)
    loaded = load_component("text_encoder", tmp_path / name)
    tokens, mask = torch.tensor([[5, 9, 33, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        assert_close(loaded(tokens, attention_mask=mask)[0][:, :4], model(tokens, mask)[:, :4])


@pytest.mark.parametrize("conditions", [False, True], ids=["v1.2", "v1.1"])
@pytest.mark.parametrize("wrapper", ["ema", None])
def test_hunyuan_dit(tmp_path, conditions, wrapper):
    module, rotary = originals.hunyuan()
    model = originals.hunyuan_transformer(module, conditions)
    tensors = models.tensors(model)
    path = tmp_path / "pytorch_model_ema.pt"
    torch.save({wrapper: tensors}, path) if wrapper else writers.save(tensors, path)
    loaded = load_component("transformer", path)
    generator = torch.Generator().manual_seed(5)
    cosine, sine = rotary.get_2d_rotary_pos_embed(16, (0, 0), (4, 4), (4, 4))
    common = {
        "encoder_hidden_states": torch.randn(1, 7, 24, generator=generator),
        "text_embedding_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]]),
        "encoder_hidden_states_t5": torch.randn(1, 9, 40, generator=generator),
        "text_embedding_mask_t5": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0]]),
        "image_meta_size": torch.tensor([[64.0, 64, 64, 64, 0, 0]]) if conditions else None,
        "style": torch.tensor([0]) if conditions else None,
        "return_dict": False,
    }
    latents, timestep = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([300.0])
    with torch.no_grad():
        expected = model(latents, timestep, cos_cis_img=cosine, sin_cis_img=sine, **common)
        found = loaded(latents, timestep, image_rotary_emb=(cosine, sine), **common)[0]
    assert_close(found, expected)
