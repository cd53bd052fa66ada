"""Guidance: the guiders' arithmetic, blocks left out as diffusers does it, and NAG as its authors compute it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from piying.core.catalog.component_sizes import found_components
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.wan.family import WAN_VACE
from piying.core.wan.guidance import Guidance, Guider, check_blocks, parse_blocks, parse_scales
from piying.core.wan.nag import nag_enabled
from piying.core.wan.phases import VideoWork, nag_flops_per_token, sample_phase
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from piying.core.wan.transformer import predict
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

REQUEST = WanRequest("a red circle moves right", "blue", 64, 48, 9, steps=4, cfg=3.0, shift=5.0, seed=7)


@pytest.fixture
def host(tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    return HeadlessHost(chosen_device="cpu", **folders)


@pytest.fixture(scope="module")
def given():
    """The built-in transformer with inputs for one prediction."""
    from diffusers import WanVACETransformer3DModel

    path = built_in("wan_vace").path / "transformer"
    transformer = WanVACETransformer3DModel.from_pretrained(path, torch_dtype=torch.float32)
    config, draw = transformer.config, torch.Generator().manual_seed(1)
    latents = torch.randn(1, config.in_channels, 3, 4, 4, generator=draw)
    control = torch.randn(1, config.vace_in_channels, 3, 4, 4, generator=draw)
    embeds = [torch.randn(1, 512, config.text_dim, generator=draw) for _ in range(2)]
    return transformer, latents, torch.tensor([500]), embeds, control


def run(given, **named):
    transformer, latents, timestep, embeds, control = given
    with torch.no_grad():
        return predict(transformer, latents, timestep, control=control, **{"embeds": embeds, **named})


@pytest.mark.parametrize("method", ["cfg_zero_star", "apg", "tcfg"])
def test_a_method_is_that_of_diffusers_guider(method):
    from diffusers import (
        AdaptiveProjectedGuidance,
        ClassifierFreeZeroStarGuidance,
        TangentialClassifierFreeGuidance,
    )

    theirs = {
        "cfg_zero_star": ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=1),
        "apg": AdaptiveProjectedGuidance(guidance_scale=4.0, eta=0.0, adaptive_projected_guidance_rescale=0.0),
        "tcfg": TangentialClassifierFreeGuidance(guidance_scale=4.0),
    }[method]
    prompt, negative = torch.randn(2, 1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    guider = Guider(Guidance(method), 10)
    plain = negative + 4.0 * (prompt - negative)
    for step in (0, 3):
        theirs.set_state(step, 10, None)
        found = guider.flow(step, 4.0, {"prompt": prompt, "negative": negative})
        assert torch.equal(found, theirs.forward(prompt, negative).pred)
        assert not torch.allclose(found, plain)
    assert torch.equal(guider.flow(0, 1.0, {"prompt": prompt}), prompt), "a step without guidance stays as it is"
    if method == "cfg_zero_star":
        assert not guider.flow(0, 4.0, {"prompt": prompt, "negative": negative}).any()


def test_blocks_are_left_out_as_diffusers_leaves_them_out(given):
    from diffusers.hooks import LayerSkipConfig
    from diffusers.hooks.layer_skip import _apply_layer_skip_hook

    transformer, latents, timestep, embeds, control = given
    found = run(given, embeds=[embeds[0]] * 2, skipped=[frozenset(), frozenset({1})])
    with torch.no_grad():
        whole = transformer(latents, timestep, embeds[0], control_hidden_states=control, return_dict=False)[0]
        _apply_layer_skip_hook(transformer, LayerSkipConfig(indices=[1], fqn="blocks"), name="test")
        try:
            skipping = transformer(latents, timestep, embeds[0], control_hidden_states=control, return_dict=False)[0]
        finally:
            transformer.blocks[1]._diffusers_hook.remove_hook("test")
    torch.testing.assert_close(found[0], whole)
    torch.testing.assert_close(found[1], skipping)
    assert not torch.allclose(whole, skipping)


def test_skip_layer_guidance_adds_what_the_guider_of_diffusers_adds():
    from diffusers import SkipLayerGuidance

    prompt, negative, skipped = torch.randn(3, 1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    theirs = SkipLayerGuidance(
        guidance_scale=4.0,
        skip_layer_guidance_scale=2.0,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_guidance_layers=[1],
    )
    theirs.set_state(3, 10, None)
    guider = Guider(Guidance(slg_scale=2.0, slg_blocks=(1,)), 10)
    found = guider.flow(3, 4.0, {"prompt": prompt, "negative": negative, "skipped": skipped})
    torch.testing.assert_close(found, theirs.forward(prompt, negative, skipped).pred)


def their_nag(attn, hidden, text, away, guidance):
    """Cross-attention as NAG's paper has it: equations 7 to 10."""

    def attended(context):
        query, key = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(context))
        parts = [one.unflatten(2, (attn.heads, -1)).transpose(1, 2) for one in (query, key, attn.to_v(context))]
        return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)

    positive, negative = attended(text), attended(away)
    extrapolated = guidance.nag_scale * positive - (guidance.nag_scale - 1) * negative
    ratio = extrapolated.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    limited = extrapolated * ratio.clamp(max=guidance.nag_tau) / ratio
    return attn.to_out[0](guidance.nag_alpha * limited + (1 - guidance.nag_alpha) * positive)


@pytest.mark.parametrize("scale", [1.5, 11.0])
def test_nag_is_computed_as_published(given, scale):
    transformer, guidance = given[0], Guidance(nag_scale=scale)
    attn, draw = transformer.blocks[0].attn2, torch.Generator().manual_seed(2)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    hidden, text, away = torch.randn(3, 1, 7, width, generator=draw)
    with nag_enabled(transformer, guidance) as nag, torch.no_grad():
        nag.negative, nag.rows = away, 1
        found = attn(hidden, text, None, None)
        torch.testing.assert_close(found, their_nag(attn, hidden, text, away, guidance), atol=1e-5, rtol=1e-5)
        nag.rows = 0
        unguided = attn(hidden, text, None, None)
    assert torch.equal(unguided, attn(hidden, text, None, None)), "afterwards the layers are as they were"
    assert not torch.allclose(found, unguided)


def test_nag_guides_the_prompt_and_leaves_the_negative_one(given):
    transformer, _, _, embeds, _ = given
    plain = run(given)
    with nag_enabled(transformer, Guidance(nag_scale=5.0)) as nag:
        one_by_one = run(given, nag=nag, negative=embeds[1])
        batched = run(given, nag=nag, negative=embeds[1], batched=True)
    assert not torch.allclose(one_by_one[0], plain[0], atol=1e-3)
    assert torch.equal(one_by_one[1], plain[1])
    for found, expected in zip(batched, one_by_one, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance("cfg_zero_star"),
        Guidance("apg"),
        Guidance("tcfg"),
        Guidance(nag_scale=4.0),
        Guidance(slg_scale=1.0, slg_blocks=(1,), slg_start=0.0),
        Guidance(cfg_steps=(5.0, 1.0)),
    ],
    ids=lambda guidance: f"{guidance.method}-{guidance.nag_scale:g}-{guidance.slg_scale:g}-{len(guidance.cfg_steps)}",
)
def test_each_guidance_changes_a_video_and_is_recorded(host, guidance):
    plain, _ = sample(ModelHandle(WAN_VACE, "built-in"), REQUEST, host)
    frames, record = sample(ModelHandle(WAN_VACE, "built-in"), replace(REQUEST, guidance=guidance), host)
    assert torch.isfinite(frames).all() and not torch.allclose(frames, plain, atol=1e-3)
    assert record["guidance"]["method"] == guidance.method


def test_at_cfg_1_nag_alone_reads_the_negative_prompt(host):
    one = replace(REQUEST, cfg=1.0, guidance=Guidance(nag_scale=8.0))
    first, _ = sample(ModelHandle(WAN_VACE, "built-in"), one, host)
    second, _ = sample(ModelHandle(WAN_VACE, "built-in"), replace(one, negative_prompt="red"), host)
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_plan_counts_what_guidance_predicts_and_reads():
    def work(**named):
        return VideoWork.of(replace(REQUEST, **named))

    assert work(cfg=1.0).has_nag is False
    assert work(cfg=1.0, guidance=Guidance(nag_scale=4.0)).has_nag is True
    assert work(cfg=1.0, guidance=Guidance(cfg_steps=(4.0, 1.0))).cfg == 4.0
    assert work(guidance=Guidance(slg_scale=1.0, slg_blocks=(0,))).skips_blocks is True
    assert work(guidance=Guidance(slg_scale=0.0, slg_blocks=(0,))).skips_blocks is False


def test_the_time_counts_nags_second_cross_attention(given):
    """What it adds to the operations of a prediction, counted as they are computed."""
    transformer, *_, embeds, _ = given
    counted = []
    for guidance in (Guidance(), Guidance(nag_scale=4.0)):
        # As plain products: what a processor's fused attention does is not counted.
        math = sdpa_kernel(SDPBackend.MATH)
        with nag_enabled(transformer, guidance) as nag, math, FlopCounterMode(display=False) as counter:
            run(given, embeds=embeds[:1], nag=nag, negative=embeds[1])
        counted.append(counter.get_total_flops())
    config, tokens = transformer.config, 3 * 2 * 2
    width = config.num_attention_heads * config.attention_head_dim
    blocks = config.num_layers + len(config.vace_layers)
    # Keys and values of the negative prompt, and its way into the model's width, are made once for all tokens: of a
    # real video, whose tokens are tens of thousands, too few to count.
    of_text = 512 * (blocks * 4 * width**2 + 2 * width * (config.text_dim + width))
    parts = found_components(built_in("wan_vace"), WAN_VACE.rules_of(built_in("wan_vace")))
    works = [VideoWork(32, 32, 9, cfg=1.0, has_nag=nag) for nag in (False, True)]
    planned = [sample_phase(parts["transformer"], work) for work in works]
    added = planned[1].flops - planned[0].flops
    assert added == tokens * nag_flops_per_token(parts["transformer"])
    assert counted[1] - counted[0] == pytest.approx(added + of_text, rel=1e-3)
    assert planned[1].linear_share < planned[0].linear_share


@pytest.mark.parametrize(
    ("guidance", "cfg", "said"),
    [
        (
            Guidance(slg_scale=1.0, slg_blocks=(0,), slg_start=0.0, slg_end=1.0),
            3.0,
            ["4 of 4 steps predict"],
        ),
        (
            Guidance(slg_scale=1.0, slg_blocks=(0,), slg_start=0.5, slg_end=0.7),
            3.0,
            ["1 of 4 steps predict"],
        ),
        (Guidance(slg_scale=1.0, slg_blocks=(0,), slg_start=0.6, slg_end=0.7), 3.0, ["of 4 steps none is between"]),
        (Guidance(slg_scale=0.0, slg_blocks=(0,)), 3.0, ["slg_blocks is without effect: slg_scale is 0."]),
        (Guidance(slg_scale=1.0), 3.0, []),
        (Guidance("apg"), 1.0, ["method apg is without effect: cfg is 1."]),
        (Guidance("apg", cfg_steps=(4.0, 1.0)), 1.0, []),
        (Guidance("apg"), 3.0, []),
    ],
)
def test_the_plan_says_what_guidance_adds_and_what_is_without_effect(guidance, cfg, said):
    notes = VideoWork.of(replace(REQUEST, cfg=cfg, guidance=guidance)).notes
    assert len(notes) == len(said)
    for note, words in zip(notes, said, strict=True):
        assert words in note


def test_the_scale_of_the_last_number_holds_for_the_rest():
    guidance = Guidance(cfg_steps=parse_scales("6, 4 1"))
    assert parse_scales("6，4、1") == guidance.cfg_steps, "commas of a Chinese keyboard"
    assert [guidance.cfg_at(step, 5.0) for step in range(5)] == [6.0, 4.0, 1.0, 1.0, 1.0]
    assert Guidance().cfg_at(3, 5.0) == 5.0
    assert parse_scales(" ") == ()
    assert parse_scales("6，4、1") == (6.0, 4.0, 1.0) and parse_blocks("0，1") == (0, 1)


@pytest.mark.parametrize("text", ["0.5", "x", "31", "nan", "5, -1"])
def test_what_is_no_scale_is_refused(text):
    with pytest.raises(PiyingError, match="cfg_steps holds"):
        parse_scales(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "1000", "²"])
def test_what_is_no_block_is_refused(text):
    with pytest.raises(PiyingError, match="slg_blocks holds"):
        parse_blocks(text)


def test_blocks_that_a_model_has_not_are_refused():
    guidance = Guidance(slg_scale=1.0, slg_blocks=parse_blocks("1, 9"))
    with pytest.raises(PiyingError, match="slg_blocks holds 9, and the main blocks of this model are 0 to 3"):
        check_blocks(guidance, 4)
    with pytest.raises(PiyingError, match="all 2 blocks"):
        check_blocks(replace(guidance, slg_blocks=(0, 1)), 2)
    check_blocks(replace(guidance, slg_scale=0.0), 4)
