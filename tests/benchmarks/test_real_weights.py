"""Files of random weights are read as the published ones are; with `-m realsize` at their own sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from piying.core.catalog.component_sizes import found_components
from piying.core.catalog.selection import ModelHandle, choose_model
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.families.registry import family_named
from piying.core.host.headless import HeadlessHost

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


def test_a_folder_with_a_transformer_alone_is_offered_with_the_other_files(real, tmp_path, monkeypatch):
    """As `real_sizes.py --runs vace-1.3b-folder` writes them."""
    import transformers
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    sizes = {"num_attention_heads": 1, "ffn_dim": 64, "num_layers": 2, "vace_layers": [0], "text_dim": 32}
    encoder = {"vocab_size": 99, "d_model": 32, "d_kv": 64, "num_heads": 1, "d_ff": 64, "num_layers": 2}
    t5 = transformers.UMT5Config(**encoder, feed_forward_proj="gated-gelu")
    makers = {
        "wan-vace-1.3b": lambda: WanVACETransformer3DModel(**sizes),
        "umt5-xxl": lambda: transformers.UMT5EncoderModel(t5),
        "wan-vae": lambda: AutoencoderKLWan(base_dim=4, z_dim=16),
    }
    monkeypatch.setattr(real, "random_model", lambda name: makers[name]())
    for name in ("vace-1.3b-bf16", "umt5-xxl-fp8-scaled", "wan-vae"):
        real.write(real.FILES[name], tmp_path)
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    found = choose_model(ModelHandle(family_named("wan_vace")), host)
    assert found.name == "diffusers/Wan2.1-VACE-1.3B-diffusers"
    assert found.place("tokenizer") == found.place("text_encoder")
    assert found.place("text_encoder")[0].parent.name == "text_encoders"
    assert found_components(found, family_named("wan_vace").rules_of(found)).keys() == {
        "transformer",
        "text_encoder",
        "vae",
    }


@pytest.mark.realsize
@pytest.mark.parametrize("run", ["vace-1.3b", "vace-1.3b-gguf", "hunyuan-dit", "qwen3-0.6b", "qwen3-4b", "vace-14b"])
def test_a_run_at_the_published_size_takes_the_memory_that_is_planned(run, tmp_path):
    written = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / "real_sizes.py"), "--runs", run, "--scratch", str(tmp_path)]
    subprocess.run([*command, "--json", str(written)], check=True)
    for phase in json.loads(written.read_text())["runs"][run]["phases"]:
        # The plan allows 2 GiB for the process, which takes less; nothing else may be missing from it.
        assert phase["own"] < phase["plan_own"] * 1.05, phase
