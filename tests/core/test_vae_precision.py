"""The VAE in fp16: close to fp32, told in plan and record, and never a black video; and tasks encoded once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.host.headless import HeadlessHost
from piying.core.preview import fit_colours
from piying.core.wan.decode import decode
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest, check_request
from piying.core.wan.run import sample
from piying.core.wan.task.vace_task import Layer, VACETask
from safetensors.torch import load_file, save_file

REQUEST = WanRequest("a red circle moves right", "", 32, 32, 5, steps=2, cfg=1.0, shift=5.0, seed=3)
HALF = replace(REQUEST, vae_precision="fp16")
HANDLE = ModelHandle(WAN_VACE, "built-in", "fp32")
PHASES = ("condition", "decode")


def host(folder, **options):
    return HeadlessHost(chosen_device="cpu", cache=folder, **options)


def decibels(found, wanted):
    return -10 * float((found - wanted).square().mean().log10())


# --- close to fp32 -----------------------------------------------------------------------------------------------


def test_fp16_is_close_and_told(tmp_path, caplog):
    caplog.set_level("INFO", logger="piying")
    exact, plain = sample(HANDLE, REQUEST, host(tmp_path / "one"))
    frames, record = sample(HANDLE, HALF, host(tmp_path / "other"))
    assert 50 < decibels(frames, exact) < 100
    assert [plain["computes"][name] for name in PHASES] == ["fp32", "fp32"]
    assert [record["computes"][name] for name in PHASES] == ["fp16", "fp16"]
    assert (record["vae_precision"], record["dtype"]) == ("fp16", "fp32")
    assert "decode: fp16 in place of fp32, because vae_precision is fp16." in caplog.text


@pytest.mark.parametrize("speed", ["reference", "fast"])
def test_on_a_cpu_auto_is_fp32(tmp_path, speed):
    frames, record = sample(HANDLE, replace(REQUEST, speed=speed), host(tmp_path / "one"))
    by_hand, _ = sample(HANDLE, replace(REQUEST, speed=speed, vae_precision="fp32"), host(tmp_path / "other"))
    assert [record["computes"][name] for name in PHASES] == ["fp32", "fp32"]
    assert torch.equal(frames, by_hand)


def test_only_known_words_are_taken():
    with pytest.raises(PiyingError, match="vae_precision is 'fp8'. Choose one of: auto, fp32, fp16"):
        check_request(replace(REQUEST, vae_precision="fp8"))


@pytest.fixture
def vae():
    return AutoencoderKLWan.from_pretrained(built_in("wan_vace").path / "vae", dtype=torch.float16).eval()


@torch.no_grad()
def test_tiles_are_blended_in_fp32(vae):
    vae.enable_tiling(32, 32, 16, 16)
    shown, z = [], torch.randn(1, vae.config.z_dim, 1, 6, 6)
    decode(vae, z, tiled=True, on_step=lambda done: None, check=lambda piece, where: shown.append(piece))
    assert {piece.dtype for piece in shown} == {torch.float32}
    rounded = [torch.equal(piece, piece.half().float()) for piece in shown]
    assert rounded[0] and not rounded[1], "the first tile is blended with none"


# --- numbers too large for fp16 ------------------------------------------------------------------------------------


@pytest.fixture
def overflowing(tmp_path):
    """A model whose VAE is fine in fp32 and beyond fp16 in the named parts."""

    def make(*parts):
        folder = tmp_path / "models" / "loud"
        shutil.copytree(built_in("wan_vace").path, folder)
        (path,) = (folder / "vae").glob("*.safetensors")
        weights = load_file(path)
        for part in parts:
            weights[f"{part}.conv_in.weight"].fill_(6e4)  # is within fp16, and sums of it are not
        save_file(weights, path)
        return tmp_path / "models"

    return make


@pytest.mark.parametrize("parts", [("encoder", "decoder"), ("decoder",)])
def test_what_overflows_is_computed_again_in_fp32(tmp_path, overflowing, parts, caplog):
    models, handle = [overflowing(*parts)], replace(HANDLE, model="loud")
    task = VACETask(references=(torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)),))
    exact, _ = sample(handle, REQUEST, host(tmp_path / "one", models=models), task)
    assert exact.isfinite().all()
    frames, record = sample(handle, HALF, host(tmp_path / "other", models=models), task)
    again = [line for line in caplog.messages if "overflows in fp16: it is computed again" in line]
    assert len(again) == len(parts)
    assert record["computes"]["decode"] == "fp32"
    assert record["computes"]["condition"] == ("fp32" if "encoder" in parts else "fp16")
    if "encoder" in parts:
        assert torch.equal(frames, exact)
    assert decibels(frames, exact) > 30


@torch.no_grad()
def test_a_preview_is_no_reason_to_fail(vae):
    vae.encoder.conv_in.weight.fill_(6e4)
    assert fit_colours(vae).isfinite().all()


# --- tasks that were seen before -----------------------------------------------------------------------------------


def encodes(record):
    return "condition" in record["seconds"]


def test_text_to_video_encodes_its_gray_once_for_all_prompts(tmp_path):
    program, other = host(tmp_path / "cache"), replace(REQUEST, prompt="a blue square", seed=8)
    _, first = sample(HANDLE, REQUEST, program)
    frames, second = sample(HANDLE, other, program)
    alone, _ = sample(HANDLE, other, host(tmp_path / "fresh"))
    assert (encodes(first), encodes(second)) == (True, False)
    assert torch.equal(frames, alone)


def given(value, keep=1):
    frames = torch.full((keep, 32, 32, 3), value)
    return VACETask((Layer("given", "First Frame", "first frame", frames, slots=tuple(range(keep)), total=5),))


def control(value):
    return VACETask((Layer("control", "Control", "video", torch.full((5, 32, 32, 3), value)),))


@pytest.mark.parametrize("task", [given(0.3), control(0.3)])
def test_the_gray_part_of_a_task_is_encoded_once_for_all_tasks_of_a_size(tmp_path, task):
    program, passes = host(tmp_path / "cache"), []
    sample(HANDLE, REQUEST, program)
    _, vae = model_cache._models["wan_vace/vae"]
    hook = vae.encoder.register_forward_hook(lambda *_: passes.append(1))
    try:
        frames, _ = sample(HANDLE, REQUEST, program, task)
    finally:
        hook.remove()
    alone, _ = sample(HANDLE, REQUEST, host(tmp_path / "fresh"), task)
    assert len(passes) == 2 + 1, "one video of two latent frames, and the preview's card of colours"
    assert torch.equal(frames, alone)


def test_another_task_or_type_is_encoded(tmp_path):
    def picture(value):
        return VACETask(references=(torch.full((32, 32, 3), value),))

    program = host(tmp_path / "cache")
    both = VACETask(control(0.3).layers + given(0.3).layers)  # differs from the control in what is made alone
    tasks = [None, given(0.2), given(0.3), given(0.3, 2), picture(0.2), picture(0.3), control(0.3), both]
    for task in tasks:
        assert encodes(sample(HANDLE, REQUEST, program, task)[1])
        assert not encodes(sample(HANDLE, replace(REQUEST, seed=4), program, task)[1])
    assert encodes(sample(HANDLE, HALF, program)[1])
    assert encodes(sample(HANDLE, replace(REQUEST, num_frames=9), program)[1])
