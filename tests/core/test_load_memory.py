"""Loading and casting a file takes no more memory than the weights it ends as, and a little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from safetensors.torch import save_file

if not Path("/proc/self/status").is_file():
    pytest.skip("peaks of memory are read from Linux's /proc", allow_module_level=True)

SCRIPT = r"""
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest, torch
from diffusers import WanVACETransformer3DModel
from piying.core.checkpoints import load_component
from piying.core.quantization.fp8_linear import Fp8Linear, quantize
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
storage = sys.argv[3] if sys.argv[3] != "None" else None
quantize(torch.ones(16, 16))
before = peak()
model = load_component("transformer", sys.argv[2], dtype=sys.argv[4], storage=storage)
after = peak()
held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
print(after - before, held)
"""


def write_model(folder, width, layers):
    """Write a Wan VACE transformer of bf16 weights; return the bytes of its file."""
    from accelerate import init_empty_weights
    from diffusers import WanVACETransformer3DModel

    config = json.loads((BUILT_IN_ROOT / "wan_vace" / "transformer" / "config.json").read_text())
    config |= {"num_attention_heads": width // 128, "attention_head_dim": 128, "ffn_dim": 4 * width}
    config |= {"num_layers": layers, "vace_layers": [0]}
    with init_empty_weights():
        model = WanVACETransformer3DModel.from_config(config)
    tensors = {
        name: torch.full(parameter.shape, 0.01, dtype=torch.bfloat16) for name, parameter in model.named_parameters()
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(tensors, path)
    return path.stat().st_size


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "transformer"
    return folder, write_model(folder, 1024, 6)


def peak(folder, storage, dtype):
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", SCRIPT, tests, str(folder), str(storage), dtype]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(map(int, ran.stdout.split()))


@pytest.mark.parametrize(("storage", "dtype"), [("fp8", "bf16"), ("fp16", "fp16")])
def test_the_peak_is_the_weights_it_ends_as(model, storage, dtype):
    folder, size = model
    taken, held = peak(folder, storage, dtype)
    assert size > 200e6
    assert held < size * (0.65 if storage == "fp8" else 1.03)
    assert taken < held + 100e6
