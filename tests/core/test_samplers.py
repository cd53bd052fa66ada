"""Samplers and schedules: each equals the pipeline of diffusers with its scheduler; the levels are those published."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import SAMPLERS, WanRequest
from piying.core.wan.run import sample
from piying.core.wan.samplers import ResMultistep, sampler
from piying.core.wan.schedule import CAUSVID, check_schedule, parse_sigmas, schedule_notes, sigmas, with_schedule
from piying.core.wan.speed import with_speed

from .plain_pipeline import plain_frames

REQUEST = WanRequest("a red circle moves right", "", 64, 48, 9, steps=3, cfg=3.0, shift=5.0, seed=7)


@pytest.fixture
def host(tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    return HeadlessHost(chosen_device="cpu", **folders)


def of_diffusers(name, config, levels):
    """Return diffusers' scheduler of that name, with these levels in place of those it would choose."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchLCMScheduler,
        UniPCMultistepScheduler,
    )

    kinds = {
        "uni_pc": lambda: UniPCMultistepScheduler.from_config(config, flow_shift=5.0),
        "euler": lambda: FlowMatchEulerDiscreteScheduler(),
        "lcm": lambda: FlowMatchLCMScheduler(),
        "dpmpp_2m": lambda: DPMSolverMultistepScheduler.from_config(config, flow_shift=5.0),
        "dpmpp_2m_sde": lambda: DPMSolverMultistepScheduler.from_config(
            config, flow_shift=5.0, algorithm_type="sde-dpmsolver++"
        ),
    }
    made = kinds[name]()
    if levels is not None:
        original = made.set_timesteps

        def set_timesteps(steps, device=None):
            original(steps, device=device)
            made.sigmas = torch.tensor([*levels, 0.0])
            made.timesteps = made.sigmas[:-1] * 1000
            if name.startswith("dpm"):
                made.sigmas[0] = min(float(made.sigmas[0]), 1 - 1e-6)

        made.set_timesteps = set_timesteps
    return made


@pytest.mark.parametrize("name", ["uni_pc", "euler", "dpmpp_2m", "dpmpp_2m_sde", "lcm"])
def test_each_sampler_equals_the_pipeline_with_its_scheduler(host, name, monkeypatch):
    from diffusers import WanVACEPipeline

    request = replace(REQUEST, sampler=name)
    pipeline = WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = of_diffusers(name, pipeline.scheduler.config, sigmas(request))
    generator = torch.Generator().manual_seed(REQUEST.seed)
    if name in ("dpmpp_2m_sde", "lcm"):
        original = scheduler.step
        # The pipeline hands none on: its noise would come from torch's global generator.
        monkeypatch.setattr(
            scheduler, "step", lambda *given, **named: original(*given, **{**named, "generator": generator})
        )
    pipeline.scheduler = scheduler
    # First: loading sets the threads of torch for the process, on which last bits depend.
    frames, record = sample(ModelHandle(WAN_VACE, "built-in"), request, host)
    assert torch.equal(frames, plain_frames(pipeline, request, generator))
    assert record["sampler"] == name


def test_res_multistep_is_exact_where_the_clean_latents_are_a_line_in_time():
    """A second-order method of exponentials integrates x' = -x + (a + b t) without error; Euler does not."""
    levels = (0.9, 0.7, 0.45, 0.2, 0.05)
    start, slope = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)

    def clean(level):
        return start - slope * torch.log(torch.tensor(level, dtype=torch.float64))

    made = ResMultistep(levels, torch.device("cpu"))
    x = torch.tensor([2.0], dtype=torch.float64)
    for index, level in enumerate(levels):
        if index == 1:  # after the first step, which is Euler's
            constant = (x - clean(level) + slope) / level
        if index >= 1:
            # Of dx/dt = -x + start + slope t with t = -log(level): x = clean - slope + constant * level.
            torch.testing.assert_close(x, clean(level) - slope + constant * level, atol=1e-6, rtol=0)
        (x,) = made.step((x - clean(level)) / level, None, x)
    torch.testing.assert_close(x, clean(levels[-1]))


def test_the_schedules_are_the_published_ones():
    euler = replace(REQUEST, sampler="euler", steps=4, shift=5.0)
    # 1000, 750, 500, 250 in the table of a thousand steps of LightX2V's scheduler.
    table = torch.linspace(1.0, 0.0, 1001)[:-1]
    table = 5.0 * table / (1 + 4.0 * table)
    listed = [float(table[1000 - step]) for step in (1000, 750, 500, 250)]
    assert sigmas(replace(euler, scheduler="distill")) == pytest.approx(listed, abs=1e-6)
    assert sigmas(euler) == sigmas(replace(euler, scheduler="simple")) == pytest.approx(listed, abs=1e-6)
    assert sigmas(replace(euler, scheduler="causvid")) == tuple(step / 1000 for step in CAUSVID)
    assert sigmas(REQUEST) is None, "diffusers' own"
    assert sigmas(replace(REQUEST, sampler="uni_pc", scheduler="simple"))[0] == 1.0


def test_beta_levels_are_dense_at_both_ends():
    pytest.importorskip("scipy", reason="SciPy spreads them; a ComfyUI has it")
    levels = sigmas(replace(REQUEST, scheduler="beta", steps=9, shift=1.0))
    widths = [before - after for before, after in pairwise((*levels, 0.0))]
    assert levels[0] == 1.0
    assert widths[0] < widths[3] > widths[-1]
    # Of two hundred steps some round to equal timesteps: there are fewer then.
    many = with_schedule(replace(REQUEST, scheduler="beta", steps=200))
    assert many.steps == len(sigmas(many)) < 200
    assert schedule_notes(replace(REQUEST, scheduler="beta", steps=200)) == [
        f"scheduler beta: 200 steps round to {many.steps} levels."
    ]


def test_beta_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PiyingError, match="SciPy, which spreads its levels, is not installed in this Python"):
        check_schedule("beta", "")


def test_a_schedule_of_its_own_sets_the_steps_and_no_speed_takes_any_away():
    assert with_schedule(replace(REQUEST, scheduler="causvid", steps=50)).steps == 9
    by_hand = replace(REQUEST, sigmas=", ".join(str(1 - step / 20) for step in range(20)), steps=50, speed="draft")
    assert with_speed(by_hand).steps == 20
    assert with_speed(replace(REQUEST, steps=50, speed="draft")).steps == 25
    assert schedule_notes(by_hand) == [
        "sigmas takes 20 steps in place of 50.",
        "sigmas gives the noise levels as they are: shift is without effect.",
    ]
    assert schedule_notes(REQUEST) == []


@pytest.mark.parametrize("text", ["1, 0.9 0.5,0.2", "1 0.9 0.5 0.2 0", "1.0,0.9,0.5,0.2,0.0", "1，0.9，0.5、0.2"])
def test_levels_are_read_however_they_are_parted(text):
    assert parse_sigmas(text) == (1.0, 0.9, 0.5, 0.2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1, x", "'x', which is no number"),
        ("0", "no noise level above 0"),
        (",", "no noise level above 0"),
        ("1.5, 0.5", "holds 1.5"),
        ("1, nan", "holds nan"),
        ("0.5, 0.9", "0.9 after 0.5"),
        ("1, 0, 0", "holds 0"),
        ("1, 0.9999999, 0.5", "0.9999999 after 1, which is too close: each is lower by 0.00001 at least"),
        (" ".join(["1"] * 1002), "1002 noise levels"),
    ],
)
def test_what_is_no_list_of_levels_is_refused(text, says):
    with pytest.raises(PiyingError, match=says):
        parse_sigmas(text)


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_as_close_as_is_allowed_give_numbers(name):
    """Solvers divide by the distance of two levels, which in float32 is 0 for those that are closer."""
    levels = parse_sigmas("1, 0.99999, 0.99998, 0.5, 0.49999, 0.49998, 0.00001")
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cpu")
    made = sampler(name, {}, shift=3.0, steps=7, sigmas=levels, device=device, generator=generator)
    latents = torch.randn(1, 2, 1, 2, 2, generator=generator)
    for timestep in made.scheduler.timesteps:
        latents = made.step(-0.1 * latents, timestep, latents)
    assert torch.isfinite(latents).all()


def test_levels_by_hand_and_a_scheduler_contradict_each_other(host):
    with pytest.raises(PiyingError, match="scheduler is causvid, and sigmas"):
        sample(ModelHandle(WAN_VACE, "built-in"), replace(REQUEST, scheduler="causvid", sigmas="1 0.5"), host)
