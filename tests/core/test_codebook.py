"""INT4, W4A8 and NF4: the numbers of their libraries, held packed, streamed, planned, and under a LoRA."""

from __future__ import annotations

import json

import pytest
import torch
from piying.core.catalog.component_sizes import TensorInfo, component, listed_components
from piying.core.checkpoints import apply_lora, load_component
from piying.core.checkpoints.components import find_source
from piying.core.checkpoints.layers import layers
from piying.core.errors import PiyingError
from piying.core.executor.streaming import streamed
from piying.core.files.open import open_tensors
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan
from piying.core.quantization.casting import dense_weight
from piying.core.quantization.codebook_linear import CodebookLinear
from piying.core.quantization.registry import FORMATS
from piying.core.quantization.stored_formats import join_scales
from piying.core.wan import phases as wan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.phases import VideoWork
from safetensors.torch import load_file, save_file

from .formats import models, names, packed, writers

FORMS = {"int4": packed.int4_convrot, "w4a8": packed.w4a8_levels, "nf4": packed.nf4}
RULES = WAN_VACE.rules["transformer"]


def weight_of(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# The same numbers as the formats' own libraries, bit for bit


def joined(tensors, path, texts=None):
    writers.save({f"a.{name}": tensor for name, tensor in tensors.items()}, path, texts)
    (stored,) = join_scales(open_tensors(path)).values()
    return stored


def said(**table):
    return torch.tensor(list(json.dumps(table).encode()), dtype=torch.uint8)


def assert_is(stored, expected, name):
    assert torch.equal(stored.read(), expected)
    parts = torch.cat([part.read() for part in stored.split(4)])
    # To rotate fewer rows may round another way: matrix products choose their code by the size.
    off = (parts - expected).norm() / expected.norm()
    assert off < 1e-6 if name != "nf4" else torch.equal(parts, expected), "projections that are joined"
    layer = FORMATS[name].layer(FORMATS[name].from_stored(stored), None, None)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(layer.dense(dtype), expected.to(dtype)), "rounded once"


@pytest.mark.parametrize("group", [64, 256])
def test_int4_is_comfy_kitchens(tmp_path, group):
    eager = pytest.importorskip("comfy_kitchen.backends.eager.convrot_w4a4", reason="comfy-kitchen is not installed")
    values, scale = eager.quantize_convrot_w4a4_weight(weight_of(160, 512), group)
    form = said(format="convrot_w4a4", convrot_groupsize=group)
    stored = joined({"weight": values, "weight_scale": scale, "comfy_quant": form}, tmp_path / "x.safetensors")
    assert_is(stored, eager.dequantize_convrot_w4a4_weight(values, scale, group), "int4")


@pytest.mark.parametrize("codebook", [True, False])
def test_w4a8_is_comfy_kitchens(tmp_path, codebook):
    eager = pytest.importorskip("comfy_kitchen.backends.eager.w4a8_int8", reason="comfy-kitchen is not installed")
    values, groups, channel, _, levels = eager.quantize_w4a8_int8_weight(weight_of(160, 512), codebook=codebook)
    tensors = {"weight": values, "weight_s_rel": groups, "weight_s_channel": channel}
    tensors |= {"comfy_quant": said(format="asym_w4a8_int8", group_size=16, convrot_groupsize=256)}
    tensors |= {"weight_codebook": levels} if codebook else {}
    expected = eager.dequantize_w4a8_int8_weight(values, groups, channel, levels, output_dtype=torch.float32)
    assert_is(joined(tensors, tmp_path / "x.safetensors"), expected, "w4a8")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [64, 256])
def test_nf4_is_that_of_bitsandbytes(tmp_path, nested, block):
    library = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    values, state = library.quantize_4bit(
        weight_of(160, 512), blocksize=block, compress_statistics=nested, quant_type="nf4"
    )
    tensors = {"weight": values} | {f"weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    assert_is(joined(tensors, tmp_path / "x.safetensors"), library.dequantize_4bit(values, state), "nf4")


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_torchaos_files(tmp_path, form):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    module = torch.nn.Linear(512, 160, bias=False)
    config = {"int8": torchao.Int8WeightOnlyConfig, "fp8": torchao.Float8WeightOnlyConfig}[form]()
    torchao.quantize_(module, config)
    tensors, texts = support.flatten_tensor_state_dict({"a.weight": module.weight.data})
    writers.save(tensors, tmp_path / "x.safetensors", texts)
    (stored,) = join_scales(open_tensors(tmp_path / "x.safetensors")).values()
    assert torch.equal(stored.read(), module.weight.dequantize())


def test_a_folder_that_diffusers_wrote_with_torchao(tmp_path):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from diffusers import TorchAoConfig, WanVACETransformer3DModel

    models.wan_transformer().save_pretrained(tmp_path / "plain")
    quantized = WanVACETransformer3DModel.from_pretrained(
        tmp_path / "plain",
        quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig()),
        torch_dtype=torch.float32,
    )
    quantized.save_pretrained(tmp_path / "quantized")
    loaded = load_component("transformer", tmp_path / "quantized", dtype="fp32")
    assert close(models.run_wan(loaded), models.run_wan(quantized))


# A model


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def written(form, tmp_path_factory):
    """A transformer with layers in a form, and one in fp32 with the weights that they stand for."""
    folder = tmp_path_factory.mktemp(form)
    original = names.wan_transformer(models.tensors(models.wan_transformer()))
    found, restored, texts = packed.written(original, FORMS[form], blocks=r"\d+")
    plain = writers.save(restored, folder / "plain.safetensors")
    return writers.save(found, folder / "model.safetensors", texts or None), plain


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_streamed_and_under_a_lora_it_stays_packed(form, written, tmp_path):
    model, plain = (load_component("transformer", path, dtype=torch.float32) for path in written)
    before = models.run_wan(model)
    assert close(before, models.run_wan(plain))
    with streamed(model, [*model.blocks, *model.vace_blocks], "cpu"):
        assert torch.equal(models.run_wan(model), before)
    factors = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": weight_of(2, 128, seed=4),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": weight_of(128, 2, seed=5),
    }
    save_file(factors, tmp_path / "lora.safetensors")
    applied = apply_lora(model, tmp_path / "lora.safetensors")
    apply_lora(plain, tmp_path / "lora.safetensors")
    layer = model.blocks[0].attn1.to_q
    assert isinstance(layer, CodebookLinear)
    assert close(dense_weight(layer), plain.blocks[0].attn1.to_q.weight)
    assert not close(models.run_wan(model), before)
    assert close(models.run_wan(model), models.run_wan(plain))
    applied.remove()
    assert torch.equal(models.run_wan(model), before)


def test_the_plan_counts_the_bytes_that_are_held(form, written):
    entries = find_source(written[0], "transformer").entries
    counted = component(
        "transformer", {name: TensorInfo(one.shape, one.dtype) for name, one in entries.items()}, RULES
    )
    assert form in {one.type for one in counted.files}
    (shown,) = (one for one in layers(written[0]) if one.storage == form)
    parts = {**listed_components("wan2.1-vace-1.3b"), "transformer": counted}
    made = plan(wan.phases(parts, VideoWork(64, 64, 9)), synthetic(6, 16), memory=form).phase("sample")
    assert made.storage == form
    # The file is mixed: layers whose rows are no whole blocks are plain, and stay so.
    model = load_component("transformer", written[0], dtype=torch.bfloat16, storage=form, rules=RULES)
    held = [layer for layer in model.modules() if isinstance(layer, CodebookLinear)]
    in_layers = sum(one.numel() * one.itemsize for layer in held for one in layer.buffers(recurse=False))
    assert [group.bytes for group in shown.groups if group.type == form] == [in_layers]
    whole = sum(one.numel() * one.itemsize for one in (*model.parameters(), *model.buffers()))
    tables = sum(one.numel() * one.itemsize for name, one in model.named_buffers() if name.startswith("rope."))
    assert counted.bytes("bf16", form) == pytest.approx(whole - tables, abs=64 * len(held))


@pytest.mark.parametrize("which", ["scale", "levels"])
def test_numbers_that_are_none_are_found(form, written, tmp_path, which):
    tensors = load_file(written[0])
    layer = "blocks.0.self_attn.q.weight"
    scale = {"int4": f"{layer}_scale", "w4a8": f"{layer}_s_channel", "nf4": f"{layer}.absmax"}[form]
    levels = {"int4": scale, "w4a8": f"{layer}_codebook", "nf4": f"{layer}.quant_map"}[form]
    tensors[scale if which == "scale" else levels][0] = torch.nan
    path = writers.save(tensors, tmp_path / "x.safetensors")
    for storage in (None, "fp32"):
        with pytest.raises(PiyingError, match=r"blocks\.0\.attn1\.to_q\.weight holds values that are no numbers"):
            load_component("transformer", path, dtype=torch.float32, storage=storage)


def test_what_cannot_be_meant_is_refused(tmp_path):
    made = packed.w4a8_levels(weight_of(32, 64))
    form = said(**made.said)
    bad = {
        "a scale of shape": {**made.parts, "weight_s_channel": made.parts["weight_s_channel"][:7]},
        "weight_codebook: a scale of shape": {**made.parts, "weight_codebook": torch.ones(15)},
        "stored without a scale": {name: one for name, one in made.parts.items() if name != "weight_s_channel"},
    }
    for number, (reason, tensors) in enumerate(bad.items()):
        with pytest.raises(PiyingError, match=reason):
            joined({**tensors, "comfy_quant": form}, tmp_path / f"{number}.safetensors")
