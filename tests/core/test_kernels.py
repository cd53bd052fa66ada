"""Products in a weight format: those of unpacked weights by comfy-kitchen's code, where card and package allow it."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from piying.core.planner import machine
from piying.core.quantization import kernel_fault as trial
from piying.core.quantization.kernel_fault import kernel_fault
from piying.core.quantization.registry import FORMATS

NAMES = [name for name, one in FORMATS.items() if one.kernel is not None and one.kernel.function]
# What rounding the inputs adds: that of the format, since weights lose nothing further.
LOST = {"int8": 0.012, "mxfp8": 0.04, "nvfp4": 0.12}


@pytest.fixture(autouse=True)
def untried():
    kernel_fault.cache_clear()
    yield
    kernel_fault.cache_clear()


@pytest.fixture
def kitchen(monkeypatch):
    """comfy-kitchen, whose products of blocks need a card: here of what it makes of both factors."""
    kitchen = pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")

    def nvfp4(a, b, *, tensor_scale_a, tensor_scale_b, block_scale_a, block_scale_b, bias, out_dtype):
        left = kitchen.dequantize_nvfp4(a, tensor_scale_a, block_scale_a, torch.float32)
        right = kitchen.dequantize_nvfp4(b, tensor_scale_b, block_scale_b, torch.float32)
        return (left @ right.t() + (0 if bias is None else bias)).to(out_dtype)

    def mxfp8(a, b, *, block_scale_a, block_scale_b, bias, out_dtype):
        factors = ((a, block_scale_a), (b, block_scale_b))
        left, right = (kitchen.dequantize_mxfp8(*factor, torch.float32) for factor in factors)
        return (left @ right.t() + (0 if bias is None else bias)).to(out_dtype)

    monkeypatch.setattr(kitchen, "scaled_mm_nvfp4", nvfp4)
    monkeypatch.setattr(kitchen, "scaled_mm_mxfp8", mxfp8)


def layer(name, target, rows=96, columns=256):
    chosen = FORMATS[name]
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(rows, columns, generator=draw), torch.randn(rows, generator=draw)
    return chosen.layer(chosen.for_file(weight, target), bias, None)


def test_the_formats_that_have_kernels():
    assert NAMES == ["int8", "mxfp8", "nvfp4"]


@pytest.mark.parametrize(("name", "target"), [(n, t) for n in NAMES for t in FORMATS[n].targets])
@pytest.mark.parametrize("shape", [(2, 5, 256), (33, 256), (1, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_that_of_unpacked_weights_but_for_the_rounded_inputs(kitchen, name, target, shape, dtype):
    made = layer(name, target)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = made(inputs)
    made.native_matmul = True
    found = made(inputs)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    off = ((found - expected).float().norm() / expected.float().norm()).item()
    assert LOST[name] / 4 < off < LOST[name], "inputs are rounded, and to no less than the format has"


@pytest.mark.parametrize("name", NAMES)
def test_what_no_kernel_takes_is_unpacked(kitchen, name):
    made = layer(name, FORMATS[name].targets[0])
    made.native_matmul = True
    inputs = torch.randn(3, 256)
    assert torch.equal(made(inputs), inputs @ made.dense(torch.float32).t() + made.bias), "fp32 is not rounded"
    if name != "int8":
        odd = layer(name, FORMATS[name].targets[0], rows=40)
        odd.native_matmul = True
        rows = inputs.bfloat16()
        assert torch.equal(odd(rows), torch.nn.functional.linear(rows, odd.dense(torch.bfloat16), odd.bias.bfloat16()))


@pytest.mark.parametrize(
    ("capability", "native"),
    [
        (None, []),
        ((7, 0), []),
        ((7, 5), ["int8"]),
        ((8, 6), ["int8"]),
        ((8, 9), ["fp8", "int8"]),
        ((10, 3), ["fp8", "mxfp8", "nvfp4"]),
        ((12, 0), ["fp8", "int8", "mxfp8", "nvfp4"]),
    ],
)
def test_what_cards_multiply_in(monkeypatch, capability, native):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    assert [name for name, one in FORMATS.items() if one.matmul_speedup(capability)] == native
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "comfy_kitchen" else package)
    assert [name for name, one in FORMATS.items() if one.matmul_speedup(capability)] == native[: "fp8" in native]


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_tried_before_it_is_planned_with(kitchen, name, monkeypatch, caplog):
    assert kernel_fault(name, "cpu") == ""
    assert name in machine._native_flops(1.0, (12, 0), "cpu")
    kernel_fault.cache_clear()
    module = pytest.importorskip(FORMATS[name].layer_class().__module__)
    for broken, said in (
        (lambda inputs, *rest, **more: torch.ones(*inputs.shape[:-1], 256, dtype=inputs.dtype), "not those of the"),
        (lambda *rest, **more: (_ for _ in ()).throw(RuntimeError("no kernel image")), "no kernel image"),
    ):
        monkeypatch.setattr(module, "_native_product", broken)
        for _ in range(2):
            assert name not in machine._native_flops(1.0, (12, 0), "cpu")
        lines = [line for line in caplog.messages if said in line and line.startswith(FORMATS[name].title)]
        assert len(lines) == 1, "said once"
        kernel_fault.cache_clear()


def test_compiled_kernels_that_are_not_there_are_told(kitchen, monkeypatch, caplog):
    monkeypatch.setattr(trial, "_backend", lambda function: "eager")
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *rest, **more: tensor)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *rest, **more: module)
    assert "no compiled kernels for this card and driver" in kernel_fault("int8", "cuda:0")
