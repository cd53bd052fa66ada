"""DoRA, LoHa, LoKr and Tucker's cores: what they add is what their authors' code makes of the weights."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from piying.core.checkpoints import apply_lora, load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.lora.file import judge
from piying.core.quantization.base import WeightFormat
from piying.core.quantization.casting import cast_module, dense_weight
from piying.core.quantization.registry import FORMATS

from .formats import models, writers

LAYER = "blocks.1.ffn.net.0.proj"  # of 160 outputs and 128 inputs
CONVOLUTION = "patch_embedding"  # 128 × 16, of a kernel of 1 × 2 × 2
RANK, ALPHA = 3, 5.0


@pytest.fixture
def model(tmp_path):
    path = writers.save(models.tensors(models.wan_transformer()), tmp_path / "model.safetensors")
    return load_component("transformer", path)


def numbers(*shape, seed=0, size=0.4):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * size


def parts_of(kind, out=160, into=128):
    """Return a layer's tensors by the ends of their names."""
    if kind == "lora":
        return {"lora_A.weight": numbers(RANK, into), "lora_B.weight": numbers(out, RANK)}
    if kind == "loha":
        return {
            f"hada_w{number}_{side}": numbers(*shape, seed=number)
            for number in (1, 2)
            for side, shape in (("a", (out, RANK)), ("b", (RANK, into)))
        }
    if kind == "loha of a large rank":
        return {
            f"hada_w{number}_{side}": numbers(*shape, seed=number, size=0.1)
            for number in (1, 2)
            for side, shape in (("a", (out, 20)), ("b", (20, into)))
        }
    if kind == "lokr":
        return {"lokr_w1": numbers(8, 4), "lokr_w2_a": numbers(out // 8, RANK), "lokr_w2_b": numbers(RANK, into // 4)}
    if kind == "lokr of factors":
        left = {"lokr_w1_a": numbers(8, RANK), "lokr_w1_b": numbers(RANK, 4)}
        return {**left, "lokr_w2_a": numbers(out // 8, RANK), "lokr_w2_b": numbers(RANK, into // 4)}
    return {"lokr_w1": numbers(8, 4), "lokr_w2": numbers(out // 8, into // 4)}


def product(parts):
    """Return ΔW of a layer's tensors with alpha, by the formulas of the papers."""
    scale = ALPHA / RANK
    if "lora_A.weight" in parts:
        return scale * parts["lora_B.weight"] @ parts["lora_A.weight"]
    if "hada_w1_a" in parts:
        scale = ALPHA / len(parts["hada_w1_b"])
        return scale * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    left = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    right = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    return torch.kron(left, right) * (1 if "lokr_w1" in parts and "lokr_w2" in parts else scale)


KINDS = ("lora", "loha", "loha of a large rank", "lokr", "lokr of factors", "lokr of whole matrices")


def write(path, parts, layer=LAYER, alpha=ALPHA, **more):
    tensors = {f"diffusion_model.{layer}.{name}": tensor for name, tensor in parts.items()}
    return writers.save(tensors | {f"diffusion_model.{layer}.alpha": torch.tensor(alpha)} | more, path)


def added(model, layer=LAYER):
    """Return what a layer's output gains by what is beside its weight, for an identity matrix as the input."""
    part = model.get_submodule(layer)
    identity = torch.eye(part.in_features)
    return (part(identity) - torch.nn.functional.linear(identity, dense_weight(part), part.bias)).t()


def assert_close(found, wanted, within=2e-5):
    assert (found - wanted).abs().max() <= within * max(wanted.abs().max(), 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_product_it_stands_for(model, tmp_path, kind):
    parts = parts_of(kind)
    path = write(tmp_path / "lora.safetensors", parts)
    before = models.run_wan(model)
    applied = apply_lora(model, path, 0.7)
    assert_close(added(model), 0.7 * product(parts))
    merged = models.wan_transformer()
    merged.get_submodule(LAYER).weight += 0.7 * product(parts)
    assert_close(models.run_wan(model), models.run_wan(merged))
    kept = sum(one.numel() for name, one in model.named_parameters() if ".additions." in name)
    assert sum(judge(parts_in(path)).shape.blocks.values()) == kept
    applied.remove()
    assert torch.equal(models.run_wan(model), before)


def parts_in(path):
    from piying.core.files.open import read_header

    return read_header(path).entries


def decomposed(weight, change, magnitude, strength):
    """Return W + strength · (m (W + ΔW) / |W + ΔW| - W), with norms of rows or columns as the magnitude has them."""
    merged = weight + change
    norm = merged.norm(dim=0, keepdim=True) if magnitude.shape[0] == 1 else merged.norm(dim=1, keepdim=True)
    return weight + strength * (magnitude * merged / norm - weight)


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize(
    ("kind", "storage"),
    [("lora", "plain"), ("loha", "plain"), ("lokr", "plain"), ("lora", "fp8 before"), ("lora", "fp8 after")],
)
def test_dora_scales_the_changed_weight(model, tmp_path, kind, axis, storage):
    parts = parts_of(kind)
    magnitude = numbers(160, 1).abs() + 0.5 if axis == "rows" else numbers(1, 128).abs() + 0.5
    path = write(tmp_path / "lora.safetensors", {**parts, "dora_scale": magnitude})
    loaded, inputs = dense_weight(model.get_submodule(LAYER)), numbers(5, 128)
    if storage == "fp8 before":
        cast_module(model, "fp8")
    before = model.get_submodule(LAYER)(inputs)
    applied = apply_lora(model, path, 0.6)
    if storage == "fp8 after":
        cast_module(model, "fp8")
    weight = dense_weight(model.get_submodule(LAYER))
    wanted = decomposed(loaded if storage == "plain" else weight, product(parts), magnitude, 0.6) - weight
    # Norms taken before the cast are those of weights that the cast moved by a few percent.
    assert_close(added(model), wanted, 2e-2 if storage == "fp8 after" else 3e-5)
    applied.remove()
    if storage != "fp8 after":
        assert torch.equal(model.get_submodule(LAYER)(inputs), before)


def test_dora_beside_other_loras_is_the_sum_of_what_each_adds(model, tmp_path):
    magnitude = numbers(160, 1).abs() + 0.5
    first = write(tmp_path / "a.safetensors", parts_of("lora"))
    second = write(tmp_path / "b.safetensors", {**parts_of("loha"), "lora_magnitude_vector": magnitude.flatten()})
    weight = dense_weight(model.get_submodule(LAYER))
    one, other = apply_lora(model, first, -0.5), apply_lora(model, second)
    alone = decomposed(weight, product(parts_of("loha")), magnitude, 1.0) - weight
    assert_close(added(model), alone - 0.5 * product(parts_of("lora")))
    one.remove()
    assert_close(added(model), alone)
    other.remove()
    assert not any("additions" in name for name, _ in model.named_modules())


def test_dora_of_layers_that_are_no_matrix(model, tmp_path):
    """A norm's weight is a vector, and what a file adds may be factors or a whole difference."""
    norm = "blocks.1.attn1.norm_q"
    loaded = {name: model.get_parameter(f"{name}.weight").clone() for name in (norm, CONVOLUTION)}
    factors = {"lora_A.weight": numbers(RANK, 1), "lora_B.weight": numbers(128, RANK)}
    changes = {
        norm: (factors, product(factors)),
        CONVOLUTION: ({"diff": numbers(*loaded[CONVOLUTION].shape)}, numbers(*loaded[CONVOLUTION].shape).flatten(1)),
    }
    magnitude = numbers(128, 1).abs() + 0.5
    for name, (parts, change) in changes.items():
        applied = apply_lora(model, write(tmp_path / "a.safetensors", {**parts, "dora_scale": magnitude}, name), 0.6)
        wanted = decomposed(loaded[name].reshape(128, -1), change, magnitude, 0.6)
        assert_close(model.get_parameter(f"{name}.weight").reshape(128, -1), wanted)
        applied.remove()
        assert torch.equal(model.get_parameter(f"{name}.weight"), loaded[name])


def test_a_bias_of_a_table_is_named(model, tmp_path):
    parts = {"diff": numbers(1, 6, 128), "diff_b": numbers(128)}
    others = {f"{LAYER}.{name}": tensor for name, tensor in parts_of("lora").items()}
    path = write(tmp_path / "a.safetensors", parts, "blocks.1.scale_shift_table", **others)
    applied = apply_lora(model, path)
    assert (
        "1 with a bias that the layer does not have (diffusion_model.blocks.1.scale_shift_table)" in applied.left_out
    )


def test_cores_and_convolutions(model, tmp_path):
    core = numbers(RANK, RANK, 1, 2, 2)
    down, up = numbers(RANK, 16, 1, 1, 1), numbers(128, RANK, 1, 1, 1)
    plain = model.get_parameter(f"{CONVOLUTION}.weight").clone()
    cases = {
        "LoCon": (
            {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": core},
            torch.einsum("mn...,om,ni->oi...", core, up.flatten(1), down.flatten(1)) * ALPHA / RANK,
        ),
        "LoHa": (
            {
                f"hada_{name}": part
                for number in (1, 2)
                for name, part in (
                    (f"t{number}", core.clone()),
                    (f"w{number}_a", up.flatten(1).t().clone()),
                    (f"w{number}_b", down.flatten(1).clone()),
                )
            },
            torch.einsum("mn...,om,ni->oi...", core, up.flatten(1), down.flatten(1)).square() * ALPHA / RANK,
        ),
        "LoKr": (
            {
                "lokr_w1": numbers(4, 2),
                "lokr_t2": core,
                "lokr_w2_a": up.flatten(1).t()[:, :32],
                "lokr_w2_b": down.flatten(1)[:, :8],
            },
            torch.kron(
                numbers(4, 2).view(4, 2, 1, 1, 1),
                torch.einsum("mn...,om,ni->oi...", core, up.flatten(1)[:32], down.flatten(1)[:, :8]).contiguous(),
            )
            * ALPHA
            / RANK,
        ),
    }
    for parts, change in cases.values():
        applied = apply_lora(model, write(tmp_path / "lora.safetensors", parts, CONVOLUTION), 0.5)
        assert_close(model.get_parameter(f"{CONVOLUTION}.weight") - plain, 0.5 * change)
        applied.remove()
        magnitude = numbers(128, 1, 1, 1, 1).abs() + 0.5
        path = write(tmp_path / "lora.safetensors", {**parts, "dora_scale": magnitude}, CONVOLUTION)
        applied = apply_lora(model, path, 0.5)
        wanted = decomposed(plain.flatten(1), change.flatten(1), magnitude.flatten(1), 0.5)
        assert_close(model.get_parameter(f"{CONVOLUTION}.weight").flatten(1), wanted)
        applied.remove()
        assert torch.equal(model.get_parameter(f"{CONVOLUTION}.weight"), plain)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "dora"])
def test_joined_layers_are_split(tmp_path, kind):
    path = writers.save(models.tensors(models.hunyuan_transformer()), tmp_path / "model.safetensors")
    model = load_component("transformer", path)
    parts = parts_of("lora" if kind == "dora" else kind, 96, 32)
    change = product(parts)
    layers = [f"blocks.1.attn1.to_{part}" for part in "qkv"]
    weights = [dense_weight(model.get_submodule(layer)) for layer in layers]
    if kind == "dora":
        parts["dora_scale"] = numbers(96, 1).abs() + 0.5
        change = decomposed(torch.cat(weights), change, parts["dora_scale"], 1.0) - torch.cat(weights)
    apply_lora(model, write(tmp_path / "lora.safetensors", parts, "blocks.1.attn1.Wqkv"))
    for layer, rows in zip(layers, change.chunk(3), strict=True):
        assert_close(added(model, layer), rows)


def test_factors_in_any_number_type(model, tmp_path):
    parts = parts_of("lora")
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64):
        stored = {name: tensor.to(dtype) for name, tensor in parts.items()}
        applied = apply_lora(model, write(tmp_path / "lora.safetensors", stored), dtype=torch.float32)
        assert_close(added(model), product({name: tensor.float() for name, tensor in stored.items()}))
        applied.remove()
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in parts.items()}
    scales = {
        f"diffusion_model.{LAYER}.{name.removesuffix('.weight')}.scale_weight": torch.tensor(2.0) for name in parts
    }
    apply_lora(model, write(tmp_path / "lora.safetensors", small, **scales), dtype=torch.float32)
    assert_close(added(model), product({name: 2 * tensor.float() for name, tensor in small.items()}))


def test_what_diffusers_says_of_alpha(model, tmp_path):
    parts = {f"transformer.{LAYER}.{name}": tensor for name, tensor in parts_of("lora").items()}
    plain = product(parts_of("lora")) * RANK / ALPHA
    said = {"lora_alpha": 12, "r": RANK, "alpha_pattern": {"nobody": 7}}
    cases = (
        ({}, 12 / RANK),
        ({"use_rslora": True}, 12 / math.sqrt(RANK)),
        ({"alpha_pattern": {"ffn.net.0.proj": 30, "proj.ffn": 1}}, 30 / RANK),
        ({"lora_alpha": float("nan")}, 1.0),
        ({"lora_alpha": "much"}, 1.0),
    )
    for changes, wanted in cases:
        text = json.dumps({f"transformer.{name}": value for name, value in (said | changes).items()})
        path = writers.save(parts, tmp_path / "lora.safetensors", {"lora_adapter_metadata": text})
        applied = apply_lora(model, path)
        assert_close(added(model), wanted * plain)
        applied.remove()
    for text in ("[", "[1]", '{"transformer.alpha_pattern": 3}'):
        apply_lora(model, writers.save(parts, tmp_path / "l.safetensors", {"lora_adapter_metadata": text})).remove()


def test_what_peft_says_of_alpha_beside_its_file(model, tmp_path):
    config = {"peft_type": "LOKR", "r": 4, "alpha": 6}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    parts = {f"base_model.model.{LAYER}.{name}": one for name, one in parts_of("lokr of whole matrices").items()}
    applied = apply_lora(model, writers.save(parts, tmp_path / "adapter_model.safetensors"))
    assert_close(added(model), 1.5 * product(parts_of("lokr of whole matrices")))
    applied.remove()
    apply_lora(model, writers.save(parts, tmp_path / "another.safetensors"))
    assert_close(added(model), product(parts_of("lokr of whole matrices")))


def test_a_bias_of_the_second_factor_is_scaled_with_it(model, tmp_path):
    bias = numbers(160)
    before = model.get_parameter(f"{LAYER}.bias").clone()
    apply_lora(model, write(tmp_path / "lora.safetensors", {**parts_of("lora"), "lora_B.bias": bias}), 0.5)
    assert_close(model.get_parameter(f"{LAYER}.bias") - before, 0.5 * ALPHA / RANK * bias)


def test_any_weight_format_tells_its_dense_weight(model):
    """As one that has no way of its own: by what it makes of an identity matrix."""
    layer = model.get_submodule(LAYER)
    cast_module(model, "fp8")
    cast = model.get_submodule(LAYER)
    assert_close(WeightFormat.dense(FORMATS["fp8"], cast), dense_weight(cast), 1e-6)
    assert dense_weight(layer).data_ptr() == layer.weight.data_ptr()


# What is left out


def test_layers_the_model_does_not_have_are_named_and_the_others_are_on(model, tmp_path):
    pair = {"lora_A.weight": numbers(RANK, 128), "lora_B.weight": numbers(128, RANK)}
    spelled = {
        f"diffusion_model.blocks.{block}.{layer}.{name}": tensor
        for block in range(2)
        for layer in ("self_attn.q", "cross_attn.k_img")
        for name, tensor in pair.items()
    }
    spelled = {name: tensor.clone() for name, tensor in spelled.items()}
    more = {
        "diffusion_model.img_emb.proj.1.diff_b": numbers(128),
        "diffusion_model.patch_embedding.diff": numbers(128, 36, 1, 2, 2),
        "diffusion_model.blocks.1.diff_m": numbers(1, 6, 128),
        "diffusion_model.blocks.2.self_attn.v.oft_blocks": numbers(2, 4, 4),
        "diffusion_model.blocks.3.self_attn.v.alpha": torch.tensor(1.0),
        "text_encoders.t5.block.0.q.lora_A.weight": numbers(RANK, 8),
        "bundle_emb.style.weights": numbers(2, 8),
    }
    applied = apply_lora(model, writers.save(spelled | more, tmp_path / "lora.safetensors"))
    assert applied.layers == 3
    wanted = models.wan_transformer()
    for block in range(2):
        wanted.blocks[block].attn1.to_q.weight += pair["lora_B.weight"] @ pair["lora_A.weight"]
    wanted.blocks[1].scale_shift_table += more["diffusion_model.blocks.1.diff_m"]
    assert_close(models.run_wan(model), models.run_wan(wanted))
    assert applied.left_out.startswith("8 of its 11 layers: 3 in no WanVACETransformer3DModel (diffusion_model.")
    for words in (
        "1 of a text encoder (text_encoders.t5.block.0.q)",
        "1 of the kind OFT, which is not read (diffusion_model.blocks.2.self_attn.v)",
        "1 an alpha alone",
        "1 no part of a LoRA (bundle_emb.style.weights)",
        "1 of another size: patch_embedding.weight is 128 × 16 × 1 × 2 × 2, the LoRA 128 × 36 × 1 × 2 × 2",
    ):
        assert words in applied.left_out


def test_a_dora_over_the_inputs_of_a_joined_layer_is_left_out(tmp_path):
    path = writers.save(models.tensors(models.hunyuan_transformer()), tmp_path / "model.safetensors")
    model = load_component("transformer", path)
    parts = {**parts_of("lora", 96, 32), "dora_scale": numbers(1, 32).abs()}
    with pytest.raises(PiyingError, match="does not fit .*a DoRA over the inputs of a joined layer"):
        apply_lora(model, write(tmp_path / "lora.safetensors", parts, "blocks.1.attn1.Wqkv"))


# Numbers that are none


def test_what_is_no_number_is_refused(model, tmp_path):
    good = {**parts_of("lora"), "dora_scale": numbers(160, 1), "diff_b": numbers(160), "alpha": torch.tensor([1.0])}
    path, bias = tmp_path / "lora.safetensors", model.get_parameter(f"{LAYER}.bias").clone()
    for where, value, dtype in itertools.product(
        good, (math.nan, math.inf), (torch.float32, torch.bfloat16, torch.float8_e5m2)
    ):
        parts = {name: tensor.clone().to(dtype) for name, tensor in good.items()}
        parts[where].view(-1)[-1] = value
        writers.save({f"{LAYER}.{name}": tensor for name, tensor in parts.items()}, path)
        with pytest.raises(PiyingError, match=rf"{LAYER}.* holds values that are no numbers \(NaN or infinity\). The"):
            apply_lora(model, path)
        assert not any("additions" in name for name, _ in model.named_modules())
        assert torch.equal(model.get_parameter(f"{LAYER}.bias"), bias)


# Beside the code of others


PEFT = {
    "lora": ("LoraConfig", {"r": RANK, "lora_alpha": ALPHA}),
    "dora": ("LoraConfig", {"r": RANK, "lora_alpha": ALPHA, "use_dora": True}),
    "loha": ("LoHaConfig", {"r": RANK, "alpha": ALPHA}),
    "lokr": ("LoKrConfig", {"r": RANK, "alpha": ALPHA}),
    "lokr of factors": ("LoKrConfig", {"r": RANK, "alpha": ALPHA, "decompose_both": True, "decompose_factor": 8}),
}


@pytest.mark.parametrize("kind", PEFT)
def test_peft_gives_the_same(model, tmp_path, kind):
    peft = pytest.importorskip("peft")
    name, settings = PEFT[kind]
    theirs = peft.get_peft_model(models.wan_transformer(), getattr(peft, name)(target_modules=["to_q"], **settings))
    generator = torch.Generator().manual_seed(3)
    for parameter in (one for one in theirs.parameters() if one.requires_grad):
        parameter.data.normal_(0, 0.2, generator=generator)
    saved = {name: tensor.detach() for name, tensor in peft.get_peft_model_state_dict(theirs).items()}
    layers = {name.partition(".to_q.")[0] + ".to_q" for name in saved}
    # Alpha is in peft's configuration, which ComfyUI's files have as a tensor.
    saved |= {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}
    apply_lora(model, writers.save(saved, tmp_path / "lora.safetensors"))
    assert_close(models.run_wan(model), models.run_wan(theirs))


MERGE = """
import sys
weights, lora, out = sys.argv[1:]
sys.argv = ["merge", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.lora
from safetensors.torch import load_file, save_file
merged = {}
for name, weight in load_file(weights).items():
    layer = name.removesuffix(".weight")
    patches = comfy.lora.load_lora(load_file(lora), {layer: name}, log_missing=False)
    merged[name] = comfy.lora.calculate_weight([(0.6, patches[name], 1.0, None, None)], weight.clone(), name)
save_file(merged, out)
"""


@pytest.mark.comfyui
def test_comfyui_merges_the_same(model, tmp_path):
    """Except where a DoRA has its magnitudes by rows: ComfyUI divides by the norms of the weight before the change."""
    checkout = os.environ.get("COMFYUI_PATH")
    if not checkout:
        pytest.skip("COMFYUI_PATH names no checkout")
    layers = dict(
        zip((*KINDS, "dora"), (f"blocks.{index % 4}.attn{1 + index // 4}.to_q" for index in range(7)), strict=True)
    )
    tensors = {}
    for kind, layer in layers.items():
        parts = parts_of("lora" if kind == "dora" else kind, 128, 128)
        parts |= {"dora_scale": numbers(1, 128).abs() + 0.5} if kind == "dora" else {}
        tensors |= {f"{layer}.{name}": tensor for name, tensor in parts.items()} | {
            f"{layer}.alpha": torch.tensor(ALPHA)
        }
    path = writers.save(tensors, tmp_path / "lora.safetensors")
    state = model.state_dict()
    weights = writers.save({f"{layer}.weight": state[f"{layer}.weight"] for layer in layers.values()}, tmp_path / "w")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", MERGE, str(weights), str(path), str(tmp_path / "merged")]
    environment = {**os.environ, "PYTHONPATH": checkout}
    subprocess.run(command, check=True, capture_output=True, cwd=Path(checkout), env=environment)
    from safetensors.torch import load_file

    merged = load_file(tmp_path / "merged")
    apply_lora(model, path, 0.6)
    for layer in layers.values():
        assert_close(added(model, layer) + state[f"{layer}.weight"], merged[f"{layer}.weight"], 1e-4)


def test_two_spellings_of_one_factor_are_named(model, tmp_path):
    path = write(tmp_path / "a.safetensors", {**parts_of("lora"), "lora_up.weight": numbers(160, RANK)})
    assert "of a part that has another tensor too" in apply_lora(model, path).left_out


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.int64])
def test_whole_numbers_are_no_factors(model, tmp_path, dtype):
    parts = {name: tensor.to(dtype) for name, tensor in parts_of("lora").items()}
    path = write(tmp_path / "a.safetensors", parts)
    assert "has whole numbers in" in inspect(path).reason
    with pytest.raises(PiyingError, match=r"has whole numbers in \w+, (I32|BOOL|I64)\. The file is damaged"):
        apply_lora(model, path)


def test_a_whole_difference_beside_factors_is_named(model, tmp_path):
    difference = {f"diffusion_model.{LAYER}.diff": numbers(*model.get_submodule(LAYER).weight.shape)}
    applied = apply_lora(model, write(tmp_path / "a.safetensors", parts_of("lora"), **difference))
    assert f"a second change of a layer that has factors (diffusion_model.{LAYER}.diff)" in applied.left_out
