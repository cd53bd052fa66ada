"""INT8, plain and rotated: planned, cast, run, cached, read, under a LoRA, and refused."""

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
from piying.core.quantization.int8 import Int8
from piying.core.quantization.int8_linear import Int8Linear, hadamard, quantize, rotated
from piying.core.quantization.registry import FORMATS, weight_format
from piying.core.quantization.stored_formats import join_scales
from piying.core.wan import phases as wan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.model import load
from piying.core.wan.phases import VideoWork
from safetensors.torch import load_file, save_file

FOLDER = BUILT_IN_ROOT / "wan_vace" / "transformer"
RULES = WAN_VACE.rules["transformer"]


@pytest.fixture
def host(tmp_path):
    """A models folder with the toy model under the name of a real one."""
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "diffusers" / "model")
    yield HeadlessHost(models=[tmp_path], chosen_device="cpu")
    model_cache.evict_models()


def choice_of(storage):
    """Return how the plan runs sampling where the user asks for a storage."""
    components = found_components(found := built_in("wan_vace"), WAN_VACE.rules_of(found))
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
    assert (asked.storage, asked.native_matmul) == ("int8", False), "packages of a card that is not here are not known"
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


# Rotated weights


def declared(**said):
    return torch.tensor(list(json.dumps({"format": "int8_tensorwise", **said}).encode()), dtype=torch.uint8)


def rotated_file(path, state, in_text, group=16):
    """Write a transformer whose query layers are held as ComfyUI's int8-convrot files hold them."""
    packed, layers = dict(state), {}
    for name in [name for name in state if name.endswith("to_q.weight")]:
        values, scale = quantize(rotated(state[name].float(), group))
        packed |= {name: values, f"{name}_scale": scale}
        said = {"convrot": True, "convrot_groupsize": group}
        layers[name.removesuffix(".weight")] = {"format": "int8_tensorwise", **said}
        if not in_text:
            packed[f"{name.removesuffix('weight')}comfy_quant"] = declared(**said)
    text = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(packed, path, text if in_text else None)


def test_a_hadamard_matrix_is_its_own_inverse():
    for size in (4, 16, 256):
        matrix = hadamard(size)
        assert torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-6)
        assert torch.equal(matrix, matrix.t())
        assert torch.allclose(matrix.sum(dim=0).abs(), torch.ones(size))  # regular: every sum is √size / √size


@pytest.mark.parametrize("in_text", [False, True], ids=["tensors", "header"])
@pytest.mark.parametrize("storage", [None, "fp32", "fp8"])
def test_rotated_weights_are_those_of_the_original(tmp_path, in_text, storage):
    state = load_file(FOLDER / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "model.safetensors"
    rotated_file(path, state, in_text)
    config = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert inspect(path).readable
    plain = load_component("transformer", FOLDER, dtype=torch.float32)
    model = load_component("transformer", path, config=config, dtype=torch.float32, storage=storage, rules=RULES)
    assert len(layers_of(model)) == (12 if storage is None else 0)
    for name, layer in model.named_modules():
        if name.endswith("to_q"):
            stored = weight_format(storage or "int8")
            weight = stored.dense(layer) if stored and not isinstance(layer, torch.nn.Linear) else layer.weight
            # Uniform rounding in steps of the row's largest / 127; FP8's relative error is larger.
            assert off(weight, plain.get_submodule(name).weight) < (0.04 if storage == "fp8" else 0.012)
    if storage != "fp8":  # which holds all other layers too
        assert off(predict(model), predict(plain)) < 0.03


def test_the_product_of_a_rotated_layer_is_that_of_its_weight():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 5] *= 30  # an outlier, for which the rotation is there
    plain = Int8().layer(Int8().to_stored(weight), None, None)
    values, scale = quantize(rotated(weight, 16))
    layer = Int8().layer({"values": values, "scale": scale, "group": torch.tensor(16)}, None, None)
    inputs = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(layer(inputs), inputs @ layer.dense(torch.float32).t(), atol=1e-3)
    assert torch.allclose(WeightFormat.dense(Int8(), layer), layer.dense(torch.float32), atol=1e-4)
    others = torch.arange(64) != 5
    assert off(layer.dense(torch.float32)[:, others], weight[:, others]) < 0.5 * off(
        plain.dense(torch.float32)[:, others], weight[:, others]
    )


def test_the_error_of_rounding_is_that_of_theory():
    weight = torch.randn(1536, 1536, generator=torch.Generator().manual_seed(3))
    values, scale = quantize(weight)
    error = off(values * scale, weight)
    step = weight.abs().amax(dim=1) / 127  # uniform in ± half a step: step / √12
    assert error == pytest.approx((step.square().mean() / 12).sqrt().item(), rel=0.01)
    assert error == pytest.approx(Int8.rounding_error, rel=0.02)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"convrot": True, "convrot_groupsize": 32},
            "int8_tensorwise rotated in groups of 32 inputs; groups are a power",
        ),
        ({"convrot": True, "convrot_groupsize": "x"}, "int8_tensorwise rotated in groups of x inputs"),
        ({"convrot": True}, r"in groups of 256 inputs; groups are a power of 4 that divides \[64\]"),
        ({"format": "int4_convrot"}, "stored as int4_convrot"),
    ],
)
def test_what_cannot_be_rotated_back_is_refused_by_its_header(tmp_path, said, reason):
    tensors = {"a.weight": torch.ones(4, 64, dtype=torch.int8), "a.weight_scale": torch.ones(4, 1)}
    save_file({**tensors, "a.comfy_quant": declared(**said)}, tmp_path / "x.safetensors")
    with pytest.raises(PiyingError, match=f"stored as .*{reason.removeprefix('stored as ')}"):
        open_tensors(tmp_path / "x.safetensors")


def test_a_declaration_is_read_as_its_header_was(tmp_path):
    said = {"convrot": True, "convrot_groupsize": 16}
    weight = {"a.weight": torch.ones(4, 64, dtype=torch.int8), "a.weight_scale": torch.ones(4, 1)}
    long = declared(convrot=True, convrot_groupsize=1 << 40, filling="x" * 5000)
    wide = torch.cat([declared(**said), torch.zeros(-len(declared(**said)) % 4, dtype=torch.uint8)]).view(
        torch.float32
    )
    for number, declaration in enumerate((declared(**said), wide)):
        save_file({**weight, "a.comfy_quant": declaration}, tmp_path / f"{number}.safetensors")
        (stored,) = join_scales(open_tensors(tmp_path / f"{number}.safetensors")).values()
        assert Int8().from_stored(stored)["group"] == 16
    save_file({**weight, "a.comfy_quant": long}, tmp_path / "long.safetensors")
    with pytest.raises(PiyingError, match="stored as an undeclared format"):
        open_tensors(tmp_path / "long.safetensors")


def test_rotated_weights_are_those_of_comfy_kitchen():
    eager = pytest.importorskip("comfy_kitchen.backends.eager.quantization", reason="comfy-kitchen is not installed")
    weight = torch.randn(33, 1024, generator=torch.Generator().manual_seed(4))
    values, scale = eager.quantize_int8_convrot_weight(weight, 256)[:2]
    assert torch.equal(values, quantize(rotated(weight, 256))[0])
    layer = Int8().layer({"values": values, "scale": scale, "group": torch.tensor(256)}, None, None)
    assert torch.equal(layer.dense(torch.float32), eager.dequantize_int8_convrot_weight(values, scale, 256))
