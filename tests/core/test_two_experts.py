"""Wan2.2's two experts: sampled as diffusers samples them, planned one at a time, found in folders and pairs."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import piying
import pytest
import torch
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.experts import noise_of, partner_name
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import (
    ModelHandle,
    check_model,
    choose_model,
    model_choices,
    model_choices_and_details,
)
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.executor.retry import PhaseOutOfMemoryError
from piying.core.host.headless import HeadlessHost
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan
from piying.core.wan import video_run as running
from piying.core.wan.experts import high_steps, planned_timesteps
from piying.core.wan.family import WAN_VACE
from piying.core.wan.long.request import LongRequest
from piying.core.wan.long.sample import make_long_video
from piying.core.wan.model import load as load_model
from piying.core.wan.phases import VideoWork, phases
from piying.core.wan.request import WanRequest, check_request
from piying.core.wan.run import sample
from piying.core.wan.schedule import sigmas
from safetensors.torch import load_file

from .formats import models, names, writers
from .hosts import current_host
from .plain_pipeline import plain_frames
from .test_lora_node import RANK
from .test_plan import listed_components
from .test_single_files import spiece

REQUEST = WanRequest(
    "a red circle", "static", width=32, height=32, num_frames=1, steps=4, cfg=4.0, cfg_2=2.0, shift=3.0, seed=7
)
NAME = "diffusers/Wan2.2-VACE-Fun"
PAIR = ModelHandle(WAN_VACE, NAME)
TOY = ModelHandle(WAN_VACE, "built-in")
NODES = piying.NODE_CLASS_MAPPINGS
GB = 2**30
ROOT = Path(__file__).resolve().parents[2]


def write_second(folder):
    """Write a transformer that is as the built-in one, and predicts otherwise."""
    from diffusers import WanVACETransformer3DModel

    made = WanVACETransformer3DModel.from_pretrained(BUILT_IN_ROOT / "wan_vace" / "transformer")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory):
    """A models folder with a diffusers folder of two experts that names a boundary of its own."""
    root = tmp_path_factory.mktemp("models")
    folder = root / NAME
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", folder)
    write_second(folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"boundary_ratio": 0.7, "transformer_2": ["diffusers", "WanVACETransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (root / "loras").mkdir()
    return root


@pytest.fixture
def host(models_folder, tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    with current_host(models=[models_folder], **folders) as made:
        yield made


@pytest.fixture(scope="module")
def pipeline(models_folder):
    from diffusers import WanVACEPipeline

    made = WanVACEPipeline.from_pretrained(models_folder / NAME, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    assert (made.config.boundary_ratio, made.transformer_2 is None) == (0.7, False)
    return made


def by_diffusers(pipeline, request, boundary=0.7):
    from diffusers import UniPCMultistepScheduler

    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=request.shift)
    pipeline.register_to_config(boundary_ratio=boundary)
    return plain_frames(pipeline, request, guidance_scale_2=request.cfg_2 or None)


# Sampling


@pytest.mark.parametrize(
    ("changes", "boundary", "high"),
    [
        ({"width": 48, "num_frames": 5}, 0.7, 3),
        ({"boundary": 0.9, "cfg_2": 0.0, "steps": 5}, 0.9, 2),
        ({"boundary": 1.0}, 1.0, 0),
    ],
)
def test_two_experts_equal_the_plain_pipeline(host, pipeline, changes, boundary, high):
    request = replace(REQUEST, **changes)
    frames, record = sample(PAIR, request, host)
    assert torch.equal(frames, by_diffusers(pipeline, request, boundary))
    assert (record["high_noise_steps"], record["boundary"]) == (high, boundary)
    sampled = [name for name in record["seconds"] if name.startswith("sample")]
    assert sampled == ["sample"] * (high > 0) + ["sample_2"] * (high < request.steps)


def test_the_second_experts_cfg_alone_is_guided(host):
    """diffusers guides neither where the first one's scale is 1."""
    request = replace(REQUEST, cfg=1.0, cfg_2=3.0)
    guided, plain = (sample(PAIR, one, host)[0] for one in (request, replace(request, cfg_2=0.0)))
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "res_multistep"])
def test_every_sampler_goes_on_through_the_switch(models_folder, host, tmp_path, sampler):
    """Two experts that are the same transformer are that transformer, bit for bit."""
    twice = tmp_path / "models" / NAME
    shutil.copytree(models_folder / NAME, twice)
    shutil.rmtree(twice / "transformer_2")
    shutil.copytree(twice / "transformer", twice / "transformer_2")
    two = HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu")
    request = replace(REQUEST, cfg=1.0, cfg_2=0.0, sampler=sampler)
    frames, record = sample(PAIR, request, two)
    assert 0 < record["high_noise_steps"] < 4
    assert torch.equal(frames, sample(TOY, request, host)[0])


def test_running_out_of_memory_in_the_second_expert_does_not_redo_the_first(host, monkeypatch):
    expected, _ = sample(PAIR, REQUEST, host)
    shutil.rmtree(host.cache_folder() / "latents")
    taken, denoise = [], running.denoise

    def failing_once(*arguments, first, end, **options):
        taken.append((first, end))
        made = denoise(*arguments, first=first, end=end, **options)  # the scheduler has taken its steps by then
        if taken.count((3, 4)) == 1 and first:
            raise PhaseOutOfMemoryError("sample_2: a way that fails", "test")
        return made

    monkeypatch.setattr(running, "denoise", failing_once)
    frames, _ = sample(PAIR, REQUEST, host)
    assert taken == [(0, 3), (3, 4), (3, 4)]
    assert torch.equal(frames, expected)


def test_latents_are_kept_for_the_same_experts_alone(host, caplog):
    sample(PAIR, REQUEST, host)
    with caplog.at_level(logging.INFO):
        sample(PAIR, REQUEST, host)
        assert "kept from a run before" in caplog.text
        caplog.clear()
        sample(PAIR, replace(REQUEST, boundary=0.9), host)
    assert "kept from a run before" not in caplog.text


def test_the_step_cache_begins_anew_with_the_second_expert(host):
    request = replace(REQUEST, steps=12, cfg=1.0, cfg_2=0.0, boundary=0.75, step_cache=1.0)
    frames, record = sample(PAIR, request, host)
    # Nothing differs by more than all of it: what is computed are the first steps, two after each switch, every fourth
    # and the last.
    assert record["high_noise_steps"] == 7
    assert record["steps_forecast"] == 5
    assert not torch.equal(frames, sample(PAIR, replace(request, step_cache=0.0), host)[0])


def test_progress_names_the_expert_at_work(host, monkeypatch):
    bars = []
    monkeypatch.setattr(
        HeadlessHost,
        "progress",
        lambda self, phase, total, *, seconds=0.0, real=HeadlessHost.progress: (
            bars.append((phase, total)) or real(self, phase, total, seconds=seconds)
        ),
    )
    sample(PAIR, REQUEST, host)
    assert [bar for bar in bars if bar[0].startswith("Sampling")] == [
        ("Sampling, high-noise expert", 3),
        ("Sampling, low-noise expert", 1),
    ]


def test_a_long_video_is_made_of_two_experts(host):
    video = replace(REQUEST, num_frames=9, steps=2, cfg=1.0, cfg_2=0.0, boundary=0.9)
    request = LongRequest(video, window=5, overlap=1)
    _, record = make_long_video(PAIR, request, host)
    assert (record["windows"], record["high_noise_steps"], record["boundary"]) == (2, 1, 0.9)


def test_on_one_transformer_the_settings_are_said_to_do_nothing(host, caplog):
    with caplog.at_level(logging.INFO):
        frames, record = sample(TOY, replace(REQUEST, boundary=0.8), host)
    assert "boundary and cfg_2 are without effect: built-in has one transformer." in caplog.text
    assert torch.equal(frames, sample(TOY, replace(REQUEST, cfg_2=0.0), host)[0])
    assert "high_noise_steps" not in record


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"boundary": 1.2}, "boundary is 1.2. It goes from 0"), ({"cfg_2": 0.5}, "cfg_2 is 0.5. It is 0 ")],
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(PiyingError, match=said):
        check_request(replace(REQUEST, **changes))


# The plan


def test_the_formula_divides_the_steps_as_the_scheduler_does(host):
    model, device = load_model(TOY, host), torch.device("cpu")
    for sampler in ("uni_pc", "euler"):
        for shift in (1.0, 3.0, 5.0, 12.0, 16.0):
            for steps in (1, 2, 5, 8, 30, 50):
                request = replace(REQUEST, sampler=sampler, shift=shift, steps=steps)
                timesteps = model.sampler(request, device, torch.Generator()).scheduler.timesteps
                planned = planned_timesteps(steps, shift, sigmas(request))
                # Off the levels of evenly spaced steps, which fp32 rounds to either side.
                for boundary in (0.111, 0.503, 0.707, 0.876, 0.913, 0.991, 1.0):
                    assert high_steps(planned, boundary) == high_steps(timesteps, boundary)


@pytest.mark.parametrize(("width", "height"), [(832, 480), (1280, 720)])
@pytest.mark.parametrize("stored", ["wan2.1-vace-14b", "wan2.1-vace-14b-fp8"])
def test_a_card_of_16_gb_holds_one_expert_at_a_time(stored, width, height):
    one = listed_components(stored)
    two = {**one, "transformer_2": replace(one["transformer"], name="transformer_2")}
    machine, work = synthetic(16, 32), VideoWork(width, height, 81, steps=50, shift=12.0)
    alone, pair = plan(phases(one, work), machine), plan(phases(two, work), machine)
    assert alone.fits and pair.fits, pair.reasons
    assert [phase.phase for phase in pair.phases] == ["encode", "condition", "sample", "sample_2", "decode"]
    assert [phase.component for phase in pair.phases[2:4]] == ["transformer", "transformer_2"]
    assert pair.peak_vram == alone.peak_vram < 16 * GB
    assert pair.peak_ram == alone.peak_ram  # the first expert leaves main memory too where there is no room for both
    high, low = pair.phase("sample"), pair.phase("sample_2")
    assert high.seconds / low.seconds == pytest.approx(32 / 18, rel=0.1)
    notes = [reason for reason in pair.reasons if "expert" in reason or "the other one" in reason]
    assert notes == [
        "sample: The high-noise expert takes steps 1 to 32 of 50.",
        "sample_2: The low-noise expert takes steps 33 to 50 of 50.",
        "sample_2: It takes the place of the other one once: they are not on the card together.",
    ]


def test_each_expert_predicts_as_often_as_its_cfg_asks():
    one = listed_components("wan2.1-vace-1.3b")
    two = {**one, "transformer_2": replace(one["transformer"], name="transformer_2")}
    work = VideoWork(832, 480, 81, cfg=1.0, cfg_2=3.0, steps=8, high_steps=4)
    encode, _, high, low, _ = phases(two, work)
    assert (high.passes, low.passes, encode.passes) == (4, 4, 2)
    assert low.flops == 2 * high.flops
    assert [phase.name for phase in phases(two, replace(work, high_steps=8))][2:] == ["sample", "decode"]


def test_the_plan_before_a_run_reads_the_folders_boundary(host):
    made = NODES["PiyingVACESample"]().plan_memory(PAIR, steps=4, shift=3.0, width=48, height=32, num_frames=5)
    assert "The high-noise expert takes steps 1 to 3 of 4." in made.to_text()
    made = NODES["PiyingVACESample"]().plan_memory(PAIR, steps=4, shift=3.0, boundary=1.0)
    assert "sample: The high" not in made.to_text()


def test_the_page_offers_the_settings_published_for_two_experts(host):
    from piying.nodes import routes

    for model, steps, shift in ((NAME, 50, 12.0), ("built-in", 20, 16.0)):
        loader = {"class_type": "PiyingLoadWanVACE", "inputs": {"model": model, "precision": "auto"}}
        inputs = {"model": loader, "width": 832, "height": 480, "num_frames": 81, "steps": 4, "cfg": 5.0, "shift": 3.0}
        settings = routes.plan({"class_type": "PiyingVACESample", "inputs": inputs})["settings"]
        assert (settings["steps"], settings["shift"], settings["boundary"], settings["cfg_2"]) == (steps, shift, 0, 0)


# What is offered


@pytest.mark.parametrize(
    ("name", "noise", "partner"),
    [
        ("Wan2.2-VACE-Fun-A14B-high-noise-Q4_0.gguf", "high", "Wan2.2-VACE-Fun-A14B-low-noise-Q4_0.gguf"),
        ("a/Wan2_2_Fun_VACE_A14B_LOW_bf16.safetensors", "low", "a/Wan2_2_Fun_VACE_A14B_HIGH_bf16.safetensors"),
        ("HighNoise/x-HighNoise-Q5.gguf", "high", "LowNoise/x-LowNoise-Q5.gguf"),
        ("x/high_noise_model/diffusion.safetensors", "high", "x/low_noise_model/diffusion.safetensors"),
        ("wan22_high.safetensors", "high", "wan22_low.safetensors"),
        ("both_high_and_low_noise.safetensors", "", None),
        ("high_res_slow_motion.safetensors", "", None),
        ("highlight_lowlands.safetensors", "", None),
        ("a_high-angle shot.safetensors", "", None),
    ],
)
def test_names_tell_the_expert(name, noise, partner):
    assert noise_of(name) == noise
    if partner:
        assert partner_name(name) == partner
        assert partner_name(partner) == name


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Folders of ComfyUI with a text encoder and a VAE."""
    root = tmp_path_factory.mktemp("beside")
    for category in ("diffusion_models", "text_encoders", "vae"):
        (root / category).mkdir()
    encoder = {n: t for n, t in models.tensors(models.umt5()).items() if "embed_tokens" not in n}
    writers.save(encoder | {"spiece_model": spiece()}, root / "text_encoders" / "x.safetensors")
    torch.save(names.wan_vae(models.tensors(models.wan_vae())), root / "vae" / "y.pth")
    return root


@pytest.fixture
def zoo(beside, tmp_path):
    """The same folders, and a function that writes a transformer or a part of one."""
    shutil.copytree(beside, tmp_path, dirs_exist_ok=True)
    original = names.wan_transformer(models.tensors(models.wan_transformer()))

    def write(name, part="whole"):
        path = tmp_path / "diffusion_models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = {n: t for n, t in original.items() if part == "whole" or n.startswith("vace_") is (part == "module")}
        if name.endswith(".gguf"):
            writers.gguf(chosen, path, "Q8_0")
        else:
            writers.save(chosen, path)

    write.host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    yield write
    model_cache.evict_models()


def offered(zoo):
    return [name.removeprefix("diffusion_models/") for name in model_choices(WAN_VACE, zoo.host)[1:-1]]


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("Wan2_2_Fun_VACE_A14B_HIGH_bf16.safetensors", "Wan2_2_Fun_VACE_A14B_LOW_bf16.safetensors"),
        ("VACE-Fun-A14B-high-noise-Q8_0.gguf", "VACE-Fun-A14B-low-noise-Q8_0.gguf"),
        (
            "A14B/high_noise_model/diffusion_pytorch_model.safetensors",
            "A14B/low_noise_model/diffusion_pytorch_model.safetensors",
        ),
    ],
)
def test_a_pair_of_files_is_one_model_and_runs(zoo, high, low):
    for name in (high, low, "one.safetensors"):
        zoo(name)
    assert offered(zoo) == [f"{high} + {low.rpartition('/')[2]}", "one.safetensors"]
    pair = next(one for one in installed_models(WAN_VACE, zoo.host) if one.has("transformer_2"))
    assert (pair.can_run, pair.caution) == (True, "")
    assert pair.details.startswith("two experts: Wan2.1-VACE transformer")
    needed = [inspect(one.parts["transformer"][0]).needs for one in installed_models(WAN_VACE, zoo.host)]
    assert [needs[0].startswith("the other one of two experts, ") for needs in needed] == [True, False]
    for name in (high, f"{high} + {low.rpartition('/')[2]}"):  # a workflow may name the first alone
        check_model(WAN_VACE, f"diffusion_models/{name}", zoo.host)
    with pytest.raises(PiyingError, match=r"cannot be used: it is one of two experts of one model: choose "):
        check_model(WAN_VACE, f"diffusion_models/{low}", zoo.host)
    if high.endswith(".gguf"):
        request = replace(REQUEST, steps=2, shift=5.0)
        frames, record = sample(ModelHandle(WAN_VACE, pair.name), request, zoo.host)
        assert (record["boundary"], record["high_noise_steps"]) == (0.875, 1)
        assert frames.isfinite().all()


def test_modules_go_in_pairs_on_pairs_of_text_to_video_models(zoo):
    modules = [f"Wan2_2_Fun_VACE_module_A14B_{noise}_bf16.safetensors" for noise in ("HIGH", "LOW")]
    bases = [f"wan2.2_t2v_{noise}_noise_14B_fp16.safetensors" for noise in ("high", "low")]
    for name in modules:
        zoo(name, "module")
    for name in bases:
        zoo(name, "base")
    assert offered(zoo) == [" + ".join(modules)]
    (pair,) = installed_models(WAN_VACE, zoo.host)
    made_of = {part: [path.name for path in pair.parts[part]] for part in ("transformer", "transformer_2")}
    assert made_of == {"transformer": [bases[0], modules[0]], "transformer_2": [bases[1], modules[1]]}
    request = replace(REQUEST, steps=2, shift=5.0)
    assert sample(ModelHandle(WAN_VACE, pair.name), request, zoo.host)[1]["high_noise_steps"] == 1


def test_a_module_of_wan_21_goes_on_both_experts_and_on_the_one_of_low_noise(zoo):
    zoo("vace_2.1.safetensors", "module")
    zoo("wan2.2_t2v_high_noise.safetensors", "base")
    zoo("wan2.2_t2v_low_noise.safetensors", "base")
    here = "diffusion_models/"
    assert offered(zoo) == [
        f"vace_2.1.safetensors + {here}wan2.2_t2v_high_noise.safetensors + wan2.2_t2v_low_noise.safetensors",
        f"vace_2.1.safetensors + {here}wan2.2_t2v_low_noise.safetensors",
    ]
    both, low = installed_models(WAN_VACE, zoo.host)
    assert (both.has("transformer_2"), low.has("transformer_2")) == (True, False)
    assert (both.caution, low.caution) == ("", "")
    request = replace(REQUEST, steps=2, cfg_2=0.0)
    assert sample(ModelHandle(WAN_VACE, low.name), request, zoo.host)[0].isfinite().all()


def test_an_expert_without_its_partner_is_offered_and_says_so(zoo, caplog):
    zoo("VACE_HIGH_bf16.safetensors")
    zoo("VACE_LOW_fp8.safetensors")  # of another format: no pair
    assert offered(zoo) == ["VACE_HIGH_bf16.safetensors", "VACE_LOW_fp8.safetensors"]
    high, _ = installed_models(WAN_VACE, zoo.host)
    assert "not here: diffusion_models/VACE_LOW_bf16.safetensors" in high.caution
    assert high.caution in model_choices_and_details(WAN_VACE, zoo.host)[1]
    sample(ModelHandle(WAN_VACE, high.name), replace(REQUEST, steps=1, cfg_2=0.0), zoo.host)
    assert "is one of two experts, and takes all steps" in caplog.text
    zoo("whole.safetensors")
    assert choose_model(ModelHandle(WAN_VACE), zoo.host).name == "diffusion_models/whole.safetensors"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.rmtree(folder / "transformer_2"), "there is no transformer_2 in it"),
        (lambda folder: next((folder / "transformer_2").glob("*.safetensors")).write_bytes(b"x"), "transformer_2"),
    ],
)
def test_a_folder_whose_second_expert_is_missing_or_damaged_is_refused(models_folder, tmp_path, spoil, said):
    shutil.copytree(models_folder / NAME, tmp_path / NAME)
    spoil(tmp_path / NAME)
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    assert model_choices(WAN_VACE, host) == ["auto", "built-in"]
    with pytest.raises(PiyingError, match=said):
        check_model(WAN_VACE, NAME, host)


def test_a_boundary_that_is_none_is_refused(models_folder, tmp_path):
    shutil.copytree(models_folder / NAME, tmp_path / NAME)
    index = tmp_path / NAME / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"boundary_ratio": "much"}))
    said = "boundary_ratio is 'much'. It is a number from 0 to 1"
    with pytest.raises(PiyingError, match=said):
        sample(PAIR, REQUEST, HeadlessHost(models=[tmp_path], chosen_device="cpu"))
    with current_host(models=[tmp_path]):
        assert said in NODES["PiyingVACESample"].refusal({"model": PAIR})
        assert not NODES["PiyingVACESample"].refusal({"model": PAIR, "boundary": 0.5})


# LoRAs


@pytest.fixture
def loras(models_folder, host):
    generator = torch.Generator().manual_seed(0)
    state = load_model(TOY, host).parts.load("transformer", running_choice())
    for name in ("style_HIGH.safetensors", "style_LOW.safetensors", "plain.safetensors"):
        tensors = {}
        for layer, module in state.named_modules():
            if layer.endswith("attn1.to_q"):
                shape = module.weight.shape
                tensors[f"{layer}.lora_A.weight"] = torch.randn(RANK, shape[1], generator=generator) * 0.3
                tensors[f"{layer}.lora_B.weight"] = torch.randn(shape[0], RANK, generator=generator) * 0.3
        writers.save(tensors, models_folder / "loras" / name)


def running_choice():
    return plan(phases(listed_components("wan2.1-vace-1.3b"), VideoWork(64, 64, 5)), synthetic(24, 64)).phase("sample")


def add(handle, *arguments):
    return NODES["PiyingLoRA"]().add(handle, *arguments)[0]


def test_a_pair_of_loras_goes_where_its_names_say(host, loras, caplog):
    chained = add(add(PAIR, "style_HIGH.safetensors", 0.5), "style_LOW.safetensors", 0.8)
    parts = load_model(chained, host).parts
    worn = {
        part: [(one.name, one.strength) for one in parts._loras(part)] for part in ("transformer", "transformer_2")
    }
    assert worn == {
        "transformer": [("style_HIGH.safetensors", 0.5)],
        "transformer_2": [("style_LOW.safetensors", 0.8)],
    }
    only_high = replace(REQUEST, boundary=0.001)  # no step of low noise: its LoRA changes nothing
    with caplog.at_level(logging.INFO):
        first = sample(chained, only_high, host)[0]
    assert "LoRA style_HIGH.safetensors is on the high-noise expert, at strength 0.5." in caplog.text
    assert torch.equal(first, sample(add(PAIR, "style_HIGH.safetensors", 0.5), only_high, host)[0])
    assert not torch.equal(first, sample(PAIR, only_high, host)[0])


def test_what_a_lora_leaves_out_of_both_experts_is_said_once(host, loras, models_folder, caplog):
    path = models_folder / "loras" / "plain.safetensors"
    foreign = {f"diffusion_model.blocks.0.cross_attn.k_audio.lora_{way}.weight": torch.ones(4, 4) for way in "AB"}
    writers.save(load_file(path) | foreign, path)
    worn = add(PAIR, path.name, 1.0)
    with caplog.at_level(logging.INFO):
        sample(worn, REQUEST, host)
    said = [one for one in caplog.messages if "plain.safetensors leaves out 1 of its" in one]
    assert len(said) == 1 and "k_audio" in said[0]


@pytest.mark.parametrize(
    ("name", "expert", "on"),
    [
        ("plain.safetensors", "auto", ""),
        ("style_HIGH.safetensors", "both", ""),
        ("plain.safetensors", "low noise", "low"),
        ("style_LOW.safetensors", "auto", "low"),
    ],
)
def test_the_widget_overrules_the_name(host, loras, name, expert, on):
    (lora,) = add(PAIR, name, 1.0, expert).loras
    assert lora.expert == on
    assert [one["expert"] for one in sample_record(PAIR, lora, host)] == ([on] if on else [])


def sample_record(handle, lora, host):
    from piying.core.lora.catalog import record_of

    files = load_model(replace(handle, loras=(lora,)), host).parts.loras
    return [one for one in record_of(files)["loras"] if "expert" in one]


def test_on_one_transformer_a_lora_for_an_expert_is_used_and_said(host, loras, caplog):
    with caplog.at_level(logging.INFO):
        frames, _ = sample(add(TOY, "style_LOW.safetensors", 1.0), replace(REQUEST, cfg_2=0.0), host)
    assert "LoRA style_LOW.safetensors is meant for the low-noise expert of two" in caplog.text
    plain = sample(add(TOY, "style_LOW.safetensors", 1.0, "both"), replace(REQUEST, cfg_2=0.0), host)[0]
    assert torch.equal(frames, plain)


# Through the door


def graph_of(model):
    widgets = {
        "width": 32,
        "height": 32,
        "num_frames": 1,
        "steps": 4,
        "cfg": 4.0,
        "shift": 3.0,
        "seed": 7,
        "cfg_2": 2.0,
    }
    return {
        "1": {"class_type": "PiyingLoadWanVACE", "inputs": {"model": model, "precision": "auto"}},
        "2": {
            "class_type": "PiyingVACESample",
            "inputs": {"model": ["1", 0], "prompt": "a red circle", "negative_prompt": "static", **widgets},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }


def runner(folder, *arguments):
    options = ["--models", folder, "--device", "cpu", "--input", folder, "--output", folder / "output"]
    command = [sys.executable, "-m", "runner", *arguments, *options]
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def test_a_pair_runs_from_the_command_line(models_folder, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(graph_of(NAME)))
    done = runner(models_folder, tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert "sample_2" in done.stderr
    assert "The low-noise expert takes step 4 of 4." in done.stderr
    assert len(list((models_folder / "output").glob("x*.png"))) == 1


def test_check_list_and_inspection_agree_on_a_pair(zoo, tmp_path):
    from piying.runner.errors import InvalidGraph
    from piying.runner.session import Session

    high, low = (f"VACE_{noise}_bf16.safetensors" for noise in ("HIGH", "LOW"))
    for name in (high, low):
        zoo(name)
    session = Session(input=tmp_path, output=tmp_path, models=[tmp_path], device="cpu")
    try:
        session.check(session.prepare(graph_of(f"diffusion_models/{high} + {low}")))
        with pytest.raises(InvalidGraph, match=rf"it is one of two experts of one model: choose .*{high} \+ {low}"):
            session.check(session.prepare(graph_of(f"diffusion_models/{low}")))
    finally:
        session.close()
    assert f"the other one of two experts, {high}" in inspect(tmp_path / "diffusion_models" / low).needs
