"""Results that are no numbers: nothing of them is saved as done, in any family, phase and number type."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ChosenLora, ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor import execute_plan, model_cache
from piying.core.executor.retry import NonFiniteError, finite_check, retry_after_overflow
from piying.core.executor.tensor_cache import TensorCache
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit import request as hunyuan_request
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import TOY_SIZES, ImageRequest
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.planner.machine import synthetic
from piying.core.planner.plan_types import PhasePlan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.long.request import LongRequest
from piying.core.wan.long.sample import make_long_video
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from piying.core.wan.task.vace_task import VACETask
from safetensors.torch import load_file, save_file

from .formats import writers

VIDEO = WanRequest("a red circle", "", 32, 32, 5, steps=2, cfg=1.0, shift=5.0, seed=3)
PICTURE = ImageRequest("a red circle", "", 64, 64, steps=2, cfg=1.0, seed=3)
NO_NUMBERS = r"gave values that are no numbers \(NaN or infinity\)"


@pytest.fixture(autouse=True)
def nothing_cached():
    yield
    model_cache.evict_models()


@pytest.fixture
def host(tmp_path):
    (tmp_path / "models" / "loras").mkdir(parents=True)
    return HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu", cache=tmp_path / "cache", temp=tmp_path)


def loud(host, key, part, tensor, value=3e38):
    """Install the toy with one weight so large that sums of it are infinite."""
    folder = host.models[0] / "loud"
    shutil.copytree(built_in(key).path, folder)
    (path,) = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    weights[tensor].fill_(value)
    save_file(weights, path)
    return folder


def large_lora(host, layer, width, size=8e18):
    tensors = {f"{layer}.lora_A.weight": torch.full((2, width), size), f"{layer}.lora_B.weight": torch.ones(width, 2)}
    writers.save(tensors, host.models[0] / "loras" / "large.safetensors")
    return (ChosenLora("large.safetensors", 50.0),)


@pytest.fixture
def toy_sizes(monkeypatch):
    """A copy of the toy counts as a published model, which is not made for its size."""
    monkeypatch.setattr(hunyuan_request, "SIZES", TOY_SIZES)


def saved(host):
    return [path for path in host.cache_folder().rglob("*.safetensors") if "latents" in path.parts]


VIDEO_PARTS = {
    "text_encoder": ("encoder.final_layer_norm.weight", "Encoding the prompt: the text encoder in fp32 {} for 'a red"),
    "transformer": ("proj_out.weight", "Sampling: the transformer in fp32 {} at step 1 of 2. Nothing is saved"),
    "vae": ("decoder.conv_in.weight", "Decoding: the vae in fp32 {} in the frames from 0 on. Nothing is saved"),
}


@pytest.mark.parametrize("part", VIDEO_PARTS)
def test_a_video_stops_in_the_phase_where_it_happens(host, part):
    tensor, said = VIDEO_PARTS[part]
    loud(host, "wan_vace", part, tensor)
    words = part.replace("_", " ")
    with pytest.raises(PiyingError, match=said.format(NO_NUMBERS)) as caught:
        sample(ModelHandle(WAN_VACE, "loud"), VIDEO, host)
    assert f"Likely cause: the {words}'s file is damaged or was made for another model" in str(caught.value)
    assert saved(host) == [] or part == "vae"


def test_the_task_is_looked_at_too(host):
    loud(host, "wan_vace", "vae", "encoder.conv_in.weight")
    task = VACETask(references=(torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)),))
    with pytest.raises(PiyingError, match=f"Preparing the task: the vae in fp32 {NO_NUMBERS} in the latents of the"):
        sample(ModelHandle(WAN_VACE, "loud"), VIDEO, host, task)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_a_picture_stops_too(host, toy_sizes, part):
    tensors = {
        "text_encoder": ("encoder.layer.0.output.LayerNorm.weight", "Encoding the prompt: the text encoder in fp32"),
        "text_encoder_2": ("encoder.final_layer_norm.weight", "Encoding the prompt: the text encoder 2 in fp32"),
        "transformer": ("proj_out.weight", "Sampling: the transformer in fp32"),
        "vae": ("decoder.conv_in.weight", "Decoding: the vae in fp32"),
    }
    tensor, said = tensors[part]
    loud(host, "hunyuan_dit", part, tensor)
    with pytest.raises(PiyingError, match=f"{said} {NO_NUMBERS}"):
        draw(ModelHandle(HUNYUAN_DIT, "loud"), PICTURE, host)


def test_a_lora_is_named_with_its_strength(host):
    handle = ModelHandle(WAN_VACE, "built-in", loras=large_lora(host, "blocks.0.attn1.to_v", 96))
    with pytest.raises(PiyingError, match="Sampling: .* at step 1 of 2. Nothing is saved. Likely cause: LoRA 'large"):
        sample(handle, VIDEO, host)
    picture = ModelHandle(HUNYUAN_DIT, "built-in", loras=large_lora(host, "blocks.0.attn1.to_v", 96))
    with pytest.raises(
        PiyingError, match="LoRA 'large.safetensors' at strength 50: lower it, or leave it out. Or else"
    ):
        draw(picture, PICTURE, host)


def test_a_window_of_a_long_video_stops_it(host, tmp_path):
    loud(host, "wan_vace", "transformer", "proj_out.weight")
    request = LongRequest(replace(VIDEO, num_frames=9), window=5, overlap=1)
    with pytest.raises(PiyingError, match=f"Sampling: the transformer in fp32 {NO_NUMBERS} at step 1 of 2"):
        make_long_video(ModelHandle(WAN_VACE, "loud"), request, host)
    assert list(tmp_path.rglob("*.mp4")) == []
    assert list(host.cache_folder().rglob("*.mkv")) == []


def test_fp16_is_computed_again_and_what_was_chosen_by_hand_is_not(host, toy_sizes, monkeypatch, caplog):
    """Plans are made for a card; the work is done on the CPU."""
    monkeypatch.setattr(execute_plan, "read_machine", lambda host, second: synthetic(8.0, 32.0))
    loud(host, "hunyuan_dit", "vae", "decoder.conv_in.weight", 6e4)
    picture, record = draw(ModelHandle(HUNYUAN_DIT, "loud"), PICTURE, host)
    assert picture.isfinite().all()
    assert record["computes"]["decode"] == "bf16"
    assert "decode: vae overflows in fp16: it is computed again in a wider number type." in caplog.text
    with pytest.raises(PiyingError, match="Likely cause: fp16 ends at 65504: set precision to bf16 or fp32."):
        draw(ModelHandle(HUNYUAN_DIT, "loud", "fp16"), PICTURE, host)


# The parts


def choice(compute="bf16", storage=None, phase="sample"):
    return PhasePlan(phase, "transformer", compute, storage or compute, "resident", "whole", False, 0, 0, 0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_number_type_is_looked_at(dtype, value):
    check = finite_check(choice())
    tensor = torch.zeros(3, 4, dtype=dtype)
    check(tensor, "")
    tensor[2, 3] = value
    with pytest.raises(NonFiniteError):
        check(tensor, "at step 3 of 4")


def test_the_likeliest_cause_comes_first():
    said = str(NonFiniteError(choice("fp16", "fp8"), "at step 3 of 4").explained(["cfg 90: set it below 20."]))
    assert said.startswith(
        "Sampling: the transformer in fp16 gave values that are no numbers (NaN or infinity) at step 3"
    )
    wanted = (
        "cfg 90",
        "fp16 ends at 65504",
        "weights rounded to fp8: set memory to streamed",
        "the transformer's file",
    )
    assert [said.index(one) for one in wanted] == sorted(said.index(one) for one in wanted)
    encoded = str(NonFiniteError(choice(phase="encode")).explained(["cfg 90: set it below 20."]))
    assert "cfg" not in encoded


@pytest.mark.parametrize(("compute", "wider", "calls"), [("fp16", True, 2), ("fp16", False, 1), ("bf16", True, 1)])
def test_a_type_is_tried_once(compute, wider, calls):
    seen = []

    def attempt(overflows):
        seen.append(list(overflows))
        raise NonFiniteError(choice(compute))

    with pytest.raises(PiyingError, match=NO_NUMBERS):
        retry_after_overflow(attempt, lambda overflow: wider, [])
    assert len(seen) == calls


def test_what_was_stored_before_is_looked_at(tmp_path):
    store = TensorCache(tmp_path, 4)
    store.put({"key": 1}, {"latents": torch.tensor([1.0, math.nan])})
    store.put({"key": 2}, {"latents": torch.tensor([1.0, 2.0])})
    assert store.get({"key": 1}) is None
    assert store.get({"key": 2})["latents"].tolist() == [1.0, 2.0]


def test_cut_off_frames_are_said(host, caplog):
    from piying.core.wan.task.frames import frames_of

    frames = torch.full((1, 8, 8, 3), 0.5)
    frames[0, 0, 0, 0] = math.nan
    with caplog.at_level(logging.WARNING, "piying"):
        assert frames_of(frames, "control video")[0, 0, 0].tolist() == [0.0, 0.5, 0.5]
    assert "The control video holds values that are no numbers (NaN); they count as black." in caplog.text
