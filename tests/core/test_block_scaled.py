"""NVFP4 and MXFP8: read, held packed, streamed, planned, under a LoRA, and the same as comfy-kitchen's."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.component_sizes import TensorInfo, component, listed_components
from piying.core.checkpoints import apply_lora, load_component
from piying.core.checkpoints.components import find_source
from piying.core.checkpoints.inspect import inspect
from piying.core.checkpoints.layers import layers
from piying.core.errors import PiyingError
from piying.core.executor.streaming import streamed
from piying.core.files.open import open_tensors
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan
from piying.core.quantization.block_scaled_linear import BlockScaledLinear, tiled, untiled
from piying.core.quantization.casting import dense_weight
from piying.core.quantization.registry import FORMATS
from piying.core.quantization.stored_formats import join_scales
from piying.core.wan import phases as wan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.phases import VideoWork
from safetensors.torch import load_file, save_file

from .formats import models, names, writers

FORMS = ["nvfp4", "mxfp8"]
RULES = WAN_VACE.rules["transformer"]


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def written(form, tmp_path_factory):
    """A transformer whose layers are in a form, and one in plain fp32 with the weights that they stand for."""
    folder = tmp_path_factory.mktemp(form)
    original = names.wan_transformer(models.tensors(models.wan_transformer()))
    packed, restored, _ = writers.block_scaled(original, form)
    return writers.save(packed, folder / "model.safetensors"), writers.save(restored, folder / "plain.safetensors")


def weight_of(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def loaded(form, tensors, path):
    """Return the one joined tensor of a file with a layer in a form."""
    said = torch.tensor(list(f'{{"format": "{form}"}}'.encode()), dtype=torch.uint8)
    save_file({f"a.{own}": part.contiguous() for own, part in tensors.items()} | {"a.comfy_quant": said}, path)
    (stored,) = join_scales(open_tensors(path)).values()
    return stored


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [(128, 4), (1, 1), (33, 5), (300, 9)])
def test_the_order_of_scales_is_that_of_the_manual(size):
    scale = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tiles = writers.cublas_tiles(scale)
    assert torch.equal(untiled(tiles, *size), scale)
    assert torch.equal(tiled(scale), tiles.flatten())


@pytest.mark.parametrize("size", [(16, 32), (144, 96), (40, 4096)])
def test_numbers_are_those_that_the_file_stands_for(form, tmp_path, size):
    tensors, expected = {"nvfp4": writers.nvfp4, "mxfp8": writers.mxfp8}[form](weight_of(*size))
    stored = loaded(form, tensors, tmp_path / "x.safetensors")
    assert stored.shape == size
    assert torch.equal(stored.read(), expected)
    assert torch.equal(torch.cat([part.read() for part in stored.split(4)]), expected), "projections that are joined"
    layer = FORMATS[form].layer(FORMATS[form].from_stored(stored), None, None)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(layer.dense(dtype), expected.to(dtype)), "rounded once"
    inputs = weight_of(3, size[1], seed=2)
    assert torch.equal(layer(inputs), inputs @ expected.t())
    assert 0 < off(expected, weight_of(*size)) < (0.12 if form == "nvfp4" else 0.04)


def test_the_numbers_of_comfy_kitchen(form, tmp_path):
    eager = pytest.importorskip("comfy_kitchen.backends.eager.quantization", reason="comfy-kitchen is not installed")
    weight = weight_of(160, 224, seed=3)
    weight[5, 32:64] = 0
    if form == "nvfp4":
        layer = weight.abs().max() / (448 * 6)
        values, scale = eager.quantize_nvfp4(weight, layer)
        expected = eager.dequantize_nvfp4(values, layer, scale, torch.float32)
        tensors = {"weight": values, "weight_scale": scale, "weight_scale_2": layer}
    else:
        values, scale = eager.quantize_mxfp8(weight)
        expected = eager.dequantize_mxfp8(values, scale, torch.float32)
        tensors = {"weight": values, "weight_scale": scale.view(torch.uint8)}
        made = FORMATS[form].layer(FORMATS[form].from_stored(loaded(form, tensors, tmp_path / "y")), None, None)
        assert torch.equal(made.dense(torch.bfloat16), eager.dequantize_mxfp8(values, scale, torch.bfloat16))
    assert torch.equal(loaded(form, tensors, tmp_path / "x.safetensors").read(), expected)


@pytest.mark.parametrize("storage", [None, "fp32", "fp8"])
def test_a_model_runs_as_with_the_numbers_it_stands_for(form, written, storage):
    path, plain = written
    expected = load_component("transformer", plain, dtype=torch.float32, storage=storage, rules=RULES)
    model = load_component("transformer", path, dtype=torch.float32, storage=storage, rules=RULES)
    packed = [layer for layer in model.modules() if isinstance(layer, BlockScaledLinear)]
    tensors = load_file(path)
    assert len(packed) == (sum(name.endswith("comfy_quant") for name in tensors) if storage is None else 0)
    assert torch.equal(models.run_wan(model), models.run_wan(expected))
    if storage is None:
        held = sum(buffer.numel() * buffer.itemsize for layer in packed for buffer in layer.buffers())
        ends = ("weight_scale", "weight_scale_2", "comfy_quant")
        of_layers = {name.rpartition(".")[0] for name in tensors if name.endswith("comfy_quant")}
        in_file = sum(
            tensor.numel() * tensor.itemsize
            for name, tensor in tensors.items()
            if name.rpartition(".")[0] in of_layers and name.endswith((".weight", *ends[:2]))
        )
        assert held == in_file + (0 if form == "nvfp4" else 4 * len(packed)), "as many bytes as in the file"


def test_streamed_and_under_a_lora_it_stays_packed(form, written, tmp_path):
    model = load_component("transformer", written[0], dtype=torch.float32)
    before = models.run_wan(model)
    with streamed(model, [*model.blocks, *model.vace_blocks], "cpu"):
        assert torch.equal(models.run_wan(model), before)
    factors = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": weight_of(2, 128, seed=4),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": weight_of(128, 2, seed=5),
    }
    save_file(factors, tmp_path / "lora.safetensors")
    plain = load_component("transformer", written[1], dtype=torch.float32)
    applied = apply_lora(model, tmp_path / "lora.safetensors")
    apply_lora(plain, tmp_path / "lora.safetensors")
    layer = model.blocks[0].attn1.to_q
    assert isinstance(layer, BlockScaledLinear)
    assert torch.equal(dense_weight(layer), plain.blocks[0].attn1.to_q.weight)
    assert not torch.equal(models.run_wan(model), before)
    assert torch.equal(models.run_wan(model), models.run_wan(plain))
    applied.remove()
    assert torch.equal(models.run_wan(model), before)


def test_the_plan_counts_the_bytes_that_are_held(form, written):
    entries = find_source(written[0], "transformer").entries
    counted = component(
        "transformer", {name: TensorInfo(one.shape, one.dtype) for name, one in entries.items()}, RULES
    )
    assert counted.stored == form
    model = load_component("transformer", written[0], dtype=torch.bfloat16)
    held = sum(one.numel() * one.itemsize for one in (*model.parameters(), *model.buffers()))
    packed = sum(isinstance(layer, BlockScaledLinear) for layer in model.modules())
    tables = sum(one.numel() * one.itemsize for name, one in model.named_buffers() if name.startswith("rope."))
    assert held - tables <= counted.bytes("bf16", form) <= held - tables + 4 * packed
    (shown,) = (one for one in layers(written[0]) if one.storage == form)
    assert sum(group.bytes for group in shown.groups) == counted.bytes("bf16", form)
    parts = {**listed_components("wan2.1-vace-1.3b"), "transformer": counted}
    made = plan(wan.phases(parts, VideoWork(64, 64, 9)), synthetic(6, 16), memory=form).phase("sample")
    assert made.storage == form
    assert f"stored as {form}" in made.key


def test_inspect_counts_weights_and_names_the_format(form, written):
    found, plain = inspect(written[0]), inspect(written[1])
    assert found.readable
    assert found.precision == form
    assert found.parts[0].parameters == plain.parts[0].parameters
    assert found.parts[0].width == 128
    assert next(iter(found.types)) in (form.upper(), "fp32")


def test_what_cannot_be_meant_is_refused(form, tmp_path):
    good, _ = {"nvfp4": writers.nvfp4, "mxfp8": writers.mxfp8}[form](weight_of(32, 64))
    bad = {
        "a scale of shape": {**good, "weight_scale": good["weight_scale"][:64]},
        "stored without a scale": {name: one for name, one in good.items() if name != "weight_scale"},
        "and stored as bf16": {**good, "weight": weight_of(32, 64).bfloat16()},
        "and stored as I8": {**good, "weight": good["weight"].view(torch.int8)},
    }
    for number, (reason, tensors) in enumerate(bad.items()):
        with pytest.raises(PiyingError, match=reason):
            loaded(form, tensors, tmp_path / f"{number}.safetensors")
    path = tmp_path / "undeclared.safetensors"
    save_file({f"a.{own}": part.contiguous() for own, part in good.items()}, path)
    with pytest.raises(PiyingError, match=f"stored as {form} without ComfyUI's comfy_quant"):
        open_tensors(path)


@pytest.mark.parametrize("where", ["weight", "weight_scale"])
def test_numbers_that_are_none_are_found(form, written, tmp_path, where):
    tensors = load_file(written[0])
    name = f"blocks.0.self_attn.q.{where}"
    if where == "weight" and form == "nvfp4":
        name = f"{name}_scale_2"
        tensors[name] = torch.tensor(torch.inf)
    else:
        tensors[name].view(torch.uint8).view(-1)[0] = 0xFF
    path = writers.save(tensors, tmp_path / "x.safetensors")
    for storage in (None, "fp32"):
        with pytest.raises(PiyingError, match=r"blocks\.0\.attn1\.to_q\.weight holds values that are no numbers"):
            load_component("transformer", path, dtype=torch.float32, storage=storage)
