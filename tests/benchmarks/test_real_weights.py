"""Files of random weights are read as the published ones are; with `-m realsize` at their own sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import inspect

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = [
    *(("safetensors", kind) for kind in ("fp16", "fp8", "fp8 scaled")),
    ("folder", "bf16"),
    *(("pth", kind) for kind in ("fp32", "bf16")),
    *(("gguf", kind) for kind in ("Q8_0", "Q4_K")),
]


@pytest.fixture(scope="module")
def real(module):
    return module("real_weights")


def small(real, monkeypatch):
    """Let a small transformer of the published architecture stand in for the published one."""
    from diffusers import WanVACETransformer3DModel

    sizes = {"num_attention_heads": 2, "ffn_dim": 512, "num_layers": 2, "vace_layers": [0], "text_dim": 256}
    monkeypatch.setattr(real, "random_model", lambda _name: WanVACETransformer3DModel(**sizes))


@pytest.mark.parametrize(("ending", "kind"), FILES)
def test_a_file_is_read_and_its_numbers_are_as_large_as_they_should_be(real, kind, ending, tmp_path, monkeypatch):
    small(real, monkeypatch)
    names = "diffusers" if ending == "folder" else "original"
    path = "transformer" if ending == "folder" else f"model.{ending}"
    size = real.write(real.RealFile(path, "wan-vace-1.3b", names, kind), tmp_path)
    assert size == sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    model = load_component("transformer", tmp_path / path, dtype="fp32", storage="fp32")
    for name, weight in model.named_parameters():
        mean, std = real.deviation(name, tuple(weight.shape))
        if weight.numel() > 20_000:
            assert weight.std().item() == pytest.approx(std, rel=0.06), name
            assert abs(weight.mean().item() - mean) < std / 10, name
    if ending != "folder":
        assert inspect(tmp_path / path).readable


def test_shards_make_one_model(real, tmp_path, monkeypatch):
    small(real, monkeypatch)
    monkeypatch.setattr(real, "SHARD", 2_000_000)
    real.write(real.RealFile("transformer", "wan-vace-1.3b", "diffusers", "fp16"), tmp_path)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    load_component("transformer", tmp_path, dtype="fp16")


@pytest.mark.realsize
@pytest.mark.parametrize("run", ["vace-1.3b", "vace-1.3b-gguf", "hunyuan-dit", "qwen3-0.6b", "qwen3-4b", "vace-14b"])
def test_a_run_at_the_published_size_takes_the_memory_that_is_planned(run, tmp_path):
    written = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / "real_sizes.py"), "--runs", run, "--scratch", str(tmp_path)]
    subprocess.run([*command, "--json", str(written)], check=True)
    for phase in json.loads(written.read_text())["runs"][run]["phases"]:
        # The plan allows 2 GiB for the process, which takes less; nothing else may be missing from it.
        assert phase["own"] < phase["plan_own"] * 1.05, phase
