"""Attention kernels: which is chosen on which card, that it is used, and that one that cannot run is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.wan.attention import KERNELS, Attention, Kernel, attention_for, choose_attention, kernel_fault
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import ATTENTIONS, SPEEDS, WanRequest, check_request
from piying.core.wan.run import sample
from piying.core.wan.transformer import predict

TURING, AMPERE, HOPPER, BLACKWELL = (7, 5), (8, 6), (9, 0), (12, 0)
ALL = frozenset(kernel.package for kernel in KERNELS)
REQUEST = WanRequest("a red circle", "", 32, 32, 5, steps=1, cfg=1.0, shift=5.0, seed=3)
HANDLE = ModelHandle(WAN_VACE, "built-in", "fp32")


def chosen(asked="auto", speed="fast", card=HOPPER, installed=ALL, fails=()):
    return choose_attention(
        asked,
        speed,
        capability=card,
        is_installed=installed.__contains__,
        test=lambda kernel: "it fails here" if kernel.backend in fails else "",
    )


@pytest.mark.parametrize(
    ("speed", "card", "installed", "name"),
    [
        ("reference", HOPPER, ALL, "sdpa"),
        ("balanced", HOPPER, ALL, "flash_3"),
        ("balanced", HOPPER, frozenset(), "native_cudnn"),
        ("balanced", BLACKWELL, ALL, "native_cudnn"),
        ("balanced", AMPERE, ALL, "sdpa"),
        ("fast", AMPERE, ALL, "sage"),
        ("draft", HOPPER, ALL, "sage"),
        ("draft", AMPERE, frozenset(), "sdpa"),
        ("draft", TURING, ALL, "sdpa"),
        ("draft", None, ALL, "sdpa"),
    ],
)
def test_auto_takes_what_the_card_can_do_and_speed_allows(speed, card, installed, name):
    assert chosen(speed=speed, card=card, installed=installed).name == name


def test_auto_passes_over_what_fails():
    assert chosen(fails={"sage"}).name == "flash_3"
    assert chosen(fails={"sage", "_flash_3", "flash", "_native_cudnn", "xformers"}).name == "sdpa"


@pytest.mark.parametrize("word", ATTENTIONS[2:])
def test_a_word_is_kept_whatever_speed_says(word):
    assert {chosen(word, speed, AMPERE).kernel.name for speed in SPEEDS} == {word}
    assert chosen("sdpa").kernel is None


def test_a_word_may_stand_for_several():
    assert chosen("flash", card=HOPPER).name == "flash_3"
    assert chosen("flash", card=HOPPER, installed=frozenset({"flash_attn"})).name == "flash"


@pytest.mark.parametrize(
    ("asked", "more", "said"),
    [
        ("sage", {"card": None}, "attention is 'sage', and it needs an NVIDIA card. Choose auto or sdpa"),
        ("flash", {"card": TURING}, "compute capability is 7.5"),
        ("xformers", {"installed": frozenset()}, "the package xformers is not installed"),
        ("cudnn", {"fails": {"_native_cudnn"}}, "it fails here"),
    ],
)
def test_what_cannot_run_is_refused_by_name(asked, more, said):
    with pytest.raises(PiyingError, match=said):
        chosen(asked, **more)


def test_the_sampler_refuses_it_before_it_loads_anything(tmp_path):
    host = HeadlessHost(chosen_device="cpu", cache=tmp_path)
    with pytest.raises(PiyingError, match="attention is 'flash', and it needs an NVIDIA card"):
        sample(HANDLE, replace(REQUEST, attention="flash"), host)
    with pytest.raises(PiyingError, match="attention is 'turbo'. Choose one of: auto, sdpa"):
        check_request(replace(REQUEST, attention="turbo"))


def test_the_plan_and_the_record_say_which(tmp_path, caplog):
    caplog.set_level("INFO", logger="piying")
    _, record = sample(HANDLE, REQUEST, HeadlessHost(chosen_device="cpu", cache=tmp_path))
    assert record["attention"] == "sdpa"
    assert any("- sample: attention by torch, as plain diffusers has it" in line for line in caplog.messages)


def active():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry.get_active_backend()[0].value


def test_the_kernel_computes_and_is_gone_afterwards():
    from diffusers import WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel.from_pretrained(built_in("wan_vace").path / "transformer")
    config, draw = transformer.config, torch.Generator().manual_seed(1)
    latents = torch.randn(1, config.in_channels, 1, 4, 4, generator=draw)
    control = torch.randn(1, config.vace_in_channels, 1, 4, 4, generator=draw)
    embeds = [torch.randn(1, 8, config.text_dim, generator=draw)]
    asked = {"latents": latents, "timestep": torch.tensor([500]), "embeds": embeds, "control": control}
    by_hand = Attention(Kernel("math", "_native_math", "", (0, 0)), "")
    with torch.no_grad():
        before = active()
        plain = predict(transformer, **asked)
        with by_hand.enabled("bf16"):
            assert active() == "_native_math"
            other = predict(transformer, **asked)
        assert active() == before
        with by_hand.enabled("fp32"):
            assert active() == before, "most kernels are for 16 bits alone"
    torch.testing.assert_close(other[0], plain[0], atol=1e-4, rtol=1e-4)


def test_a_kernel_is_tried_before_it_is_trusted():
    assert kernel_fault("_native_math", "cpu") == ""
    assert kernel_fault("flash", "cpu").startswith("it fails here (")


def test_every_backend_is_one_of_diffusers():
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert {kernel.backend for kernel in KERNELS} <= {name.value for name in AttentionBackendName}
    assert attention_for("auto", "draft", "cpu", built_in=True).name == "sdpa"
