"""Start latents: a sampler that takes some of the steps, and another that goes on from its latents."""

from __future__ import annotations

from dataclasses import replace

import piying
import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.wan.context import Context
from piying.core.wan.family import WAN_VACE
from piying.core.wan.latent_scale import normalised
from piying.core.wan.model import load
from piying.core.wan.phases import VideoWork, phases
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample as sample_vace
from piying.core.wan.task.reference import reference
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.wan_video.run import sample as sample_video
from piying.runner.errors import InvalidGraph
from piying.runner.plan import as_text
from piying.runner.session import Session

from .vace_clips import clip

REQUEST = WanRequest("a red circle moves right", "", 32, 32, 5, steps=6, cfg=2.0, shift=5.0, seed=3)
VACE, VIDEO = ModelHandle(WAN_VACE, "built-in"), ModelHandle(WAN_VIDEO, "built-in")


@pytest.fixture
def host(tmp_path):
    return HeadlessHost(chosen_device="cpu", models=[], cache=tmp_path / "cache", output=tmp_path)


def made(host, handle=VACE, latent=None, task=None, **changes):
    """Return the frames of a run, and the LATENT it leaves."""
    left = {}
    request, given = replace(REQUEST, **changes), {"latent": latent, "on_latent": left.update}
    if handle is VACE:
        frames, _ = sample_vace(handle, request, host, task, **given)
    else:
        frames, _, _ = sample_video(handle, request, host, **given)
    return frames, left


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
@pytest.mark.parametrize(("handle", "task"), [(VACE, None), (VACE, "reference"), (VIDEO, None)])
def test_two_samplers_make_what_one_makes(host, handle, task, sampler):
    """Samplers that keep nothing of the steps before; the others begin anew in the second, as ComfyUI's do."""
    task = task and reference([(clip(1, 32, 32), None)])
    whole, _ = made(host, handle, task=task, sampler=sampler)
    early, latent = made(host, handle, task=task, sampler=sampler, end_at_step=4)
    assert early.shape == whole.shape and not torch.allclose(early, whole, atol=1e-3)
    assert 0.3 < latent["noise_level"] < 0.9
    late, end = made(host, handle, latent, task, sampler=sampler, start_at_step=4)
    torch.testing.assert_close(late, whole, atol=2e-4, rtol=0)
    assert "noise_level" not in end


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m", "dpmpp_2m_sde", "res_multistep"])
def test_every_sampler_goes_on_from_a_later_step(host, sampler):
    _, latent = made(host, VIDEO, sampler=sampler, end_at_step=3)
    late, _ = made(host, VIDEO, latent, sampler=sampler, start_at_step=3)
    whole, _ = made(host, VIDEO, sampler=sampler)
    other, _ = made(host, VIDEO, sampler=sampler, seed=4)
    assert (late - whole).abs().mean() < 0.5 * (other - whole).abs().mean()


def test_finished_latents_are_changed_the_less_the_later_the_first_step(host):
    video, latent = made(host, VIDEO, steps=12)
    far = [
        float((made(host, VIDEO, latent, steps=12, seed=9, start_at_step=start)[0] - video).abs().mean())
        for start in (2, 8, 11)
    ]
    assert far[0] > far[1] > far[2] > 0


def test_the_samples_are_those_of_the_vae(host):
    """What VAE Decode of ComfyUI makes of them is the video."""
    frames, latent = made(host, VIDEO)
    from diffusers import AutoencoderKLWan

    model = load(VIDEO, host)
    vae = AutoencoderKLWan.from_pretrained(model.found.place("vae")[0], torch_dtype=torch.float32)
    with torch.no_grad():
        decoded = vae.decode(latent["samples"]).sample[0].permute(1, 2, 3, 0)
    torch.testing.assert_close((decoded.clamp(-1, 1) + 1) / 2, frames, atol=1e-4, rtol=0)


def test_unfinished_samples_are_as_comfyui_leaves_them(host):
    """`CONST.inverse_noise_scaling` divides by 1 - sigma; its `noise_scaling` without noise multiplies by it again."""
    _, latent = made(host, VIDEO, sampler="euler", end_at_step=3)
    x = normalised(load(VIDEO, host).vae_config, latent["samples"]) * (1 - latent["noise_level"])
    # Mostly noise still: its deviation is that of noise and a little of the clean latents.
    assert 0.8 * latent["noise_level"] < float(x.std()) < 1.5


def test_the_latents_of_an_early_end_are_kept_with_what_is_shown(host, caplog):
    caplog.set_level("INFO")
    first = made(host, VIDEO, end_at_step=2)
    again = made(host, VIDEO, end_at_step=2)
    assert "kept from a run before" in caplog.text
    assert torch.equal(first[0], again[0]) and torch.equal(first[1]["samples"], again[1]["samples"])
    assert first[1]["noise_level"] == again[1]["noise_level"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start_at_step": 6}, "start_at_step is 6, and there are 6 steps. Choose 0 to 5"),
        ({"start_at_step": 3, "end_at_step": 3}, "end_at_step is 3 and start_at_step 3: no step is taken"),
        ({"start_at_step": 3}, "start_at_step is 3, and no latents are connected"),
        ({"start_at_step": 5, "sigmas": "1, 0.8, 0.5"}, "there are 3 steps"),
    ],
)
def test_steps_that_are_none_are_refused(host, changes, said):
    with pytest.raises(PiyingError, match=said):
        made(host, VIDEO, **changes)


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        ({}, "latents are NoneType, and built-in takes one video of 9 channels"),
        ({"samples": torch.zeros(1, 16, 4, 4)}, "latents are 1×16×4×4, and built-in takes one video"),
        ({"samples": torch.zeros(2, 16, 2, 4, 4)}, "latents are 2×16×2×4×4"),
        ({"samples": torch.zeros(1, 9, 3, 8, 4)}, "latents are those of 9 frames of 32×64, .* num_frames to 9"),
        ({"samples": torch.full((1, 9, 2, 4, 4), torch.nan)}, "values that are no numbers"),
        ({"samples": torch.full((1, 9, 2, 4, 4), 1e38)}, r"holds 1e\+38, and a VAE's are within 1e\+06"),
        ({"samples": torch.zeros(1, 9, 2, 4, 4).to_sparse()}, "latents are 1×9×2×4×4"),
        ((torch.zeros(1, 9, 2, 4, 4),), "latents are tuple"),
        ({"samples": torch.zeros(1, 9, 2, 4, 4), "noise_level": "half"}, "have the noise level 'half', which is no"),
        ({"samples": torch.zeros(1, 9, 2, 4, 4), "noise_level": 1.0}, "have the noise level 1.0, which is no number"),
        (
            {"samples": torch.zeros(1, 9, 2, 4, 4), "noise_level": 0.5},
            "stand at noise level 0.5000, at which no step of this sampler begins",
        ),
    ],
)
def test_latents_that_are_none_of_the_video_are_refused(host, latent, said):
    with pytest.raises(PiyingError, match=said):
        made(host, VIDEO, latent, start_at_step=2)


def test_references_of_others_are_left_out(host):
    _, latent = made(host, VIDEO, end_at_step=2)
    made(host, VIDEO, {**latent, "references": "others"}, start_at_step=2)


def test_another_step_of_the_same_schedule_is_named(host):
    _, latent = made(host, VIDEO, end_at_step=2)
    with pytest.raises(PiyingError, match="and step 4 of this sampler begins at .* Set start_at_step to 2"):
        made(host, VIDEO, latent, start_at_step=4)


def test_what_is_left_out_is_said(host, caplog):
    _, latent = made(host, VIDEO)
    made(host, VIDEO, {**latent, "noise_mask": torch.ones(1, 1, 4, 4)})
    assert "The noise mask of latents is left out" in caplog.text
    assert "without effect: start_at_step 0 begins with noise alone" in caplog.text


def test_the_plan_counts_the_steps_that_are_taken(host):
    components = load(VIDEO, host).components()
    work = VideoWork.of(replace(REQUEST, steps=20, start_at_step=5, end_at_step=12))
    sampling = next(phase for phase in phases(components, work) if phase.name == "sample")
    assert sampling.passes == 7
    assert "It takes steps 6 to 12 of 20." in sampling.notes


def test_each_expert_takes_its_share_of_the_steps_that_are_taken(host):
    components = load(VIDEO, host).components()
    pair = {**components, "transformer_2": replace(components["transformer"], name="transformer_2")}
    for start, end, passes in ((0, 20, [4, 16]), (2, 20, [2, 16]), (6, 10, [4]), (0, 3, [3])):
        work = VideoWork.of(replace(REQUEST, steps=20, start_at_step=start, end_at_step=end), high_steps=4)
        found = [phase.passes for phase in phases(pair, work) if phase.name.startswith("sample")]
        assert found == passes


def test_speed_leaves_out_no_step_that_is_counted(host, caplog):
    caplog.set_level("INFO")
    _, latent = made(host, VIDEO, steps=20, end_at_step=2, speed="draft")
    assert "start_at_step and end_at_step count 20 steps, so all of them stay." in caplog.text
    assert latent["noise_level"] > 0.9


def graph(**second):
    """Return a workflow of two samplers, of which the second goes on where the first stops."""
    widgets = {"prompt": "a red circle", "negative_prompt": "", "width": 32, "height": 32, "num_frames": 5, "steps": 6}
    widgets |= {"cfg": 2.0, "shift": 5.0, "seed": 3, "sampler": "euler", "model": ["1", 0]}
    load = {"model": "built-in", "precision": "auto"}
    return {
        "1": {"class_type": "PiyingLoadWanVideo", "inputs": load},
        "2": {"class_type": "PiyingWanSample", "inputs": {**widgets, "end_at_step": 4}},
        "3": {
            "class_type": "PiyingWanSample",
            "inputs": {**widgets, "latents": ["2", 2], "start_at_step": 4, **second},
        },
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "a"}},
    }


def test_a_workflow_of_two_samplers_runs_and_is_planned_and_checked(tmp_path):
    finished = piying.runner.run(graph(), output=tmp_path, device="cpu", models=[])
    assert len(finished.files) == 5
    assert finished.outputs("2")[2][0]["noise_level"] > 0 and "noise_level" not in finished.outputs("3")[2][0]
    session = Session(output=tmp_path, device="cpu", models=[])
    with session.one_pass():
        planned = as_text(session.plan(*session.check(session.prepare(graph()))[:2]))
        with pytest.raises(InvalidGraph, match="there are 6 steps. Choose 0 to 5"):
            session.check(session.prepare(graph(start_at_step=6)))
    assert "It takes steps 1 to 4 of 6." in planned and "It takes steps 5 to 6 of 6." in planned


def test_a_loop_goes_on_as_a_loop(host):
    context = Context(loop=True)
    whole, _ = made(host, VIDEO, sampler="euler", context=context, num_frames=9)
    _, latent = made(host, VIDEO, sampler="euler", context=context, num_frames=9, end_at_step=3)
    late, _ = made(host, VIDEO, latent, sampler="euler", context=context, num_frames=9, start_at_step=3)
    torch.testing.assert_close(late, whole, atol=2e-4, rtol=0)
