"""LoRA files in every spelling: the output is that of the merged weights, and they come off again."""

from __future__ import annotations

import pytest
import torch
from piying.core.checkpoints import apply_lora, load_component
from piying.core.errors import PiyingError
from piying.core.quantization.casting import cast_module
from piying.core.quantization.fp8_linear import Fp8Linear
from piying.core.quantization.policy import CastRules

from .formats import models, names, writers

LAYERS = (
    "blocks.0.attn1.to_q",
    "blocks.3.attn2.to_out.0",
    "blocks.1.ffn.net.0.proj",
    "vace_blocks.1.attn1.to_v",
    "vace_blocks.0.proj_in",
    "condition_embedder.time_proj",
)
ALPHA, RANK = 3.0, 4


@pytest.fixture
def model(tmp_path):
    path = writers.save(models.tensors(models.wan_transformer()), tmp_path / "model.safetensors")
    return load_component("transformer", path)


def factors(model, seed=0, layers=LAYERS):
    """Return {layer: (down, up)} with random values."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        out, into = model.get_submodule(layer).weight.shape
        found[layer] = tuple(torch.randn(s, generator=generator) * 0.2 for s in ((RANK, into), (out, RANK)))
    return found


def original(layer):
    (name,) = names.wan_transformer({f"{layer}.weight": None})
    return name.removesuffix(".weight")


def kohya(layer):
    return "lora_unet_" + original(layer).replace(".", "_")


SPELLINGS = {
    "original": (lambda layer: f"diffusion_model.{original(layer)}", "lora_down.weight", "lora_up.weight", True),
    "original, A and B": (original, "lora_A.weight", "lora_B.weight", False),
    "kohya": (kohya, "lora_down.weight", "lora_up.weight", True),
    "diffusers": (lambda layer: f"transformer.{layer}", "lora_A.weight", "lora_B.weight", False),
    "peft": (lambda layer: f"base_model.model.{layer}", "lora_A.default.weight", "lora_B.default.weight", False),
    "kohya of diffusers": (
        lambda layer: "lora_transformer_" + layer.replace(".", "_"),
        "lora_down.weight",
        "lora_up.weight",
        True,
    ),
}


def write(path, parts, spelling="original"):
    """Write a LoRA file; return what its alpha multiplies by."""
    spell, down_name, up_name, with_alpha = SPELLINGS[spelling]
    tensors = {}
    for layer, (down, up) in parts.items():
        tensors |= {f"{spell(layer)}.{down_name}": down, f"{spell(layer)}.{up_name}": up}
        if with_alpha:
            tensors[f"{spell(layer)}.alpha"] = torch.tensor(ALPHA)
    writers.save(tensors, path)
    return ALPHA / RANK if with_alpha else 1.0


def merged(parts, scale, model=None):
    """Return the model with the products added to its weights."""
    model = models.wan_transformer() if model is None else model
    for layer, (down, up) in parts.items():
        model.get_submodule(layer).weight += scale * up @ down
    return model


def assert_close(found, expected, within=2e-5):
    assert (found - expected).abs().max() <= within * expected.abs().max()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_what_merged_weights_give(model, tmp_path, spelling):
    before = models.run_wan(model)
    parts = factors(model)
    inner = write(tmp_path / "lora.safetensors", parts, spelling)
    applied = apply_lora(model, tmp_path / "lora.safetensors", 0.8)
    assert applied.layers == len(LAYERS)
    changed = models.run_wan(model)
    assert_close(changed, models.run_wan(merged(parts, 0.8 * inner)))
    assert (changed - before).abs().max() > 0.05 * before.abs().max()
    applied.remove()
    assert torch.equal(models.run_wan(model), before)


def test_several_at_once_come_off_in_any_order(model, tmp_path):
    first, second = factors(model, 1), factors(model, 2, LAYERS[:3])
    for name, parts in (("a", first), ("b", second)):
        write(tmp_path / f"{name}.safetensors", parts, "diffusers")
    before = models.run_wan(model)
    one = apply_lora(model, tmp_path / "a.safetensors", 0.5)
    two = apply_lora(model, tmp_path / "b.safetensors", -1.5)
    assert_close(models.run_wan(model), models.run_wan(merged(second, -1.5, merged(first, 0.5))))
    one.remove()
    assert_close(models.run_wan(model), models.run_wan(merged(second, -1.5)))
    two.remove()
    two.remove()
    assert torch.equal(models.run_wan(model), before)


@pytest.mark.parametrize("order", ["before", "after"])
def test_with_fp8_weights(model, tmp_path, order):
    parts = factors(model)
    write(tmp_path / "lora.safetensors", parts, "diffusers")
    rules = CastRules(keep={"*.proj_in": "sensitive", "*.proj_out": "sensitive"})
    if order == "after":
        cast_module(model, "fp8", rules)
    applied = apply_lora(model, tmp_path / "lora.safetensors")
    if order == "before":
        cast_module(model, "fp8", rules)
    expected = models.wan_transformer()
    for name, layer in model.named_modules():
        if isinstance(layer, Fp8Linear):
            expected.get_submodule(name).weight.copy_(layer.dense(torch.float32))
    plain = models.run_wan(expected)
    assert_close(models.run_wan(model), models.run_wan(merged(parts, 1.0, expected)))
    applied.remove()
    assert torch.equal(models.run_wan(model), plain)


def test_differences_of_norms_biases_tables_and_whole_weights(model, tmp_path):
    generator = torch.Generator().manual_seed(7)
    spelled = {
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
        "blocks.2.self_attn.k.diff_b": "blocks.2.attn1.to_k.bias",
        "blocks.2.self_attn.k.diff": "blocks.2.attn1.to_k.weight",
        "vace_blocks.1.ffn.2.diff_b": "vace_blocks.1.ffn.net.2.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "blocks.3.modulation.diff": "blocks.3.scale_shift_table",
        "head.modulation.diff": "scale_shift_table",
    }
    expected, tensors = models.wan_transformer(), {}
    state = expected.state_dict()
    for name, target in spelled.items():
        difference = torch.randn(state[target].shape, generator=generator) * 0.3
        tensors[f"diffusion_model.{name}"] = difference
        state[target] += 0.6 * difference
    tensors["diffusion_model.blocks.0.ffn.0.diff"] = torch.zeros(160, 128)
    path = writers.save(tensors, tmp_path / "lora.safetensors")
    before, loaded = models.run_wan(model), dict(model.named_parameters())
    applied = apply_lora(model, path, 0.6)
    assert applied.layers == len(spelled), "zeros are left out"
    assert_close(models.run_wan(model), models.run_wan(expected))
    again = apply_lora(model, path, 0.1)
    applied.remove()
    again.remove()
    assert torch.equal(models.run_wan(model), before)
    after = dict(model.named_parameters())
    assert all(after[name].data_ptr() == parameter.data_ptr() for name, parameter in loaded.items()), (
        "the very tensors"
    )


def test_a_low_rank_change_of_a_convolution(model, tmp_path):
    generator = torch.Generator().manual_seed(8)
    down = torch.randn(RANK, 16, 1, 2, 2, generator=generator) * 0.3
    up = torch.randn(128, RANK, 1, 1, 1, generator=generator) * 0.3
    parts = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    expected = models.wan_transformer()
    expected.patch_embedding.weight += (up.flatten(1) @ down.flatten(1)).view(128, 16, 1, 2, 2)
    apply_lora(model, writers.save(parts, tmp_path / "lora.safetensors"))
    assert_close(models.run_wan(model), models.run_wan(expected))


def test_joined_layers_of_hunyuan_dit(tmp_path):
    path = writers.save(models.tensors(models.hunyuan_transformer()), tmp_path / "model.safetensors")
    model, expected = load_component("transformer", path), models.hunyuan_transformer()
    generator = torch.Generator().manual_seed(9)
    down, up = torch.randn(RANK, 32, generator=generator), torch.randn(96, RANK, generator=generator)
    parts = {"blocks.1.attn1.Wqkv.lora_A.weight": down, "blocks.1.attn1.Wqkv.lora_B.weight": up}
    applied = apply_lora(model, writers.save(parts, tmp_path / "lora.safetensors"), 0.5)
    assert applied.layers == 3
    inputs = torch.randn(2, 32, generator=generator)
    for part, rows in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
        layer = expected.blocks[1].attn1.get_submodule(part)
        layer.weight += 0.5 * rows @ down
        assert_close(model.blocks[1].attn1.get_submodule(part)(inputs), layer(inputs))


def untouched(model):
    return not any("additions" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"blocks.9.self_attn.q.lora_A.weight": (4, 128)}, "1 of its 1 layers are not in a WanVACETransformer3DModel"),
        (
            {"lora_unet_blocks_0_self_attn_z.alpha": (1,)},
            r"has no layer of a LoRA \(lora_unet_blocks_0_self_attn_z.alpha first\)",
        ),
        (
            {"blocks.0.self_attn.q.lora_A.weight": (4, 64), "blocks.0.self_attn.q.lora_B.weight": (128, 4)},
            "does not fit a WanVACE.* of this size .*to_q is 128 × 128, the LoRA 128 × 64",
        ),
        (
            {"blocks.0.self_attn.q.lora_A.weight": (4, 128)},
            "self_attn.q has one factor alone: up is missing. The file",
        ),
        ({"blocks.0.self_attn.q.diff_b": (9,)}, "does not fit .*to_q.bias is 128, the LoRA 9"),
        (
            {"blocks.0.self_attn.q.lora_A.weight": (4, 128), "blocks.0.self_attn.q.lora_B.weight": (128, 3)},
            r"parts that do not belong together: up \[128, 3\] and down \[4, 128\]",
        ),
        ({"blocks.0.self_attn.q.lokr_w1": (2, 2)}, "has one factor alone: lokr_w2_a is missing"),
        ({"blocks.0.self_attn.q.hada_w1_a": (128, 2)}, "has one factor alone: hada_w1_b is missing"),
        ({"blocks.0.self_attn.q.oft_blocks": (2, 4, 4)}, "is of the kind OFT, which this pack cannot read. Readable"),
        ({"blocks.0.self_attn.q.weight": (128, 128)}, "has no layer of a LoRA"),
        ({"lora_te1_text_model_encoder.lora_down.weight": (4, 8)}, "changes text encoders alone"),
    ],
)
def test_what_does_not_fit_gives_one_sentence_and_changes_nothing(model, tmp_path, tensors, reason):
    good = {"blocks.1.self_attn.q.lora_A.weight": (4, 128), "blocks.1.self_attn.q.lora_B.weight": (128, 4)}
    before = models.run_wan(model)
    files = {name: torch.ones(shape) for name, shape in tensors.items()}
    if "does not fit" in reason or "of shape" in reason:
        files |= {name: torch.ones(shape) for name, shape in good.items()}
    path = writers.save(files, tmp_path / "lora.safetensors")
    with pytest.raises(PiyingError, match=reason) as caught:
        apply_lora(model, path)
    assert str(path) in str(caught.value)
    assert untouched(model)
    assert torch.equal(models.run_wan(model), before)
