"""`python -m runner --inspect FILE`: what a file of weights is, from its header alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 5120


def inspect(*arguments):
    command = [sys.executable, "-m", "runner", "--inspect", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def entry(start, count, dtype="BF16", size=2, shape=None):
    return {"dtype": dtype, "shape": shape or [count], "data_offsets": [start, start + count * size]}


def write(path, shapes, dtype="BF16", size=2, length=None, metadata=None):
    """Write a header and a hole in place of the weights."""
    table, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + count * size]}
        at += count * size
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at if length is None else length)
    return path


def linear(name, outputs, inputs):
    return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}


def wan(layers=40, vace=8):
    shapes = {"head.modulation": [1, 2, WIDTH], **linear("head.head", 64, WIDTH)}
    for name, channels in (("patch_embedding", 16), ("vace_patch_embedding", 96)):
        shapes |= {f"{name}.weight": [WIDTH, channels, 1, 2, 2], f"{name}.bias": [WIDTH]}
    for name, inputs in (("time_embedding", 256), ("text_embedding", 4096)):
        shapes |= linear(f"{name}.0", WIDTH, inputs) | linear(f"{name}.2", WIDTH, WIDTH)
    shapes |= linear("time_projection.1", 6 * WIDTH, WIDTH)
    for blocks, count in (("blocks", layers), ("vace_blocks", vace)):
        for index in range(count):
            block = f"{blocks}.{index}"
            for attention in ("self_attn", "cross_attn"):
                for name in ("q", "k", "v", "o"):
                    shapes |= linear(f"{block}.{attention}.{name}", WIDTH, WIDTH)
                shapes |= {f"{block}.{attention}.norm_{name}.weight": [WIDTH] for name in "qk"}
            shapes |= linear(f"{block}.ffn.0", 13824, WIDTH) | linear(f"{block}.ffn.2", WIDTH, 13824)
            shapes |= {f"{block}.norm3.{name}": [WIDTH] for name in ("weight", "bias")}
            shapes[f"{block}.modulation"] = [1, 6, WIDTH]
            if blocks == "vace_blocks":
                shapes |= linear(f"{block}.after_proj", WIDTH, WIDTH)
                shapes |= {} if index else linear(f"{block}.before_proj", WIDTH, WIDTH)
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def t5():
    block = "encoder.block.0.layer"
    shapes = {"shared.weight": [10, 4], "encoder.final_layer_norm.weight": [4]}
    shapes |= {f"{block}.0.SelfAttention.{name}.weight": [64, 4] for name in "qkv"}
    shapes |= {f"{block}.0.SelfAttention.o.weight": [4, 64], f"{block}.0.layer_norm.weight": [4]}
    shapes |= {f"{block}.0.SelfAttention.relative_attention_bias.weight": [32, 1], f"{block}.1.layer_norm.weight": [4]}
    shapes |= {f"{block}.1.DenseReluDense.{name}.weight": [8, 4] for name in ("wi_0", "wi_1")}
    return shapes | {f"{block}.1.DenseReluDense.wo.weight": [4, 8]}


def test_a_file_of_69_gb_in_well_under_a_second(tmp_path, slowness):
    path = write(tmp_path / "no name at all", wan(), "F32", 4)
    assert path.stat().st_size > 69e9
    before = os.times()
    ran = inspect(path)
    used = sum(os.times()[2:4]) - sum(before[2:4])
    assert ran.returncode == 0, ran.stderr
    assert "is       a Wan2.1-VACE transformer (17.34B, original names)" in ran.stdout
    assert "safetensors, 69.35 GB, 1331 tensors" in ran.stdout
    assert "fp32 (fp32 69.35 GB)" in ran.stdout
    assert "read     yes" in ran.stdout
    assert "needs    the UMT5-XXL text encoder, the Wan2.1 VAE" in ran.stdout
    assert used < 0.6 * slowness()


def test_json(tmp_path):
    path = write(tmp_path / "model.safetensors", wan(2, 1))
    found = json.loads(inspect(path, "--json").stdout)
    assert found["what"] == "a Wan2.1-VACE transformer"
    assert (found["format"], found["precision"], found["readable"]) == ("safetensors", "bf16", True)
    assert found["parts"][0]["family"] == "wan_vace"
    assert found["parts"][0]["kind"] == "transformer"
    assert found["bytes"] == path.stat().st_size
    assert found["types"] == {"bf16": 2 * found["parts"][0]["parameters"]}


def test_layers(tmp_path):
    """Of 48 blocks, each with 8 square layers and two of 13824 × 5120; a scale of four bytes a row."""
    path = write(tmp_path / "model.safetensors", wan())
    ran = inspect(path, "--layers")
    assert ran.returncode == 0, ran.stderr
    told = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert "Wan2.1-VACE transformer with weights in INT8: 17.88 GB" in told
    told = told[told.index("Wan2.1-VACE transformer with weights in FP8: 17.88 GB") :]
    assert told[1].startswith("fp8 16.87 GB 480 tensors Linear layers inside the blocks: blocks.*.attn1.to_q, ")
    assert told[3].startswith("bf16 0.41 GB 12 tensors outside the blocks: proj_out, proj_out.bias, ")
    assert told[4].startswith("fp32 0.12 GB 149 tensors held in fp32 by its class: scale_shift_table, ")
    found, in_int8 = json.loads(inspect(path, "--layers", "--json").stdout)["layers"]
    assert in_int8["storage"] == "int8"
    cast, kept, outside, in_fp32, also_kept, tables = found["groups"]
    assert (found["kind"], found["storage"]) == ("transformer", "fp8")
    weights, rows = 48 * (8 * WIDTH**2 + 2 * 13824 * WIDTH), 48 * (9 * WIDTH + 13824)
    assert (cast["type"], cast["bytes"]) == ("fp8", weights + 4 * rows)
    biases = 1 + 1 + 2 + 6  # in widths
    inputs = 16 * 4 + 96 * 4 + 4096 + 64 + WIDTH + 6 * WIDTH
    assert (outside["type"], outside["bytes"]) == ("bf16", 2 * (WIDTH * (inputs + biases) + 64))
    # The time embedding with its two biases, and tables: of two rows at the end, of six and a norm of two in a block.
    assert (in_fp32["type"], in_fp32["bytes"]) == ("fp32", 4 * WIDTH * (256 + WIDTH + 2 + 2 + 48 * (6 + 2)))
    assert [group["tensors"] for group in (kept, also_kept)] == [8, 1]
    assert tables["why"] == "norms, biases and tables"
    assert len(cast["names"]) == 20
    assert "layers" not in json.loads(inspect(path, "--json").stdout)


def test_layers_of_what_is_kept_and_stored(tmp_path):
    shapes = wan(2, 1)
    found = json.loads(inspect(write(tmp_path / "a", shapes), "--layers", "--json").stdout)["layers"][0]
    kept = [group for group in found["groups"] if group["why"].startswith("kept: ")]
    assert [(one["type"], one["names"]) for one in kept] == [
        ("bf16", ["vace_blocks.*.proj_out"]),
        ("bf16", ["vace_blocks.*.proj_in"]),
    ]
    ran = inspect(write(tmp_path / "b", shapes, "F8_E4M3", 1), "--layers", "--json")
    found = json.loads(ran.stdout)["layers"][0]
    whys = {"stored so in the file", "outside the blocks", "held in fp32 by its class", "norms, biases and tables"}
    assert {group["why"] for group in found["groups"]} == whys
    assert "vace_blocks.*.proj_in" in found["groups"][0]["names"]


def test_layers_of_what_is_not_known(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a.weight": [4, 4]})
    plain, ran = inspect(path), inspect(path, "--layers")
    assert "no model known here" in ran.stdout
    assert (ran.stdout, ran.returncode) == (plain.stdout, 0)


@pytest.mark.parametrize("workflow", [(), ("x.json",)])
def test_layers_of_no_file(workflow):
    ran = subprocess.run(
        [sys.executable, "-m", "runner", "--layers", *workflow], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert "--layers goes with --inspect FILE" in ran.stderr


@pytest.mark.parametrize("option", [(), ("--layers",)])
def test_it_needs_no_torch(tmp_path, option):
    path = write(tmp_path / "model.safetensors", wan(2, 1))
    code = (
        "import sys; sys.path.insert(0, 'tests'); import conftest\n"
        "from piying.runner.cli import main\n"
        f"main(['--inspect', {str(path)!r}, *{option!r}])\n"
        "print(sorted({'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


OTHERS = {
    "a Wan2.1 VACE module": {n: s for n, s in wan(0, 1).items() if "vace" in n},
    "a Wan text-to-video transformer": {n: s for n, s in wan(1, 0).items() if "vace" not in n},
    "a T5 text encoder": t5(),
    "a CLIP-L text encoder": {"text_model.embeddings.token_embedding.weight": [10, 768]},
    "a Stable Diffusion checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": [4, 4]},
    "a LoRA": {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": [4, 8],
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": [8, 4],
    },
    "no model known here": {"a": [1]},
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_a_file_is(tmp_path, what):
    from piying.core.checkpoints.inspect import inspect as ask

    found = ask(write(tmp_path / "x.bin", OTHERS[what]))
    assert found.what == what
    assert found.readable == (what.startswith(("a Wan", "a T5", "a LoRA")))
    assert found.readable or what in found.reason


def test_what_cannot_be_read_is_named(tmp_path):
    text = {"_quantization_metadata": json.dumps({"layers": json.dumps({"blocks.0": "svdquant_w4a4"})})}
    ran = inspect(write(tmp_path / "x.safetensors", wan(1, 1), metadata=text))
    assert "no: stored as svdquant_w4a4, which this pack cannot read. Readable: bf16" in ran.stdout
    assert ran.returncode == 0


def test_a_damaged_file_or_none(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff" * 40)
    reasons = {"x": "damaged", "y": "there is no such file", ".": "there is no safetensors file in this folder"}
    for path, reason in ((tmp_path / name, reason) for name, reason in reasons.items()):
        ran = inspect(path)
        assert ran.returncode == 2
        assert reason in ran.stderr
        assert "Traceback" not in ran.stderr


def test_the_folder_of_a_whole_model_is_told_by_its_components(tmp_path):
    folder = ROOT / "builtin_models" / "wan_vace"
    ran = inspect(folder, "--json")
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [Path(each["file"]).name for each in found] == ["text_encoder", "transformer", "vae"], ran.stderr
    assert all(each["readable"] for each in found)
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanVACEPipeline", "vae": ["diffusers", "x"]}')
    ran = inspect(tmp_path)
    assert ran.returncode == 2
    assert "is the folder of a whole model, and none of its components is in it" in ran.stderr


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("chat_template.jinja", "{% if %}", "chat template is broken"),
        ("tokenizer.json", "{}", "holds no tokenizer"),
    ],
)
def test_a_whole_model_s_folder_is_judged_as_the_lists_do(tmp_path, file, text, said):
    folder = shutil.copytree(ROOT / "builtin_models" / "prompt", tmp_path / "x")
    assert "cannot be used" not in inspect(folder).stdout
    (folder / file).write_text(text, encoding="utf-8")
    assert re.search(rf"^  model    cannot be used: .*{said}", inspect(folder).stdout, re.MULTILINE)
    assert said in json.loads(inspect(folder, "--json").stdout)["unusable"]
