"""Wan2.1-VACE in every form that people have it in: the same tensors and the same output."""

from __future__ import annotations

import json

import pytest
import torch
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.files.gguf_blocks import PLAIN
from piying.core.quantization.fp8_linear import Fp8Linear
from piying.core.quantization.gguf_linear import GgufLinear

from .formats import models, names, writers


@pytest.fixture(scope="module")
def model():
    return models.wan_transformer()


@pytest.fixture(scope="module")
def original(model):
    return names.wan_transformer(models.tensors(model))


def assert_same(loaded, expected):
    found, wanted = loaded.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_names_of_the_original_code(original):
    """A few names as Wan2.1 writes them, so that map and way back cannot be wrong together."""
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()}
    assert shapes["blocks.3.self_attn.q.weight"] == (128, 128)
    assert shapes["blocks.0.cross_attn.norm_k.weight"] == (128,)
    assert shapes["vace_blocks.1.ffn.2.bias"] == (128,)
    assert shapes["vace_blocks.0.before_proj.weight"] == (128, 128)
    assert shapes["vace_blocks.1.after_proj.bias"] == (128,)
    assert shapes["blocks.2.norm3.weight"] == (128,)
    assert shapes["blocks.2.modulation"] == (1, 6, 128)
    assert shapes["head.modulation"] == (1, 2, 128)
    assert shapes["head.head.weight"] == (64, 128)
    assert shapes["text_embedding.2.weight"] == (128, 128)
    assert shapes["time_projection.1.weight"] == (768, 128)
    assert shapes["vace_patch_embedding.weight"] == (128, 96, 1, 2, 2)
    assert not any(part in name for name in shapes for part in ("attn1", "to_q", "norm2", "proj_in", "condition"))


@pytest.mark.parametrize("prefix", ["", writers.PREFIX, "model.", "module.", "pipe.dit."])
def test_the_original_layout(model, original, tmp_path, prefix):
    """Also ComfyUI's, under its prefix, and under those of modules around it; the file's name says nothing."""
    path = writers.save({prefix + name: tensor for name, tensor in original.items()}, tmp_path / "renamed.bin")
    loaded = load_component("transformer", path, dtype=torch.float32)
    assert_same(loaded, model)
    assert torch.equal(models.run_wan(loaded), models.run_wan(model))


def test_the_architecture_is_read_from_shapes(model, original, tmp_path):
    loaded = load_component("transformer", writers.save(original, tmp_path / "model.safetensors"))
    for key in models.WAN:
        assert getattr(loaded.config, key) == getattr(model.config, key), key
    assert loaded.config.cross_attn_norm


def test_a_single_file_with_the_names_of_diffusers(model, tmp_path):
    path = writers.save(models.tensors(model), tmp_path / "model.safetensors")
    assert_same(load_component("transformer", path), model)


def test_a_folder_as_the_authors_published_it(model, original, tmp_path):
    """Sharded, with a config.json that is not of diffusers."""
    every = sorted(original)
    shards = {f"diffusion_pytorch_model-0000{n + 1}-of-00002.safetensors": every[n::2] for n in range(2)}
    for file, part in shards.items():
        writers.save({name: original[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VaceWanModel", "dim": 128}))
    assert_same(load_component("transformer", tmp_path), model)


def test_mixed_types_become_one_but_for_the_islands(original, tmp_path):
    """The published 1.3B has an fp32 base and a bf16 VACE part."""
    mixed = {name: tensor.bfloat16() if "vace" in name else tensor for name, tensor in original.items()}
    path = writers.save(mixed, tmp_path / "model.safetensors")
    loaded = load_component("transformer", path, dtype=torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == types["vace_blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["blocks.0.scale_shift_table"] == types["vace_blocks.0.norm2.weight"] == torch.float32
    assert types["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    as_stored = load_component("transformer", path)
    types = {name: parameter.dtype for name, parameter in as_stored.named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == torch.float32
    assert types["vace_blocks.0.attn1.to_q.weight"] == torch.bfloat16


def test_a_base_model_and_a_vace_module(model, original, tmp_path):
    parts = {"base": {}, "vace": {}}
    for name, tensor in original.items():
        parts["vace" if name.startswith("vace") else "base"][name] = tensor
    base = writers.save({writers.PREFIX + name: tensor for name, tensor in parts["base"].items()}, tmp_path / "a.sft")
    module = writers.save(parts["vace"], tmp_path / "b.safetensors")
    assert_same(load_component("transformer", [base, module]), model)
    alone = load_component("transformer", base)
    assert type(alone).__name__ == "WanTransformer3DModel"
    assert torch.equal(alone.blocks[1].attn1.to_q.weight, model.blocks[1].attn1.to_q.weight)
    with pytest.raises(PiyingError, match="the VACE module alone"):
        load_component("transformer", module)
    with pytest.raises(PiyingError, match="is in more than one of them"):
        load_component("transformer", [base, base])


FP8_FORMS = {
    "plain": lambda state: (writers.plain_fp8(state), {n: t.float() for n, t in writers.plain_fp8(state).items()}),
    "old": lambda state: (writers.comfy_old(state), writers.dequantised(state, 0)),
    "old, prefixed": lambda state: (writers.comfy_old(state, writers.PREFIX), writers.dequantised(state, 0)),
    "old, by blocks": lambda state: (writers.comfy_old(state, blocks=4), writers.dequantised(state, 4)),
    "old, by rows": lambda state: (writers.comfy_old(state, blocks=1), writers.dequantised(state, 1)),
    "new": lambda state: (writers.comfy_new(state), writers.dequantised(state, 0)),
    "new, prefixed": lambda state: (writers.comfy_new(state, writers.PREFIX), writers.dequantised(state, 0)),
    "new, in the header": lambda state: (writers.comfy_new(state, marker=False), writers.dequantised(state, 0)),
}


def with_weights(restored):
    """Return a diffusers model of dequantised weights, loaded without any of our code."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    expected = models.wan_transformer()
    expected.load_state_dict(convert_wan_transformer_to_diffusers(dict(restored)))
    return expected


@pytest.mark.parametrize("form", FP8_FORMS)
def test_fp8_forms_compute_with_dequantised_weights(original, tmp_path, form):
    tensors, restored = FP8_FORMS[form](original)
    metadata = writers.comfy_metadata(original) if "header" in form else None
    path = writers.save(tensors, tmp_path / "model.safetensors", metadata)
    expected = with_weights(restored)
    loaded = load_component("transformer", path, dtype=torch.float32)
    assert isinstance(loaded.blocks[0].attn1.to_q, Fp8Linear), "FP8 stays FP8 in memory"
    assert torch.equal(models.run_wan(loaded), models.run_wan(expected))
    unpacked = load_component("transformer", path, dtype=torch.float32, storage="fp32")
    assert_same(unpacked, expected)


@pytest.mark.parametrize(
    ("kind", "folded"),
    [("Q8_0", True), ("Q8_0", False), ("Q5_0", True), ("Q4_0", True), ("Q5_1", True), ("Q4_1", True), ("BF16", True)],
)
def test_gguf(original, tmp_path, kind, folded):
    pytest.importorskip("gguf", reason="the gguf package is optional")
    restored = writers.gguf(original, tmp_path / "model.gguf", kind, original_shapes=folded)
    expected = with_weights(restored)
    loaded = load_component("transformer", tmp_path / "model.gguf", dtype=torch.float32)
    is_packed = isinstance(loaded.blocks[0].attn1.to_q, GgufLinear)
    assert is_packed == (kind not in PLAIN), "blocks stay packed in memory"
    assert torch.equal(models.run_wan(loaded), models.run_wan(expected))
    unpacked = load_component("transformer", tmp_path / "model.gguf", dtype=torch.float32, storage="fp32")
    assert_same(unpacked, expected)


def k_quant(kind):
    """Return random bytes of a packed tensor [128, 256] with scales of a decent size, and their values."""
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    form = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[form]
    packed = numpy.random.default_rng(0).integers(0, 256, (128, 256 // block * size), dtype=numpy.uint8)
    halves = {"Q6_K": (208,), "Q5_K": (0, 2), "Q4_K": (0, 2), "Q3_K": (108,), "Q2_K": (80, 82)}[kind]
    for at in halves:
        packed[:, at : at + 2] = numpy.array([0.01], numpy.float16).view(numpy.uint8)
    return packed, torch.from_numpy(quants.dequantize(packed, form))


@pytest.mark.parametrize("arch", ["wan", "wan2"], ids=["odd", "even"])
@pytest.mark.parametrize("kind", ["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"])
def test_gguf_of_kinds_that_nobody_packs_in_python(tmp_path, kind, arch):
    """In a file without padding, a tensor begins anywhere."""
    pytest.importorskip("gguf", reason="the gguf package is optional")
    from gguf import GGMLQuantizationType, GGUFWriter
    from piying.core.files.open import open_tensors

    packed, expected = k_quant(kind)
    writer = GGUFWriter(tmp_path / "one.gguf", arch=arch)
    writer.add_custom_alignment(1)
    writer.add_tensor("blocks.0.ffn.0.weight", packed, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = open_tensors(tmp_path / "one.gguf").values()
    assert tensor.shape == (128, 256)
    assert torch.equal(tensor.read(), expected)


def test_the_vae(tmp_path):
    model = models.wan_vae()
    original = names.wan_vae(models.tensors(model))
    assert {"encoder.conv1.weight", "encoder.middle.1.to_qkv.weight", "decoder.head.0.gamma"} <= original.keys()
    assert {"decoder.upsamples.3.resample.1.weight", "decoder.upsamples.14.residual.6.bias"} <= original.keys()
    assert {"encoder.downsamples.5.time_conv.bias", "conv2.weight"} <= original.keys()
    torch.save(original, tmp_path / "Wan2.1_VAE.pth")
    files = [tmp_path / "Wan2.1_VAE.pth", writers.save(original, tmp_path / "vae.safetensors")]
    files.append(writers.save(models.tensors(model), tmp_path / "theirs.safetensors"))
    for path in files:
        loaded = load_component("vae", path)
        assert_same(loaded, model)
        for key in ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean"):
            assert getattr(loaded.config, key) == getattr(model.config, key), key


# Of LightX2V's WanVAE_ with pruning_rate 0.75: a quarter of the widths of Wan2.1's.
LIGHT = {
    "encoder.conv1.weight": (24, 3, 3, 3, 3),
    "encoder.downsamples.5.time_conv.weight": (48, 48, 3, 1, 1),
    "encoder.middle.1.to_qkv.weight": (288, 96, 1, 1),
    "encoder.head.2.weight": (32, 96, 3, 3, 3),
    "decoder.conv1.weight": (96, 16, 3, 3, 3),
    "decoder.upsamples.4.shortcut.weight": (96, 48, 1, 1, 1),
    "decoder.upsamples.7.resample.1.weight": (48, 96, 3, 3),
    "decoder.upsamples.14.residual.2.weight": (24, 24, 3, 3, 3),
    "decoder.head.0.gamma": (24, 1, 1, 1),
}


@torch.no_grad()
def test_the_pruned_vae(tmp_path):
    """LightVAE's widths are read from its file, and it codes as AutoencoderKLWan of those widths does."""
    from diffusers import AutoencoderKLWan

    model = models.randomised(AutoencoderKLWan(base_dim=24)).eval()
    original = names.wan_vae(models.tensors(model))
    assert {name: tuple(original[name].shape) for name in LIGHT} == LIGHT
    torch.save(original, tmp_path / "lightvaew2_1.pth")
    for path in (tmp_path / "lightvaew2_1.pth", writers.save(original, tmp_path / "lightvaew2_1.safetensors")):
        assert (inspect(path).what, inspect(path).reason) == ("a LightVAE (pruned Wan2.1 VAE)", "")
        loaded = load_component("vae", path)
        assert_same(loaded, model)
        assert (loaded.config.base_dim, loaded.config.latents_std) == (24, model.config.latents_std)
    video = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    latents = model.encode(video).latent_dist.mode()
    assert torch.equal(loaded.eval().encode(video).latent_dist.mode(), latents)
    assert torch.equal(loaded.decode(latents).sample, model.decode(latents).sample)


@pytest.mark.parametrize("form", ["svdquant_w4a4", "awq_w4a16", "torchao_int4"])
def test_formats_that_are_not_read_are_named(original, tmp_path, form):
    path = writers.save(writers.comfy_new(original, form=form), tmp_path / "wan2.1_vace_14B_w4a4.safetensors")
    with pytest.raises(PiyingError, match=f"stored as {form}, which this pack cannot read. Readable: bf16"):
        load_component("transformer", path)
    text = writers.comfy_metadata(original, form=form)
    path = writers.save(writers.comfy_new(original, marker=False), tmp_path / "in_the_header.safetensors", text)
    with pytest.raises(PiyingError, match=f"stored as {form}"):
        load_component("transformer", path)


def test_a_model_for_other_inputs_is_refused_by_name(original, tmp_path):
    image = original | {"blocks.0.cross_attn.k_img.weight": torch.zeros(128, 128)}
    with pytest.raises(PiyingError, match="1 tensors have no place in it, blocks.0.attn2.add_k_proj.weight first"):
        load_component("transformer", writers.save(image, tmp_path / "i2v.safetensors"))
    animated = original | {"pose_patch_embedding.weight": torch.zeros(128, 16, 1, 2, 2)}
    with pytest.raises(PiyingError, match="pose_patch_embedding.weight is no tensor of a Wan transformer"):
        load_component("transformer", writers.save(animated, tmp_path / "animate.safetensors"))


def test_a_file_of_another_kind_says_what_it_is(original, tmp_path):
    path = writers.save(original, tmp_path / "model.safetensors")
    with pytest.raises(PiyingError, match="this is a Wan2.1-VACE transformer, not a vae"):
        load_component("vae", path)
    clip = {"text_model.embeddings.token_embedding.weight": torch.zeros(10, 768)}
    with pytest.raises(PiyingError, match="this is a CLIP-L text encoder, not a text encoder"):
        load_component("text_encoder", writers.save(clip, tmp_path / "clip.safetensors"))


def test_a_toy_width_needs_a_configuration(tmp_path):
    model = models.wan_transformer(attention_head_dim=24, num_attention_heads=2)
    path = writers.save(names.wan_transformer(models.tensors(model)), tmp_path / "toy.safetensors")
    with pytest.raises(PiyingError, match="it needs a config.json"):
        load_component("transformer", path)
    assert_same(load_component("transformer", path, config=dict(model.config)), model)


class Bomb:
    def __reduce__(self):
        import os

        return os.mkdir, ("harm",)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1), "bomb": Bomb()}, "vae.pth")
    with pytest.raises(PiyingError, match="holds more than tensors"):
        load_component("vae", tmp_path / "vae.pth")
    assert not (tmp_path / "harm").exists()
