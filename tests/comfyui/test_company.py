"""Beside packs that take names and settings for themselves, and without a package that is needed."""

from __future__ import annotations

import pytest
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.headless import sampler_id, without_previews
from piying.tests.comfyui.server import running_server

pytestmark = pytest.mark.comfyui

# What packs do: put their folder first on the path, take common names, set up logging, change torch's defaults.
RUDE = """
import logging, os, sys
sys.path.insert(0, os.path.dirname(__file__))
import core, runner, training
logging.basicConfig(level=logging.ERROR, force=True)
import torch
torch.set_grad_enabled(False)
NODE_CLASS_MAPPINGS = {}
"""


def small(name):
    prompt = without_previews(api_form(WORKFLOWS / f"{name}.json"))
    prompt[sampler_id(prompt)]["inputs"].update(steps=2)
    return prompt


def test_beside_a_pack_that_takes_our_names(tmp_path):
    rude = tmp_path / "custom_nodes" / "A first pack"
    rude.mkdir(parents=True)
    (rude / "__init__.py").write_text(RUDE, encoding="utf-8")
    for name in ("core", "runner", "training"):
        (rude / f"{name}.py").write_text("", encoding="utf-8")
    with running_server(tmp_path) as server:
        assert "IMPORT FAILED" not in server.log
        assert server.run(small("t2v"))["status"]["status_str"] == "success"


def test_without_diffusers_comfyui_starts_and_the_node_says_what_to_do(tmp_path, monkeypatch):
    blocked = tmp_path / "python"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys; sys.modules['diffusers'] = None", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    with running_server(tmp_path / "base") as server:
        known = server.object_info()
        assert {"KSampler", "PiyingHunyuanDiT", "PiyingVACESample"} <= known.keys()
        status = server.run(small("t2i"))["status"]
    assert status["status_str"] == "error"
    error = next(data for kind, data in status["messages"] if kind == "execution_error")
    assert "the Python package diffusers is missing" in error["exception_message"]
    assert "install.py" in error["exception_message"]
