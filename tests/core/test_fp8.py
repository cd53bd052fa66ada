"""FP8 weights: how far off they are, that they compute what they say, and which layers they replace."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.checkpoints import load_component
from piying.core.files.dtypes import convert_into
from piying.core.quantization.casting import cast_module, castable_layers, use_native_matmul
from piying.core.quantization.fp8_linear import Fp8Linear, can_multiply, multiply, quantize
from piying.core.quantization.policy import CastRules
from piying.core.quantization.scaled_tensor import dequantize
from piying.core.wan.family import WAN_VACE
from transformers import AutoTokenizer

WAN = BUILT_IN_ROOT / "wan_vace"
WAN_RULES = WAN_VACE.rules["transformer"]
WAN_LISTS = CastRules(WAN_RULES.block_lists)
WAN_KEEP = CastRules(keep=WAN_RULES.keep)


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def step(values):
    """Return the distance of neighbouring e4m3 numbers around `values`: three mantissa bits, subnormal below 2**-6."""
    return torch.exp2(values.abs().double().log2().floor().clamp(min=-6) - 3)


@pytest.mark.parametrize("std", [0.02, 0.003, 3.0])
def test_the_error_is_what_per_channel_theory_says(std):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 512, generator=generator) * std * torch.rand(64, 1, generator=generator)
    values, scale = quantize(weight)
    error = dequantize(values, scale, torch.float32) - weight
    scaled = weight / (weight.abs().amax(dim=1, keepdim=True) / 448)
    expected = (step(scaled) * weight.abs().amax(dim=1, keepdim=True) / 448) / 12**0.5
    assert rms(error) == pytest.approx(rms(expected), rel=0.03)
    assert rms(error) / rms(weight) < 0.0275
    assert (error.abs() <= expected * 12**0.5 / 2 * 1.0001).all()


def test_the_largest_weight_of_a_row_is_exact():
    weight = torch.tensor([[0.5, -0.25, 0.0], [0.0, 0.0, 0.0], [1e-30, 0.0, -1e-31], [3e30, 1e30, 0.0]])
    restored = dequantize(*quantize(weight), torch.float32)
    assert torch.equal(restored[:2], weight[:2])
    assert torch.allclose(restored, weight, rtol=1 / 16, atol=0)


def test_a_scale_may_cover_a_block_of_inputs():
    values = torch.ones(2, 6).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert dequantize(values, scale, torch.float32).tolist() == [[1, 1, 2, 2, 3, 3], [4, 4, 5, 5, 6, 6]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_number_of_float8_is_converted_as_torch_does(dtype):
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        numbers = torch.arange(256, dtype=torch.uint8).view(kind)
        numbers = numbers[numbers.float().isfinite()]
        found = torch.empty(numbers.shape, dtype=dtype)
        convert_into(found, numbers)
        assert torch.equal(found, numbers.to(dtype))
        assert torch.equal(found.signbit(), numbers.float().signbit())


def test_small_scales_survive_half_precision():
    """A scale of 1e-6 is 2 % off as an fp16 number; a product of 448 and it is not."""
    weight = torch.linspace(-4e-4, 4e-4, 64).reshape(1, 64)
    values, scale = quantize(weight)
    exact = dequantize(values, scale, torch.float32)
    assert torch.equal(dequantize(values, scale, torch.float16), exact.half())


@pytest.fixture(scope="module")
def transformer_inputs():
    """Return what the first step of a text-to-video run gives the model: noise, a caption's states, all to be made."""
    generator = torch.Generator().manual_seed(2)
    words = AutoTokenizer.from_pretrained(WAN / "tokenizer")("a red circle moves right", return_tensors="pt")
    encoder = load_component("text_encoder", WAN, dtype=torch.float32)
    with torch.no_grad():
        states = encoder(words.input_ids, words.attention_mask).last_hidden_state
    return {
        "hidden_states": torch.randn(1, 9, 3, 8, 8, generator=generator),
        "timestep": torch.tensor([1000]),
        "encoder_hidden_states": states,
        "control_hidden_states": torch.cat([torch.zeros(1, 18, 3, 8, 8), torch.ones(1, 64, 3, 8, 8)], dim=1),
    }


def transformer(**arguments):
    return load_component("transformer", WAN, dtype=torch.float32, **arguments)


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def test_the_real_transformer_is_never_worse_than_layerwise_casting(transformer_inputs):
    expected = run(transformer(), transformer_inputs)
    ours = run(transformer(storage="fp8", rules=WAN_KEEP), transformer_inputs)
    theirs = transformer()
    theirs.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    error, layerwise = (
        rms(ours - expected) / rms(expected),
        rms(run(theirs, transformer_inputs) - expected) / rms(expected),
    )
    assert 0 < error < layerwise


def test_the_real_transformer_is_no_worse_than_theory(transformer_inputs):
    """Theory: every cast weight is off by anything up to half a step of e4m3 at its row's scale, independently."""
    expected = run(transformer(), transformer_inputs)
    error = rms(run(transformer(storage="fp8", rules=WAN_KEEP), transformer_inputs) - expected)
    theory = [rms(run(rounded_at_random(seed), transformer_inputs) - expected) for seed in range(6)]
    assert error < 1.5 * sum(theory) / len(theory)


def rounded_at_random(seed):
    generator = torch.Generator().manual_seed(seed)
    model = transformer()
    cast = {name for name, layer in transformer(storage="fp8", rules=WAN_KEEP).named_modules() if is_fp8(layer)}
    for name, layer in model.named_modules():
        if name in cast:
            scale = layer.weight.abs().amax(dim=1, keepdim=True).double() / 448
            off = (torch.rand(layer.weight.shape, generator=generator) - 0.5) * step(layer.weight / scale) * scale
            layer.weight.data += off.float()
    return model


def is_fp8(layer):
    return isinstance(layer, Fp8Linear)


def test_no_layer_is_worse_than_a_plain_cast():
    for name, layer in castable_layers(transformer(), WAN_LISTS):
        plain = layer.weight.to(torch.float8_e4m3fn).float()
        ours = dequantize(*quantize(layer.weight), torch.float32)
        assert rms(ours - layer.weight) <= rms(plain - layer.weight), name


def test_an_fp8_model_computes_with_exactly_the_weights_it_holds(transformer_inputs):
    packed = transformer(storage="fp8", rules=WAN_KEEP)
    dense = transformer()
    for name, layer in packed.named_modules():
        if isinstance(layer, Fp8Linear):
            dense.get_submodule(name).weight = torch.nn.Parameter(layer.dense(torch.float32))
    assert torch.equal(run(packed, transformer_inputs), run(dense, transformer_inputs))


def test_which_layers_are_cast():
    model = transformer(storage="fp8", rules=WAN_RULES)
    packed = {name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)}
    assert "blocks.0.attn1.to_q" in packed
    assert "vace_blocks.1.ffn.net.2" in packed
    assert len(packed) == (4 + 2) * 10
    dense = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {"vace_blocks.0.proj_in", "vace_blocks.1.proj_out", "proj_out"} <= dense
    assert all(
        parameter.dtype != torch.float8_e4m3fn for name, parameter in model.named_parameters() if "bias" in name
    )


def test_without_lists_every_list_of_blocks_counts():
    named = [name for name, _ in castable_layers(transformer(), WAN_LISTS)]
    assert [name for name, _ in castable_layers(transformer(), CastRules())] == named


def test_casting_in_memory_equals_casting_at_load(transformer_inputs):
    model = transformer()
    assert cast_module(model, "fp8", WAN_KEEP) == 60
    at_load = transformer(storage="fp8", rules=WAN_KEEP)
    assert torch.equal(run(model, transformer_inputs), run(at_load, transformer_inputs))


@pytest.mark.parametrize("kind", ["text_encoder", "text_encoder_2"])
def test_t5_does_not_cast_its_activations_to_fp8(kind):
    """T5 takes the type of `wo.weight` for that of its activations, where it is a tensor."""
    folder = BUILT_IN_ROOT / ("wan_vace" if kind == "text_encoder" else "hunyuan_dit")
    tokens = torch.arange(4, 20)[None]
    packed = load_component(kind, folder, dtype=torch.float32, storage="fp8")
    dense = load_component(kind, folder, dtype=torch.float32)
    for name, layer in packed.named_modules():
        if isinstance(layer, Fp8Linear):
            dense.get_submodule(name).weight = torch.nn.Parameter(layer.dense(torch.float32))
    with torch.no_grad():
        assert torch.equal(packed(tokens).last_hidden_state, dense(tokens).last_hidden_state)


def test_half_precision_t5_keeps_its_fp32_layers_in_fp32():
    packed = load_component("text_encoder", WAN, dtype=torch.float16, storage="fp8")
    wo = packed.encoder.block[0].layer[-1].DenseReluDense.wo
    assert wo(torch.ones(1, 128, dtype=torch.float16)).dtype == torch.float32


def test_fp8_products_are_those_of_the_rounded_rows():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(2, 3, 32, generator=generator).to(torch.bfloat16)
    values, scale = quantize(torch.randn(16, 32, generator=generator))
    bias = torch.randn(16, generator=generator).to(torch.bfloat16)
    assert can_multiply(inputs, values, scale)
    rows = dequantize(*quantize(inputs.reshape(6, 32)), torch.float32)
    expected = rows @ dequantize(values, scale, torch.float32).T + bias.float()
    result = multiply(inputs, values, scale, bias)
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float().reshape(6, 16), expected, rtol=0.01, atol=0.01)


def test_fp8_products_are_used_where_they_can_be():
    generator = torch.Generator().manual_seed(4)
    layers = torch.nn.Sequential(torch.nn.Linear(32, 24, bias=False), torch.nn.Linear(24, 16))
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([layers])
    cast_module(model, "fp8", CastRules(("blocks",)))
    inputs = torch.randn(4, 32, generator=generator).to(torch.bfloat16)
    plain = layers(inputs)
    use_native_matmul(model, True)
    assert torch.equal(layers(inputs), plain), "24 is no multiple of 16"
    square = Fp8Linear(*quantize(torch.randn(16, 32, generator=generator)))
    plain = square(inputs)
    square.native_matmul = True
    assert 0 < rms(square(inputs) - plain) / rms(plain) < 0.05
