"""A weight format that this file adds, and one line registers: planned, cast, run, cached, read and under a LoRA."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.component_sizes import found_components, listed_components
from piying.core.catalog.installed_model import BUILT_IN_ROOT, built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.checkpoints import apply_lora, load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.executor.streaming import streamed
from piying.core.files.open import open_tensors, read_header
from piying.core.host.headless import HeadlessHost
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan
from piying.core.quantization.base import WeightFormat
from piying.core.quantization.registry import FORMATS
from piying.core.quantization.scaled_tensor import ScaledTensor, dequantize
from piying.core.wan import phases as wan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.model import load
from piying.core.wan.phases import VideoWork
from safetensors.torch import load_file, save_file

FOLDER = BUILT_IN_ROOT / "wan_vace" / "transformer"
RULES = WAN_VACE.rules["transformer"]


class Int8Linear(torch.nn.Module):
    """Unpacked for each product."""

    def __init__(self, values, scale, bias, compute):
        super().__init__()
        self.out_features, self.in_features = values.shape
        self.register_buffer("whole", values)
        self.register_buffer("steps", scale)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        self.compute, self.native_matmul = compute, False

    def forward(self, inputs):
        inputs = inputs if self.compute is None else inputs.to(self.compute)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return torch.nn.functional.linear(inputs, dequantize(self.whole, self.steps, inputs.dtype), bias)


class Int8(WeightFormat):
    """A whole number from -127 to 127 and a float32 scale for each output channel."""

    name = "int8"
    title = "INT8"
    readable = "int8 (scaled)"
    number_types = ("I8",)
    declarations = frozenset({"int8_tensorwise"})
    scales = ("weight_scale",)
    file_names = {"whole": "weight", "steps": "weight_scale"}
    rounding_error = 0.0081

    def recognises(self, name, types):
        return types[name] == "I8" and f"{name}_scale" in types

    def bytes(self, weights, rows):
        return weights + 4 * rows

    def holds(self, stored):
        return isinstance(stored, ScaledTensor) and stored.dtype == torch.int8

    def from_stored(self, stored):
        return {"values": stored.values.read(), "scale": stored.scale_blocks()}

    def to_stored(self, weight):
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        return {"values": (weight.float() / scale).round().to(torch.int8), "scale": scale}

    def layer_class(self):
        return Int8Linear

    def layer(self, packed, bias, compute):
        return Int8Linear(packed["values"], packed["scale"], bias, compute)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FORMATS, Int8.name, Int8())


@pytest.fixture
def host(tmp_path):
    """A models folder with the toy model under the name of a real one."""
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "diffusers" / "model")
    yield HeadlessHost(models=[tmp_path], chosen_device="cpu")
    model_cache.evict_models()


def choice_of(storage):
    """Return how the plan runs sampling where the user asks for a storage."""
    components = found_components(built_in("wan_vace"), WAN_VACE.rules)
    made = plan(wan.phases(components, VideoWork(64, 64, 9)), synthetic(6, 16), memory=storage)
    return replace(made.phase("sample"), compute="fp32")


def transformer(host, storage):
    """Return the transformer as a run reads it when nothing is kept in memory."""
    model_cache.evict_models()
    return load(ModelHandle(WAN_VACE, "diffusers/model"), host).transformer(choice_of(storage))


def predict(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 9, 3, 8, 8, generator=generator),
            timestep=torch.tensor([1000]),
            encoder_hidden_states=torch.randn(1, 8, 64, generator=generator),
            control_hidden_states=torch.randn(1, 82, 3, 8, 8, generator=generator),
            return_dict=False,
        )[0]


def layers_of(model):
    return {name for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_the_plan_offers_it_and_says_so():
    phases = wan.phases(listed_components("wan2.1-vace-14b"), VideoWork(832, 480, 81))
    machine = synthetic(24, 64)
    asked = plan(phases, machine, memory="int8").phase("sample")
    assert (asked.storage, asked.native_matmul) == ("int8", False)
    assert asked.key.startswith("sample: transformer bf16 stored as int8, ")
    assert asked.weights == plan(phases, machine, memory="fp8").phase("sample").weights
    made = plan(phases, machine, memory="auto")
    assert any("stored as int8" in way.choice for way in made.rejected + made.phases if hasattr(way, "choice"))
    assert any(reason.startswith("sample: weights in INT8") for reason in plan(phases, machine, memory="int8").reasons)


def test_cast_run_and_streamed(host):
    dense, packed = transformer(host, "resident"), transformer(host, "int8")
    assert len(layers_of(packed)) == 60
    expected = predict(dense)
    result = predict(packed)
    assert 0 < off(result, expected) < off(predict(transformer(host, "fp8")), expected)
    with streamed(packed, [*packed.blocks, *packed.vace_blocks], "cpu"):
        assert torch.equal(predict(packed), result)


def test_cached_beside_its_original(host, monkeypatch):
    monkeypatch.setenv("PIYING_KEEP_INT8", "1")
    first = predict(transformer(host, "int8"))
    (path,) = host.models[0].rglob("*.int8cast")
    types = {entry.dtype for name, entry in read_header(path).entries.items() if name.endswith("to_q.weight")}
    assert types == {"I8"}
    monkeypatch.setattr(Int8, "to_stored", None)
    assert torch.equal(predict(transformer(host, "int8")), first)


def test_a_file_that_has_it_so(tmp_path):
    state = load_file(FOLDER / "diffusion_pytorch_model.safetensors")
    packed = dict(state)
    for name in [name for name in state if name.endswith("to_q.weight")]:
        values = Int8().to_stored(state[name])
        packed |= {name: values["values"], f"{name}_scale": values["scale"].squeeze(1)}
    path = tmp_path / "model.safetensors"
    save_file(packed, path)
    config = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))  # its heads are too narrow for the layout's rule
    assert inspect(path).readable
    assert inspect(path).precision == "I8 scaled"
    loaded = load_component("transformer", path, config=config, dtype=torch.float32)
    assert layers_of(loaded) == {name.removesuffix(".weight") for name in state if name.endswith("to_q.weight")}
    unpacked = load_component("transformer", path, config=config, dtype=torch.float32, storage="fp32")
    assert not layers_of(unpacked)
    assert torch.allclose(predict(loaded), predict(unpacked), atol=1e-5)
    as_fp8 = load_component("transformer", path, config=config, dtype=torch.float32, storage="fp8", rules=RULES)
    assert not layers_of(as_fp8), "one format at a time"


def test_without_its_line_it_is_named_as_foreign(tmp_path, monkeypatch):
    save_file(
        {"a.weight": torch.ones(4, 4, dtype=torch.int8), "a.weight_scale": torch.ones(4)}, tmp_path / "x.safetensors"
    )
    assert set(open_tensors(tmp_path / "x.safetensors")) == {"a.weight", "a.weight_scale"}
    monkeypatch.delitem(FORMATS, "int8")
    with pytest.raises(PiyingError, match=r"stored as int8, which this pack cannot read. Readable: bf16, fp16, fp32"):
        open_tensors(tmp_path / "x.safetensors")


def test_a_lora_goes_beside_it(host, tmp_path):
    model = transformer(host, "int8")
    before = predict(model)
    generator = torch.Generator().manual_seed(2)
    save_file(
        {
            "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, 96, generator=generator),
            "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.randn(96, 2, generator=generator),
        },
        tmp_path / "lora.safetensors",
    )
    applied = apply_lora(model, tmp_path / "lora.safetensors")
    assert off(predict(model), before) > 1e-4
    assert isinstance(model.blocks[0].attn1.to_q, Int8Linear)
    applied.remove()
    assert torch.equal(predict(model), before)
