"""Samplers take the steps that ComfyUI's own take, from the same noise and levels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from piying.core.wan.samplers import sampler
from piying.tests.comfyui.server import named_checkout

pytestmark = pytest.mark.comfyui

LEVELS = [0.95, 0.8, 0.6, 0.35, 0.1]
SHAPE, SEED = (1, 4, 3, 5, 6), 3

THEIRS = """
import json, sys, types
sys.path.insert(0, sys.argv.pop(1))
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy import model_sampling
from comfy.k_diffusion import sampling

shape, seed, levels = json.load(sys.stdin)

class Flow(model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST):
    pass

flow = Flow()

class Model:
    inner_model = types.SimpleNamespace(
        model_patcher=types.SimpleNamespace(get_model_object=lambda name: flow),
        inner_model=types.SimpleNamespace(model_sampling=flow),
    )
    def __call__(self, x, sigma, **extra):
        return torch.tanh(0.7 * x) + 0.1 * float(sigma[0])

found = {}
for name in ("euler", "res_multistep", "lcm", "dpmpp_2m_sde"):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=draw)
    named = {} if name == "euler" else {"noise_sampler": lambda *levels: torch.randn(shape, generator=draw)}
    sigmas = torch.tensor([*levels, 0.0])
    found[name] = getattr(sampling, f"sample_{name}")(Model(), noise, sigmas, disable=True, **named).tolist()
print(json.dumps(found))
"""


def test_each_sampler_takes_the_steps_of_comfyui_s():
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", THEIRS, named_checkout(), "--cpu"]
    given = json.dumps([SHAPE, SEED, LEVELS])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    for name, theirs in json.loads(done.stdout.splitlines()[-1]).items():
        draw = torch.Generator().manual_seed(SEED)
        latents = torch.randn(SHAPE, generator=draw)
        made = sampler(
            name,
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
            shift=1.0,
            steps=len(LEVELS),
            sigmas=LEVELS,
            device=torch.device("cpu"),
            generator=draw,
        )
        for level, timestep in zip(LEVELS, made.scheduler.timesteps, strict=True):
            clean = torch.tanh(0.7 * latents) + 0.1 * float(torch.tensor(level))
            latents = made.step((latents - clean) / level, timestep, latents)
        torch.testing.assert_close(
            latents, torch.tensor(theirs), atol=1e-5, rtol=1e-5, msg=lambda why, n=name: f"{n}: {why}"
        )


BETA = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import comfy.options
comfy.options.enable_args_parsing()
sys.argv[1:] = ["--cpu"]
from comfy import model_sampling, samplers
import conftest
from piying.core.wan.request import WanRequest
from piying.core.wan.schedule import sigmas

class Flow(model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST):
    pass

flow = Flow()
pairs = []
for steps, shift in ((4, 1.0), (20, 5.0), (50, 8.0), (120, 16.0)):
    flow.set_parameters(shift=shift, multiplier=1000)
    theirs = samplers.beta_scheduler(flow, steps).tolist()
    pairs.append([theirs, [*sigmas(WanRequest("", steps=steps, shift=shift, scheduler="beta")), 0.0]])
print(json.dumps(pairs))
"""


def test_beta_levels_are_comfyui_s():
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", BETA, named_checkout(), str(Path(__file__).resolve().parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for theirs, ours in json.loads(done.stdout.splitlines()[-1]):
        assert ours == pytest.approx(theirs, abs=1e-6)
