"""`python -m runner --quantize FILE --to FORMAT`: the written files, what they lose, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.checkpoints.quantized_file import TARGETS, quantize_file
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.files.gguf_packing import PACKERS, packed
from piying.core.files.open import open_tensors, read_header
from piying.core.host.current import set_host
from piying.core.media.video import read_frames
from piying.core.quantization.registry import FORMATS
from piying.runner.cli import FORMATS as OFFERED
from piying.runner.session import run as run_workflow
from piying.training.reading import psnr, read_video
from safetensors import safe_open
from safetensors.torch import load_file

from ..core.formats import models, names, writers
from ..core.test_load_memory import write_model

# The root mean square of what rounding loses, relative to the weights: see `WeightFormat.errors`; Q8_0 has a scale for
# each 32 weights, whose largest of Gaussian ones is about 2.1 deviations: 2.1 / 127 / √12.
ERRORS = {"fp8": 0.0265, "int8": 0.0081, "q8_0": 0.0055}
ERRORS |= {"int8_convrot": 0.0081, "q4_0": 0.086, "mxfp8": 0.0266, "nvfp4": 0.0951}
TYPES = {"fp8": "F8_E4M3", "int8": "I8", "q8_0": "Q8_0", "int8_convrot": "I8", "q4_0": "Q4_0"}
TYPES |= {"mxfp8": "F8_E4M3", "nvfp4": "U8"}
GGUF = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0")
PROMPT = "a red circle moves right on a blue background"


def ending(to):
    return "gguf" if to in GGUF else "safetensors"


def test_all_targets_are_offered():
    assert tuple(TARGETS) == OFFERED


# A model, from the command to its pictures


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What the built-in model makes of a prompt, as its weights are."""
    return made(tmp_path_factory.mktemp("plain"), None)


def made(folder, out):
    """Return the frames that the built-in model makes, its transformer in a file of that name."""
    model = shutil.copytree(BUILT_IN_ROOT / "wan_vace", folder / "models" / "diffusers" / "toy")
    if out is not None:
        original = model / "transformer" / "diffusion_pytorch_model.safetensors"
        original.unlink()
        shutil.copy(out, original.with_suffix(out.suffix))
    sampled = {"model": ["1", 0], "prompt": PROMPT, "negative_prompt": "", "width": 64, "height": 64}
    sampled |= {"num_frames": 5, "steps": 4, "cfg": 3.0, "shift": 16.0, "seed": 3}
    nodes = {
        "PiyingLoadWanVACE": {"model": "diffusers/toy", "precision": "fp32"},
        "PiyingVACESample": sampled,
        "CreateVideo": {"images": ["2", 0], "fps": 16},
        "SaveVideo": {"video": ["3", 0], "filename_prefix": "x", "format": "auto", "codec": "auto"},
    }
    graph = {str(place): {"class_type": one, "inputs": own} for place, (one, own) in enumerate(nodes.items(), 1)}
    finished = run_workflow(graph, models=[folder / "models"], output=folder / "output", device="cpu")
    model_cache.evict_models()
    set_host(None)
    (video,) = finished.files
    return torch.stack([torch.from_numpy(frame) for frame in read_frames(video)]).float().numpy() / 255


def run(*arguments):
    command = [sys.executable, "-m", "runner", *map(str, arguments)]
    return subprocess.run(command, cwd=BUILT_IN_ROOT.parent, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("to", ["fp8", "q4_0", "nvfp4"])
def test_a_quantized_model_makes_the_same_video(tmp_path, to, plain):
    source = BUILT_IN_ROOT / "wan_vace" / "transformer" / "diffusion_pytorch_model.safetensors"
    out = tmp_path / f"model.{ending(to)}"
    (tmp_path / "config.json").write_text((source.parent / "config.json").read_text())
    ran = run("--quantize", source, "--to", to, "--out", out)
    assert ran.returncode == 0, ran.stderr
    errors = re.findall(r"^ +(\d+\.\d+)%  (\S+)$", ran.stdout, re.MULTILINE)
    assert len(errors) == 60
    assert all(float(error) / 100 < 1.6 * ERRORS[to] for error, _ in errors)
    assert f"quantized 60 layers to {to}, relative error " in ran.stdout
    assert "needs" not in ran.stdout.rpartition("size")[2]
    assert inspect(out).reason == ""
    frames = made(tmp_path, out)
    found, expected = read_video(frames), read_video(plain)
    assert (found.colour, found.shape, found.background) == (expected.colour, expected.shape, expected.background)
    assert psnr(frames, plain) > 25


def test_json_and_quiet(tmp_path):
    source = writers.save(transformer(), tmp_path / "wan.safetensors")
    found = json.loads(run("--quantize", source, "--to", "fp8", "--json").stdout)
    out = tmp_path / "wan-fp8.safetensors"
    assert (found["out"], found["to"], found["needs"]) == (out.as_posix(), "fp8", "")
    assert (found["bytes_before"], found["bytes"]) == (source.stat().st_size, out.stat().st_size)
    assert {tuple(layer) for layer in found["layers"]} == {("name", "error")}
    kept = {name for group in found["kept"].values() for name in group}
    assert kept | {layer["name"] for layer in found["layers"]} == transformer().keys()
    assert (
        run("--quantize", source, "--to", "int8", "--quiet").stdout == f"{tmp_path.as_posix()}/wan-int8.safetensors\n"
    )


# Files of each kind


def transformer():
    return names.wan_transformer(models.tensors(models.wan_transformer()))


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def encoder():
    state = models.tensors(models.umt5(d_model=64, d_ff=96))
    return {name: tensor for name, tensor in state.items() if "embed_tokens" not in name}


KINDS = {
    "wan": ("transformer", transformer),
    "wan in a checkpoint": ("transformer", lambda: prefixed("model.diffusion_model.", transformer())),
    "joined projections": (
        "transformer",
        lambda: names.z_image_transformer(models.tensors(models.z_image_transformer())),
    ),
    "text encoder": ("text_encoder", encoder),
    "language model": ("prompt_model", lambda: models.tensors(models.qwen3())),
}


@pytest.mark.parametrize("to", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_is_what_was_there(tmp_path, kind, to):
    component, tensors = KINDS[kind][0], KINDS[kind][1]()
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    source = writers.save(tensors, tmp_path / "model.safetensors", {"made by": "a test"})
    told = quantize_file(source, to)
    out = tmp_path / f"model-{to}.{ending(to)}"
    assert inspect(out).reason == ""
    assert inspect(out).what == inspect(source).what
    quantized, stored = {layer.name: layer.error for layer in told.layers}, open_tensors(out)
    for name in tensors.keys() - quantized.keys():
        assert torch.equal(stored[name].read(), tensors[name])
    plain, read = (
        dict(load_component(component, path, dtype="fp32", storage="fp32").state_dict()) for path in (source, out)
    )
    errors = [(((read[name] - plain[name]).norm() / plain[name].norm()).item()) for name in plain]
    changed = [error for error in errors if error]
    assert len(changed) >= len(quantized) > 5
    # The largest weight of a short row is smaller, and so are the steps of whole numbers.
    assert 0.5 * ERRORS[to] < sum(quantized.values()) / len(quantized) < 1.1 * ERRORS[to]
    assert max(changed) == pytest.approx(max(quantized.values()), rel=0.1)
    types = {entry.dtype for name, entry in read_header(out).entries.items() if name in quantized}
    assert types == {TYPES[to]}
    if to not in GGUF:
        with safe_open(out, "pt") as file:
            assert file.metadata() == {"made by": "a test"}
            assert set(file.keys()) == set(stored)


def test_shards_become_one_file(tmp_path):
    tensors = transformer()
    (tmp_path / "wan").mkdir()
    for number in (1, 2):
        part = dict(list(tensors.items())[number - 1 :: 2])
        writers.save(part, tmp_path / "wan" / f"model-{number:05}-of-00002.safetensors")
    told = quantize_file(tmp_path / "wan", "fp8")
    assert told.out == (tmp_path / "wan-fp8.safetensors").as_posix()
    whole = quantize_file(writers.save(tensors, tmp_path / "one.safetensors"), "fp8")
    assert sorted(told.layers) == sorted(whole.layers)


def test_comfyui_finds_what_it_looks_for(tmp_path):
    source = writers.save(prefixed("model.diffusion_model.", transformer()), tmp_path / "x.safetensors")
    layer = "model.diffusion_model.blocks.0.self_attn.q"
    quantize_file(source, "fp8")
    found = load_file(tmp_path / "x-fp8.safetensors")
    assert found[f"{layer}.weight_scale"] == found[f"{layer}.scale_weight"] > 0
    assert found[f"{layer}.weight_scale"].shape == ()
    assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
    assert found["model.diffusion_model.scaled_fp8"].shape == (0,)
    quantize_file(source, "int8")
    found = load_file(tmp_path / "x-int8.safetensors")
    assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist())) == {"format": "int8_tensorwise"}
    assert found[f"{layer}.weight_scale"].shape == (128, 1)
    assert not [name for name in found if "scaled_fp8" in name]


# The same numbers as the formats' own libraries


def weights():
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(300, 1024, generator=generator)
    found[3], found[4] = 0, found[4] * 1e-8
    found[5] = torch.arange(1024) / 2
    found[6] = torch.tensor([127.0, *[0.5, 1.5, 2.5, -0.5, -1.5, -2.5] * 5, 3.5]).repeat(32)  # halves, after scaling
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_those_of_gguf(dtype):
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is optional")
    from gguf import GGMLQuantizationType

    weight = weights().to(dtype)
    for name in PACKERS:
        if name.endswith("_K"):  # which the package reads and does not write
            continue
        expected = quants.quantize(weight.float().numpy(), GGMLQuantizationType[name])
        assert (packed(weight, name).numpy() == expected).all(), name


@pytest.mark.parametrize("name", ["Q6_K", "Q5_K", "Q4_K"])
def test_blocks_of_256_lose_what_their_type_does(name):
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is optional")
    from gguf import GGMLQuantizationType

    plain = torch.randn(40, 1536, generator=torch.Generator().manual_seed(4))
    odd = torch.stack([plain[0] * 1e-20, plain[1] * 0, plain[2].abs() + 3, -plain[3].abs(), plain[4] * 0 + 7])
    odd[0, 256:512] = plain[5, 256:512]
    for weight, most in ((plain, 1.06 * FORMATS["gguf"].errors[name]), (odd, FORMATS["gguf"].errors[name])):
        blocks = packed(weight, name).numpy()
        found = torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType[name]))
        assert torch.isfinite(found).all()
        assert (found - weight).norm() <= most * weight.norm()
    lost = (found - odd).norm(dim=1)
    assert lost[1] == 0 and lost[4] / odd[4].norm() < 1e-3, "a row of one number is kept"


def test_a_model_in_blocks_of_256_is_what_its_numbers_stand_for(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is optional")
    tensors = names.wan_transformer(
        models.tensors(models.wan_transformer(num_attention_heads=2, attention_head_dim=128))
    )
    found = quantize_file(writers.save(tensors, tmp_path / "x.safetensors"), "q4_k")
    assert found.layers and all(0.05 < layer.error < 0.09 for layer in found.layers)
    reader = gguf.GGUFReader(tmp_path / "x-q4_k.gguf")
    assert reader.get_field("general.file_type").contents() == 14
    own = open_tensors(tmp_path / "x-q4_k.gguf")
    for tensor in reader.tensors:
        expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(own[tensor.name].read().float().flatten(), expected.flatten())
    assert {"Q4_K"} < {tensor.tensor_type.name for tensor in reader.tensors}
    assert inspect(tmp_path / "x-q4_k.gguf").precision == "GGUF Q4_K"


def test_halves_are_rounded_away_from_zero():
    row = torch.tensor([[127.0, 0.5, 1.5, -0.5, -2.5, 2.4, *[0.0] * 26]])
    assert packed(row, "Q8_0")[0, 2:8].view(torch.int8).tolist() == [127, 1, 2, -1, -3, 2]


def test_a_gguf_file_is_what_its_package_reads(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is optional")
    tensors = transformer()
    quantize_file(writers.save(tensors, tmp_path / "x.safetensors"), "q8_0")
    reader = gguf.GGUFReader(tmp_path / "x-q8_0.gguf")
    assert reader.get_field("general.architecture").contents() == "wan"
    assert reader.get_field("comfy.gguf.orig_shape.patch_embedding.weight").contents() == [128, 16, 1, 2, 2]
    assert {tensor.name for tensor in reader.tensors} == tensors.keys()
    for tensor in reader.tensors:
        found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        weight = tensors[tensor.name]
        assert (found.reshape(weight.shape) - weight).norm() <= 0.012 * weight.norm()


def test_values_and_scales_are_those_of_comfy_kitchen():
    eager = pytest.importorskip("comfy_kitchen.backends.eager.quantization", reason="comfy-kitchen is not installed")
    weight = weights()
    packed = FORMATS["int8"].for_file(weight, "int8")
    values, scale = eager.quantize_int8_rowwise(weight)[:2]
    assert torch.equal(packed["values"][4:], values[4:])
    assert torch.equal(packed["scale"][4:], scale[4:])
    packed = FORMATS["fp8"].for_file(weight, "fp8")
    scale = FORMATS["fp8"].file_tensors(packed)["weight_scale"]
    values = eager.quantize_per_tensor_fp8(weight, scale, torch.float8_e4m3fn)
    assert torch.equal(packed["values"].view(torch.uint8), values.view(torch.uint8))
    made = FORMATS["nvfp4"].file_tensors(FORMATS["nvfp4"].for_file(weight, "nvfp4"))
    values, scale = eager.quantize_nvfp4(weight, made["weight_scale_2"])
    assert torch.equal(made["weight"], values)
    assert torch.equal(made["weight_scale"].view(torch.uint8), scale.view(torch.uint8))
    made = FORMATS["mxfp8"].file_tensors(FORMATS["mxfp8"].for_file(weight, "mxfp8"))
    values, scale = eager.quantize_mxfp8(weight)
    assert torch.equal(made["weight"].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(made["weight_scale"], scale.view(torch.uint8))
    made = FORMATS["int8"].for_file(weight, "int8_convrot")
    values, scale = eager.quantize_int8_convrot_weight(weight, 256)[:2]
    assert (made["values"][5:].int() - values[5:].int()).abs().max() <= 1, "a product may be rounded another way"
    assert torch.allclose(made["scale"][5:], scale[5:].view(-1, 1), rtol=1e-6)


# Refusals, interruptions, memory


def refused(tmp_path, tensors, to, reason):
    source = writers.save(tensors, tmp_path / "x.safetensors")
    with pytest.raises(PiyingError, match=f"x.safetensors: {reason}"):
        quantize_file(source, to)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("to", ERRORS)
def test_nothing_is_written_over_or_quantized_twice(tmp_path, to):
    source = writers.save(transformer(), tmp_path / "x.safetensors")
    quantize_file(source, to)
    out = tmp_path / f"x-{to}.{ending(to)}"
    written = out.read_bytes()
    with pytest.raises(PiyingError, match=r"is there already\. Choose another name with --out, or delete it"):
        quantize_file(source, to)
    assert out.read_bytes() == written
    for other in TARGETS:
        with pytest.raises(
            PiyingError, match=r"is stored as .* already, and would lose more\. Choose the file in bf16"
        ):
            quantize_file(out, other, tmp_path / f"again.{ending(other)}")


def test_what_cannot_be_quantized_is_told_in_a_sentence(tmp_path):
    vae = names.wan_vae(models.tensors(models.wan_vae()))
    refused(tmp_path, vae, "fp8", "has no layers to quantize .has no blocks to cast")
    lora = {f"blocks.0.self_attn.q.lora_{part}.weight": torch.ones(128, 128) for part in "AB"}
    refused(tmp_path, lora, "int8", "is a LoRA, which is added to weights as it is")
    refused(tmp_path, {"a.weight": torch.ones(4, 4)}, "fp8", "this is no model known here")
    part = {name: tensor for name, tensor in transformer().items() if "blocks.1.ffn.0" not in name}
    refused(tmp_path, part, "fp8", ".*tensors are not in it")
    broken = transformer()
    broken["blocks.1.ffn.0.weight"][3, 4] = torch.nan
    refused(tmp_path, broken, "q8_0", "blocks.1.ffn.0.weight holds values that are no numbers")
    words = encoder() | {"spiece_model": torch.zeros(9, dtype=torch.uint8)}
    refused(tmp_path, words, "q8_0", "spiece_model is stored as U8, which GGUF files have no room for")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--to", "fp8", "--out", "x.gguf"], "a file in fp8 ends in .safetensors"),
        (["--to", "nf4"], "invalid choice: 'nf4' (choose from "),
        ([], "--quantize FILE goes with --to fp8|int8|int8_convrot|q8_0|q6_k|q5_k|q4_k|q4_0|mxfp8|nvfp4"),
    ],
)
def test_options(tmp_path, arguments, reason):
    ran = run("--quantize", writers.save(transformer(), tmp_path / "x.safetensors"), *arguments)
    assert ran.returncode == 2
    assert reason in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_folder_that_is_not_there(tmp_path):
    source = writers.save(transformer(), tmp_path / "x.safetensors")
    with pytest.raises(PiyingError, match=r"Cannot write .*no/x\.safetensors: "):
        quantize_file(source, "int8", tmp_path / "no" / "x.safetensors")


def test_an_interrupt_leaves_nothing(tmp_path):
    write_model(tmp_path / "model", 1024, 4)
    command = [sys.executable, "-m", "runner", "--quantize", tmp_path / "model", "--to", "int8"]
    process = subprocess.Popen(command, cwd=BUILT_IN_ROOT.parent, stderr=subprocess.PIPE, stdout=-3, text=True)
    while not list(tmp_path.glob(".*.unfinished")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "no unfinished file is left" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


SCRIPT = r"""
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
from piying.core.checkpoints.quantized_file import quantize_file
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
small, large = map(Path, sys.argv[2:])
for to in ("fp8", "int8", "int8_convrot", "q8_0", "q4_0", "mxfp8", "nvfp4"):
    quantize_file(small, to)
    before = peak()
    quantize_file(large, to)
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks of memory are read from Linux's /proc")
def test_memory_holds_one_tensor(tmp_path):
    size = write_model(tmp_path / "large", 512, 2)
    largest = 512 * 2048 * 2
    assert size > 9 * largest
    small = writers.save(transformer(), tmp_path / "small.safetensors")
    command = [sys.executable, "-c", SCRIPT, Path(__file__).resolve().parents[1], small, tmp_path / "large"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    # Beside the tensors, 8 MiB for what Python, libraries and the allocator take, which differs from run to run by 3.
    assert max(map(int, ran.stdout.split())) < 4 * largest + (8 << 20)
