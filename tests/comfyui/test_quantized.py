"""Files written by `--quantize`, read by ComfyUI's own loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from piying.core.checkpoints.quantized_file import quantize_file

pytestmark = pytest.mark.comfyui

FOLDER = Path(__file__).parent


def with_comfyui(script, *arguments):
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI checkout")
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), FOLDER / script, os.environ["COMFYUI_PATH"]]
    ran = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def test_fp8_computes_what_the_original_does(tmp_path):
    with_comfyui("toy_core_models.py", tmp_path)
    original = tmp_path / "diffusion_models" / "toy_vace.safetensors"
    quantized = quantize_file(original, "fp8").out
    found = json.loads(with_comfyui("read_quantized.py", original, quantized).splitlines()[-1])
    assert found["held"] == "torch.float8_e4m3fn"
    # Without its scales it is off by more than its norm; 0.3.64 rounds layers outside the blocks too.
    assert 0 < found["off"] < 0.03
