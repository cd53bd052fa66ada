"""GGUF files kept packed: planned with their own bytes, run, streamed, and under a LoRA."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from piying.core.catalog.component_sizes import TensorInfo, component, listed_components
from piying.core.catalog.selection import ModelHandle
from piying.core.checkpoints import apply_lora, load_component
from piying.core.checkpoints.components import find_source
from piying.core.checkpoints.layers import layers
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.executor.streaming import streamed
from piying.core.files.gguf_blocks import BY_NAME, DEVICE_PIECE, HALVES, UNPACKERS
from piying.core.files.open import read_header
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan
from piying.core.quantization.gguf import NUMBERS, Gguf
from piying.core.quantization.gguf_linear import GgufLinear
from piying.core.wan import phases as wan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.phases import VideoWork
from piying.core.wan.run import sample
from safetensors.torch import save_file

from ..conftest import ROOT
from .formats import gguf_writer, models, names
from .test_plan_peaks import peak
from .test_single_files import NAME, REQUEST, folders, host  # noqa: F401 - fixtures

RULES = WAN_VACE.rules["transformer"]


@pytest.fixture
def path(tmp_path):
    """The toy transformer as a file for ComfyUI's GGUF loaders, all its matrices in Q8_0."""
    return write(tmp_path / "x.gguf")


def write(path):
    tensors = names.wan_transformer(models.tensors(models.wan_transformer()))
    return gguf_writer.save(tensors, path, {"general.architecture": "wan"}, gguf_writer.Q8_0)


def load(path, **options):
    return load_component("transformer", path, rules=RULES, **{"dtype": torch.float32, **options})


def packed_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, GgufLinear)}


def test_what_the_plan_counts_is_what_is_held(path):
    model = load(path, storage="gguf")
    tensors = {n: TensorInfo(e.shape, e.dtype) for n, e in find_source(path, "transformer").entries.items()}
    sizes = component("transformer", tensors, RULES)
    spared = ("time_embedding", "time_projection", "text_embedding")  # the model's code asks for their number type
    packed = [e for n, e in read_header(path).entries.items() if e.dtype == "Q8_0" and not n.startswith(spared)]
    assert sizes.stored == "gguf"
    assert len(packed_layers(model)) == len(packed)
    for storage in ("gguf", "fp32", "fp8"):
        state = load(path, storage=storage).state_dict()
        assert sizes.bytes("fp32", storage) == sum(tensor.nbytes for tensor in state.values())
    unpacked = sum(e.count for n, e in read_header(path).entries.items() if e.dtype == "Q8_0" and n.startswith(spared))
    assert sizes.copied("fp32", "gguf") == 4 * unpacked, "all else stays in the mapped file"
    (gguf,) = (one for one in layers(path) if one.storage == "gguf")
    (group,) = (one for one in gguf.groups if one.type == "gguf")
    assert (group.tensors, group.bytes) == (len(packed), sum(e.end - e.start for e in packed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_with_the_same_weights_as_unpacked(path, dtype):
    packed, unpacked = load(path, dtype=dtype), load(path, dtype=dtype, storage="bf16")
    assert not packed_layers(unpacked)
    for name, layer in packed_layers(packed).items():
        assert torch.equal(layer.dense(dtype), unpacked.get_submodule(name).weight)
    if dtype is torch.float32:
        assert torch.equal(models.run_wan(packed), models.run_wan(unpacked))


def test_streamed_it_stays_packed(path):
    expected, moved = models.run_wan(load(path)), {}
    for storage in ("gguf", "fp32"):
        model = load(path, storage=storage)
        with streamed(model, [*model.blocks, *model.vace_blocks], "cpu") as traffic:
            assert torch.equal(models.run_wan(model), expected)
        moved[storage] = traffic.bytes / traffic.copies
    assert moved["gguf"] < moved["fp32"] / 2  # in this toy much is norms and biases


def test_a_lora_goes_beside_the_blocks(path, tmp_path):
    packed, unpacked = load(path), load(path, storage="fp32")
    generator = torch.Generator().manual_seed(2)
    layer = "blocks.0.attn1.to_q"
    save_file(
        {
            f"transformer.{layer}.lora_A.weight": torch.randn(2, 128, generator=generator),
            f"transformer.{layer}.lora_B.weight": torch.randn(128, 2, generator=generator),
        },
        tmp_path / "lora.safetensors",
    )
    before, place = models.run_wan(packed), packed.get_submodule(layer).blocks.data_ptr()
    applied = apply_lora(packed, tmp_path / "lora.safetensors")
    apply_lora(unpacked, tmp_path / "lora.safetensors")
    assert torch.equal(models.run_wan(packed), models.run_wan(unpacked))
    assert not torch.equal(models.run_wan(packed), before)
    assert packed.get_submodule(layer).blocks.data_ptr() == place
    applied.remove()
    assert torch.equal(models.run_wan(packed), before)


def test_a_scale_that_is_no_number_is_named(path):
    entry = next(e for n, e in read_header(path).entries.items() if n == "blocks.0.ffn.0.weight")
    content = bytearray(path.read_bytes())
    content[entry.start + 34 : entry.start + 36] = b"\xff\x7f"
    path.write_bytes(content)
    with pytest.raises(PiyingError, match=r"blocks\.0\.ffn\.net\.0\.proj\.weight holds values that are no numbers"):
        load(path)


@pytest.mark.parametrize("kind", UNPACKERS)
def test_unpacking_takes_no_more_than_the_plan_says(kind):
    """In pieces: the whole weight, and beside it what a piece takes."""
    block, width = BY_NAME[kind], 4096
    rows = 2 * DEVICE_PIECE // width
    blocks = torch.empty(rows, width // block.weights * block.bytes, dtype=torch.uint8, device="meta")
    layer = GgufLinear(blocks, kind)
    inputs = torch.empty(1, width, dtype=torch.bfloat16, device="meta")
    taken = peak(layer, lambda: layer(inputs), inputs)
    assert 0.7 < taken / Gguf().unpacked_bytes(rows * width, "bf16") <= 1


@pytest.mark.parametrize("kind", UNPACKERS)
def test_a_layer_says_what_its_blocks_stand_for(kind):
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is optional")
    from gguf import GGMLQuantizationType

    block = BY_NAME[kind]
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (24, 512 // block.weights, block.bytes), dtype=torch.uint8, generator=generator)
    for start in HALVES[kind]:
        blocks[..., start : start + 2] = torch.tensor([0.01], dtype=torch.half).view(torch.uint8)
    layer = Gguf().layer({"blocks": blocks.flatten(1), "kind": torch.tensor(NUMBERS[kind])}, None, None)
    expected = torch.from_numpy(quants.dequantize(blocks.flatten(1).numpy(), GGMLQuantizationType[kind]))
    assert (layer.out_features, layer.in_features) == expected.shape == (24, 512)
    assert torch.equal(layer.dense(torch.float32), expected)


def large(kind):
    """Return a transformer of 14B whose matrices inside the blocks are of a type, as far as a plan looks at it."""
    hidden, inner = 5120, 13824
    tensors = {"patch_embedding.weight": TensorInfo((hidden, 16, 1, 2, 2), "BF16")}
    for block in range(40):
        for own in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"):
            tensors[f"blocks.{block}.{own}.weight"] = TensorInfo((hidden, hidden), kind)
        tensors[f"blocks.{block}.ffn.net.0.proj.weight"] = TensorInfo((inner, hidden), kind)
        tensors[f"blocks.{block}.ffn.net.2.weight"] = TensorInfo((hidden, inner), kind)
    return component("transformer", tensors, RULES)


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8.5), ("Q4_K", 4.5), ("Q2_K", 2.625)])
def test_the_plan_of_a_real_size(kind, bits):
    parts = dict(listed_components("wan2.1-vace-14b")) | {"transformer": large(kind)}
    made = plan(wan.phases(parts, VideoWork(832, 480, 81)), synthetic(16, 64), memory="gguf").phase("sample")
    weights = parts["transformer"].parameters
    assert made.storage == "gguf"
    assert made.weights == pytest.approx(weights * bits / 8, rel=0.01)
    assert made.copied == 0
    unpacked = parts["transformer"].unpacked("bf16", "gguf")
    assert unpacked == 2 * 5120 * 13824 + (Gguf().unpacked_bytes(1 << 22, "bf16") - (2 << 22))
    resident = plan(wan.phases(parts, VideoWork(832, 480, 81)), synthetic(16, 64)).phase("sample")
    assert (resident.storage, resident.placement) == ("gguf", "resident" if bits < 8 else resident.placement)


def test_asked_for_where_no_file_has_it():
    phases = wan.phases(listed_components("wan2.1-vace-14b"), VideoWork(832, 480, 81))
    made = plan(phases, synthetic(24, 64), memory="gguf")
    assert "memory is gguf: no part of this model can be held so, and it counts as auto." in made.reasons
    assert made.phases == plan(phases, synthetic(24, 64)).phases
    assert not any("stored as gguf" in way.choice for way in made.rejected)


def test_a_video_is_made_with_it(folders, host):  # noqa: F811 - fixtures
    expected, _ = sample(ModelHandle(WAN_VACE), REQUEST, host)
    (folders / NAME).unlink()
    write(folders / "diffusion_models" / "x.gguf")
    model_cache.evict_models()
    frames, record = sample(ModelHandle(WAN_VACE, memory="gguf"), REQUEST, host)
    assert record["storage"] == "gguf"
    assert packed_layers(model_cache._models["wan_vace/transformer"][1])
    assert 0 < (frames - expected).abs().max() <= 0.05  # 8 bits in place of 32
    model_cache.evict_models()


def test_the_command_says_so(path):
    command = [sys.executable, "-m", "runner", "--inspect", str(path), "--layers"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "GGUF Q8_0" in ran.stdout
    assert "transformer with weights in GGUF: " in ran.stdout
    assert "stored so in the file: " in ran.stdout
