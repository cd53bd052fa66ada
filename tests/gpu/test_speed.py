"""The measures for speed on a CUDA card: each gives the reference's video, as near as it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.host.headless import HeadlessHost
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
REQUEST = WanRequest("a red circle moves right on a blue background", "", 64, 64, 17, 20, 3.0, 5.0, 3)


def psnr(one, other):
    return -10 * math.log10(max(float((one - other).square().mean()), 1e-12))


@pytest.fixture
def made(tmp_path):
    host = HeadlessHost(chosen_device="cuda:0", cache=tmp_path / "cache")
    handle = ModelHandle(WAN_VACE, "built-in", "fp32")
    return lambda **measures: sample(handle, replace(REQUEST, **measures), host)


@pytest.mark.parametrize(
    ("measures", "least"),
    [
        ({"batch_cfg": True}, 50),
        ({"vae_precision": "fp16"}, 50),
        ({"step_cache": 0.06}, 35),
        ({"compile_blocks": True}, 50),
        ({"speed": "balanced"}, 35),
    ],
)
def test_a_measure_gives_nearly_the_reference(made, measures, least):
    reference, _ = made()
    frames, record = made(**measures)
    assert psnr(frames, reference) > least
    if "fp16" in measures.values() or "speed" in measures:
        assert record["computes"]["decode"] == "fp16"


def test_the_reference_is_the_same_every_time(made, tmp_path):
    first, _ = made()
    for path in (tmp_path / "cache" / "latents").glob("*"):
        path.unlink()
    assert torch.equal(first, made()[0])
