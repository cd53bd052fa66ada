"""Hunyuan-DiT in every form that people have it in."""

from __future__ import annotations

import pytest
import torch
from piying.core.checkpoints import load_component
from piying.core.quantization.fp8_linear import Fp8Linear

from .formats import models, names, writers


def assert_same(loaded, expected):
    found, wanted = loaded.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.fixture(scope="module")
def model():
    return models.hunyuan_transformer()


@pytest.fixture(scope="module")
def original(model):
    return names.hunyuan_transformer(models.tensors(model))


def test_names_of_the_original_code(original):
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()}
    assert shapes["blocks.3.attn1.Wqkv.weight"] == (96, 32)
    assert shapes["blocks.0.attn2.kv_proj.weight"] == (64, 24)
    assert shapes["blocks.0.attn2.q_proj.bias"] == (32,)
    assert shapes["blocks.0.attn1.q_norm.weight"] == (16,)
    assert shapes["blocks.1.mlp.fc1.weight"] == (139, 32)
    assert shapes["blocks.1.default_modulation.1.weight"] == (32, 32)
    assert shapes["blocks.3.skip_linear.weight"] == (32, 64)
    assert shapes["blocks.3.norm3.bias"] == shapes["blocks.0.norm2.weight"] == (32,)
    assert shapes["final_layer.adaLN_modulation.1.weight"] == (64, 32)
    assert shapes["pooler.positional_embedding"] == (10, 40)
    assert shapes["t_embedder.mlp.2.weight"] == (32, 32)
    assert shapes["x_embedder.proj.weight"] == (32, 4, 2, 2)
    assert not any(part in name for name in shapes for part in ("to_q", "time_extra", "ff.net", "norm_out"))


@pytest.mark.parametrize("wrapper", [None, "ema", "module"])
def test_the_original_layout(model, original, tmp_path, wrapper):
    if wrapper is None:
        path = writers.save(original, tmp_path / "model.safetensors")
    else:
        path = tmp_path / "pytorch_model_ema.pt"
        torch.save({wrapper: original}, path)
    loaded = load_component("transformer", path)
    assert_same(loaded, model)
    for key in models.HUNYUAN.keys() - {"mlp_ratio"}:
        assert getattr(loaded.config, key) == getattr(model.config, key), key


def test_version_1_1_has_conditions_of_size_and_style(tmp_path):
    model = models.hunyuan_transformer(use_style_cond_and_image_meta_size=True)
    original = names.hunyuan_transformer(models.tensors(model))
    assert original["extra_embedder.0.weight"].shape[1] == 1024 + 6 * 256 + 32
    assert "style_embedder.weight" in original
    assert_same(load_component("transformer", writers.save(original, tmp_path / "model.safetensors")), model)


def test_fp8_of_joined_layers_is_taken_apart(original, tmp_path):
    """ComfyUI scales Wqkv as one layer; diffusers has three."""
    tensors = writers.comfy_old(original)
    restored = writers.dequantised(original, 0)
    loaded = load_component("transformer", writers.save(tensors, tmp_path / "a.safetensors"), dtype=torch.float32)
    expected = load_component("transformer", writers.save(restored, tmp_path / "b.safetensors"))
    layer = loaded.blocks[0].attn1.to_k
    assert isinstance(layer, Fp8Linear)
    assert torch.equal(layer.dense(torch.float32), expected.blocks[0].attn1.to_k.weight)
    unpacked = load_component("transformer", tmp_path / "a.safetensors", dtype=torch.float32, storage="fp32")
    assert_same(unpacked, expected)


def test_the_vae(tmp_path):
    model = models.kl_vae()
    original = names.kl_vae(models.tensors(model))
    assert {"encoder.down.0.block.1.conv2.weight", "decoder.up.0.block.0.nin_shortcut.weight"} <= original.keys()
    assert {"decoder.up.2.upsample.conv.weight", "encoder.mid.attn_1.proj_out.bias"} <= original.keys()
    assert original["encoder.mid.attn_1.q.weight"].ndim == 4
    for tensors in (original, models.tensors(model)):
        loaded = load_component("vae", writers.save(tensors, tmp_path / "vae.safetensors"))
        assert_same(loaded, model)
        assert loaded.config.scaling_factor == 0.13025
        with torch.no_grad():
            latents = torch.ones(1, 4, 4, 4)
            assert torch.equal(loaded.decode(latents).sample, model.decode(latents).sample)


def test_the_checkpoint_with_everything_in_it(model, original, tmp_path):
    """ComfyUI's hunyuan_dit_1.2.safetensors: transformer, VAE, BERT without its pooler, mT5 with its tokenizer."""
    vae, bert, mt5 = models.kl_vae(), models.bert(pooling=False), models.mt5()
    everything = {
        "model.diffusion_model.": original,
        "vae.": names.kl_vae(models.tensors(vae)),
        "text_encoders.hydit_clip.transformer.bert.": models.tensors(bert),
        "text_encoders.mt5xl.transformer.": {n: t for n, t in models.tensors(mt5).items() if "embed_tokens" not in n},
        "text_encoders.hydit_clip.": {"logit_scale": torch.ones(())},
        "text_encoders.mt5xl.": {"logit_scale": torch.ones(()), "spiece_model": torch.zeros(9, dtype=torch.uint8)},
    }
    tensors = {prefix + name: tensor for prefix, part in everything.items() for name, tensor in part.items()}
    path = writers.save(tensors, tmp_path / "hunyuan_dit_1.2.safetensors")
    assert_same(load_component("transformer", path), model)
    assert_same(load_component("vae", path), vae)
    assert_same(load_component("text_encoder", path), bert)
    assert_same(load_component("text_encoder_2", path), mt5)
