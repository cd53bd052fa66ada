"""What is given up for speed: what each measure does exactly, and that without any nothing changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.host.headless import HeadlessHost
from piying.core.lora.catalog import with_lora
from piying.core.wan.distilled import with_distilled
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import SPEEDS, WanRequest, check_request
from piying.core.wan.run import sample
from piying.core.wan.speed import speed_notes, with_speed
from piying.core.wan.step_cache import MAX_IN_A_ROW, StepCache
from piying.core.wan.transformer import predict

REQUEST = WanRequest("a red circle moves right", "", 32, 32, 5, steps=4, cfg=4.0, shift=5.0, seed=3)
HANDLE = ModelHandle(WAN_VACE, "built-in", "fp32")


@pytest.fixture
def host(tmp_path):
    return HeadlessHost(chosen_device="cpu", cache=tmp_path / "cache")


@pytest.fixture
def counted(host):
    """Sample, and return frames, record and how often the blocks of the end ran, a prompt each."""

    def run(request):
        sample(HANDLE, replace(request, steps=1, seed=request.seed + 1), host)  # the transformer is then cached
        blocks = model_cache._models["wan_vace/transformer"][1].blocks
        calls = []
        hook = blocks[-1].register_forward_hook(lambda *_: calls.append(1))
        try:
            frames, record = sample(HANDLE, request, host)
        finally:
            hook.remove()
        return frames, record, len(calls)

    return run


# --- guidance in a range of steps --------------------------------------------------------------------------------


def test_guidance_that_ends_equals_the_plain_pipeline_told_to_end_it(counted):
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    pipeline = WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=REQUEST.shift)

    def end_it(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 1.0
        return tensors

    plain = pipeline(
        prompt=REQUEST.prompt,
        negative_prompt="",
        width=32,
        height=32,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        callback_on_step_end=end_it,
        output_type="np",
    ).frames[0]
    frames, _, calls = counted(replace(REQUEST, cfg_end=0.5))
    assert torch.equal(frames, torch.from_numpy(plain))
    assert calls == 2 + 2 + 1 + 1


def test_guidance_may_begin_late(counted):
    _, _, calls = counted(replace(REQUEST, cfg_start=0.25))
    assert calls == 1 + 2 + 2 + 2
    assert [REQUEST.cfg_at(step, 4) for step in range(4)] == [4.0] * 4


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"cfg_start": 0.5, "cfg_end": 0.5}, "cfg_start is 0.5 and cfg_end 0.5"),
        ({"cfg_end": 1.5}, "both from 0 to 1"),
        ({"step_cache": 2.0}, "step_cache is 2. It goes from 0"),
        ({"speed": "warp"}, "speed is 'warp'. Choose one of: reference, balanced, fast, draft"),
    ],
)
def test_measures_out_of_range_are_refused(measures, said):
    with pytest.raises(PiyingError, match=said):
        check_request(replace(REQUEST, **measures))


# --- steps forecast ----------------------------------------------------------------------------------------------


def test_a_cache_that_skips_nothing_changes_nothing(counted):
    plain, record, calls = counted(REQUEST)
    assert (calls, "steps_forecast" in record) == (8, False)
    cached, record, again = counted(replace(REQUEST, step_cache=1e-9))
    assert torch.equal(plain, cached)
    assert (again, record["steps_forecast"]) == (8, 0)


def test_steps_are_left_out_but_the_first_and_the_last(counted, caplog):
    caplog.set_level("INFO", logger="piying")
    frames, record, calls = counted(replace(REQUEST, steps=12, cfg=1.0, step_cache=1.0))
    # The first three, then one after every three that are left out, and the last.
    assert (calls, record["steps_forecast"]) == (6, 6)
    assert "Speed: 6 of 12 steps were forecast." in caplog.messages
    assert frames.isfinite().all()


def steps_computed(steps, threshold=1.0, scales=None, changes=None):
    """Return which steps a cache has computed, fed with tokens that change by so much."""
    cache, computed = StepCache(threshold), []
    tokens = torch.ones(1, 16, 4)
    for step in range(steps):
        cache.begin(step, steps, scales[step] if scales else 1.0, 1 - step / steps)
        before, after = [tokens], [tokens * (2 + (changes[step] if changes else 0.0))]
        if not cache.skips(before, after):
            computed.append(step)
            cache.add([after[0] + 1])
    return computed


def test_no_more_than_so_many_are_left_out_in_a_row():
    computed = steps_computed(20)
    assert computed[:3] == [0, 1, 2] and computed[-1] == 19
    assert max(later - earlier for earlier, later in pairwise(computed)) == MAX_IN_A_ROW + 1


def test_change_is_counted_from_the_last_step_computed():
    creeping = [0.02 * step for step in range(20)]
    assert steps_computed(20, 0.05, changes=creeping) == [0, 1, 2, 5, 8, 11, 15, 19]


def test_under_another_strength_of_the_control_two_steps_are_computed():
    scales = [1.0] * 10 + [0.0] * 10
    computed = steps_computed(20, scales=scales)
    assert {10, 11} <= set(computed) and 12 not in computed


@pytest.mark.parametrize(("level", "expected"), [(0.6, 7.0), (0.7, 7.5), (0.2, 7.0)])
def test_a_forecast_follows_half_of_the_line_but_no_further_than_its_points_are_apart(level, expected):
    cache = StepCache(1.0)
    for step, before in enumerate((1.0, 0.8)):
        cache.begin(step, 10, 1.0, before)
        cache.add([torch.tensor([10 * before]), torch.tensor([-before])])
    cache.begin(2, 10, 1.0, level)
    assert torch.cat(cache.forecast(2)).tolist() == pytest.approx([expected, -expected / 10])
    assert len(cache.forecast(1)) == 1


def test_prompts_that_were_not_followed_before_are_computed():
    cache, tokens = StepCache(1.0), torch.ones(1, 16, 4)
    for step, prompts in enumerate((1, 1, 1, 2, 2, 2)):
        cache.begin(step, 10, 1.0, 1 - step / 10)
        skips = cache.skips([tokens] * prompts, [2 * tokens] * prompts)
        assert skips == (step == 5), step
        if not skips:
            cache.add([tokens] * prompts)


@pytest.mark.parametrize("together", [False, True])
def test_a_step_that_does_not_differ_is_forecast_as_it_was(together):
    from diffusers import WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel.from_pretrained(built_in("wan_vace").path / "transformer")
    config, draw = transformer.config, torch.Generator().manual_seed(1)
    latents = torch.randn(1, config.in_channels, 2, 4, 4, generator=draw)
    control = torch.randn(1, config.vace_in_channels, 2, 4, 4, generator=draw)
    embeds = [torch.randn(1, 8, config.text_dim, generator=draw) for _ in range(2)]
    asked = {"timestep": torch.tensor([500]), "embeds": embeds, "control": control}
    cache = StepCache(0.5)
    with torch.no_grad():
        plain = predict(transformer, latents, **asked)
        results = []
        for step in range(4):
            cache.begin(step, 10, 1.0, 1 - step / 10)
            results.append(predict(transformer, latents, **asked, cache=cache, batched=together))
        cache.begin(4, 10, 1.0, 0.6)
        one = predict(transformer, latents, **{**asked, "embeds": embeds[:1]}, cache=cache, batched=together)
    assert cache.skipped == 2
    assert together or all(torch.equal(*pair) for pair in zip(results[0], plain, strict=True))
    for result in results:
        for pair in zip(result, plain, strict=True):
            torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)
    assert len(one) == 1, "guidance ended; what is remembered of the prompt still serves"
    torch.testing.assert_close(one[0], plain[0], atol=1e-5, rtol=1e-4)


def test_the_plan_counts_what_is_remembered():
    from piying.core.planner.phases import Component
    from piying.core.wan.phases import sampling_memory

    transformer = Component("transformer", None, (None,) * 45, "bf16", hidden=1536, inner=8960)
    unit = 2 * 32760 * 1536
    plain, cached = (sampling_memory(transformer, 32760, 2, step_cache=on).activations for on in (False, True))
    assert cached - plain == pytest.approx(0.25 * unit, rel=1e-2)


# --- code made for the blocks ------------------------------------------------------------------------------------


def test_compiled_blocks_give_the_same_and_are_compiled_once_for_all(monkeypatch):
    from diffusers import WanVACETransformer3DModel
    from piying.core.wan import transformer as compiling

    transformer = WanVACETransformer3DModel.from_pretrained(built_in("wan_vace").path / "transformer").eval()
    config, draw = transformer.config, torch.Generator().manual_seed(1)
    asked = {
        "latents": torch.randn(1, config.in_channels, 1, 4, 4, generator=draw),
        "timestep": torch.tensor([500]),
        "embeds": [torch.randn(1, 8, config.text_dim, generator=draw) for _ in range(2)],
        "control": torch.randn(1, config.vace_in_channels, 1, 4, 4, generator=draw),
    }
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", count)
    with torch.no_grad():
        plain = predict(transformer, **asked)
        with compiling.compiled_blocks(transformer):
            found = predict(transformer, **asked)
            made = len(graphs)
            predict(transformer, **asked)
        again = predict(transformer, **asked)
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))
    assert all(torch.equal(*pair) for pair in zip(again, plain, strict=True))
    assert 0 < made == len(graphs) < len(transformer.blocks) + len(transformer.vace_blocks)


@pytest.mark.parametrize(
    ("placement", "device", "said"),
    [("resident", "cpu", "no card"), ("streamed", "cuda", "streaming"), ("resident", "cuda:1", "")],
)
def test_blocks_are_compiled_on_a_card_that_holds_them(placement, device, said):
    from piying.core.planner.plan_types import PhasePlan
    from piying.core.wan.transformer import reason_not_to_compile

    choice = PhasePlan("sample", "transformer", "bf16", "bf16", placement, "whole", False, 1, 1, 1, 1.0)
    assert said in reason_not_to_compile(choice, device)
    assert bool(reason_not_to_compile(choice, device)) == bool(said)


def test_where_no_code_can_be_made_blocks_run_as_they_are(counted, caplog, monkeypatch):
    from piying.core.wan import transformer as compiling
    from piying.core.wan import video_run as run

    def fails(graph, inputs):
        raise RuntimeError("no compiler is\nhere\n\nSet TORCH_LOGS for more")

    torch._dynamo.reset()  # of what other tests have compiled
    monkeypatch.setattr(compiling, "BACKEND", fails)
    monkeypatch.setattr(run, "reason_not_to_compile", lambda choice, device: "")
    plain, _, _ = counted(REQUEST)
    frames, record, calls = counted(replace(REQUEST, compile_blocks=True))
    assert torch.equal(frames, plain)
    assert calls == 8
    assert record["compiled"] is False
    assert record["not_compiled"].startswith("BackendCompilerFailed: ")
    assert any("Compiling the blocks failed (BackendCompilerFailed: " in line for line in caplog.messages)
    assert any("no compiler is here). They run as they are." in line for line in caplog.messages)


def test_on_a_cpu_compiling_is_left_out_and_said(counted, caplog):
    caplog.set_level("INFO", logger="piying")
    plain, off, _ = counted(REQUEST)
    frames, record, _ = counted(replace(REQUEST, compile_blocks=True))
    assert torch.equal(frames, plain)
    assert (record["compiled"], record["not_compiled"]) == (False, "the device is no card")
    assert not {"compiled", "not_compiled"} & set(off), "nobody asked for it"
    assert any("compile_blocks is left out: the device is no card" in line for line in caplog.messages)


# --- few steps -----------------------------------------------------------------------------------------------------

NAMED = "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors"  # of the manifest, which knows it by its name


@pytest.fixture
def models(tmp_path):
    """A host with a LoRA of the manifest's name that fits the built-in model."""
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)
    width = built_in_width()
    (tmp_path / "loras").mkdir()
    parts = {"lora_A.weight": (4, width), "lora_B.weight": (width, 4)}
    tensors = {f"blocks.0.attn1.to_q.{end}": torch.randn(shape, generator=draw) for end, shape in parts.items()}
    save_file(tensors, tmp_path / "loras" / NAMED)
    return HeadlessHost(models=[tmp_path], chosen_device="cpu", cache=tmp_path / "cache")


def built_in_width():
    from piying.core.wan.model import load

    return load(HANDLE, HeadlessHost(chosen_device="cpu")).components()["transformer"].hidden


@pytest.mark.parametrize("word", ["fast", "draft"])
def test_an_installed_lora_for_few_steps_is_used(models, word, caplog):
    caplog.set_level("INFO", logger="piying")
    _, record = sample(HANDLE, replace(REQUEST, steps=50, speed=word), models)
    assert (record["steps"], record["cfg"], record["shift"]) == (4, 1.0, 5.0)
    assert record["loras"] == [{"name": NAMED, "strength": 1.0}]
    assert f"Speed: 4 steps, cfg 1, shift 5 in place of 50 steps, cfg 4, shift 5, with {NAMED}." in caplog.messages


@pytest.mark.parametrize("changes", [{"speed": "reference"}, {"speed": "balanced"}, {"speed": "fast", "steps": 8}])
def test_it_is_left_alone_otherwise(models, changes):
    request = replace(REQUEST, steps=50)
    assert with_distilled(HANDLE, replace(request, **changes), models) == (HANDLE, replace(request, **changes))


def test_one_that_is_on_the_model_already_says_the_settings(models):
    handle = with_lora(HANDLE, NAMED, 0.5, models)
    asked = replace(REQUEST, steps=50, cfg=6.0, shift=16.0, speed="draft")
    again, request = with_distilled(handle, asked, models)
    assert again == handle, "no second one is put on it"
    assert request == replace(asked, steps=4, cfg=1.0, shift=5.0)


def test_one_for_another_model_is_passed_over(models, tmp_path):
    from safetensors.torch import save_file

    parts = {"lora_A.weight": (4, 5120), "lora_B.weight": (5120, 4)}
    tensors = {f"blocks.0.attn1.to_q.{end}": torch.zeros(shape) for end, shape in parts.items()}
    save_file(tensors, tmp_path / "loras" / NAMED)
    asked = replace(REQUEST, steps=50, speed="fast")
    assert with_distilled(HANDLE, asked, models) == (HANDLE, asked)


# --- one word ----------------------------------------------------------------------------------------------------


def test_reference_is_what_there_was_before():
    assert with_speed(replace(REQUEST, steps=50)) == replace(REQUEST, steps=50)
    assert WanRequest("x").speed == "reference" == SPEEDS[0]


def test_each_word_gives_up_more():
    done = [with_speed(replace(REQUEST, steps=50, speed=word)) for word in SPEEDS]
    assert [each.step_cache for each in done] == sorted(each.step_cache for each in done)
    assert len({(each.steps, each.step_cache) for each in done}) == len(SPEEDS)
    assert [each.steps for each in done] == [50, 50, 33, 25]


def test_what_is_set_by_hand_stays():
    by_hand = replace(REQUEST, steps=50, speed="fast", cfg_start=0.1, step_cache=0.01)
    done = with_speed(by_hand)
    assert (done.cfg_start, done.cfg_end, done.step_cache) == (0.1, 1.0, 0.01)


def test_few_steps_stay_as_they_are():
    few = replace(REQUEST, steps=4, speed="draft")
    assert with_speed(few) == replace(few, batch_cfg=True)
    assert "few already" in speed_notes(few, with_speed(few))[0]


def test_a_word_reaches_the_work_and_the_record(counted, caplog):
    caplog.set_level("INFO", logger="piying")
    _, record, calls = counted(replace(REQUEST, steps=20, speed="draft"))
    assert (record["steps"], record["step_cache"], record["speed"]) == (10, 0.12, "draft")
    assert calls == 10 - record["steps_forecast"], "both prompts in one batch"
    assert "Speed: 10 steps in place of 20." in caplog.messages


# --- both prompts in one batch -----------------------------------------------------------------------------------


def test_both_prompts_in_one_batch_give_the_same_video_but_for_rounding(counted):
    plain, _, calls = counted(REQUEST)
    frames, _, together = counted(replace(REQUEST, batch_cfg=True))
    assert (calls, together) == (8, 4)
    torch.testing.assert_close(frames, plain, atol=1e-4, rtol=0)


def sampled_with(vram, **options):
    """Return how the plan samples 1.3B at 480p on a card with so many GB, and its sentences."""
    from piying.core.catalog.component_sizes import listed_components
    from piying.core.planner.machine import synthetic
    from piying.core.planner.plan import plan
    from piying.core.wan.phases import VideoWork, phases

    made = plan(phases(listed_components("wan2.1-vace-1.3b"), VideoWork(832, 480, 81, **options)), synthetic(vram))
    return made.phase("sample"), made.reasons


def test_one_batch_is_for_cards_that_hold_it():
    assert sampled_with(16, batch_cfg=True)[0].variant == "batched"
    small, reasons = sampled_with(7, batch_cfg=True)
    assert small.variant == "whole"
    assert any("one prompt after the other, because" in reason for reason in reasons)
    assert sampled_with(16)[0].variant == "whole", "the reference path"
    assert sampled_with(16, batch_cfg=True, cfg=1.0)[0].variant == "whole", "there is one prompt"


def test_the_plan_asked_for_is_that_of_the_word(host):
    from piying.core.families.diffusion_model import estimate
    from piying.core.wan.phases import VideoWork

    def asked(request):
        return estimate(HANDLE, host, VideoWork.of(request))

    few = asked(replace(REQUEST, steps=40, speed="draft")).plan
    all_of_them = asked(replace(REQUEST, steps=40)).plan
    assert (few.phase("sample").variant, all_of_them.phase("sample").variant) == ("batched", "whole")
    assert few.phase("sample").seconds < all_of_them.phase("sample").seconds
    with pytest.raises(PiyingError, match="speed is 'warp'"):
        asked(replace(REQUEST, speed="warp"))


@pytest.mark.parametrize("word", SPEEDS)
def test_the_planner_counts_the_steps_that_are_taken(word):
    """Applied twice, draft would plan for a quarter of the steps."""
    work = WAN_VACE.work({"steps": 40, "speed": word}, HANDLE)
    assert work.steps == with_speed(replace(REQUEST, steps=40, speed=word)).steps
