"""Post-processing on a card with little memory: smaller tiles, then the CPU, and the same pictures."""

from __future__ import annotations

import gc

import piying
import pytest
import torch
from piying.core.executor.model_cache import evict_models
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.postprocessing import places
from piying.tests.core.test_upscale import Enlarger, enlarger, expected
from safetensors.torch import save_file

from .pretend import attached

__all__ = ["enlarger"]  # a fixture
GB, MIB = 1 << 30, 1 << 20
FRAMES = torch.rand(3, 200, 300, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def upscale(tmp_path, enlarger):
    (tmp_path / "upscale_models").mkdir()
    save_file(enlarger, tmp_path / "upscale_models" / "a.safetensors")

    def run(**options):
        host = HeadlessHost(models=[tmp_path], cache=tmp_path / "cache", chosen_device="pretend:0", **options)
        set_host(host)
        widgets = {"model": "a.safetensors", "scale": 2.0, "width": 0, "height": 0, "method": "lanczos", "tile": 0}
        shown = piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"]().upscale(FRAMES, **widgets)
        return shown["result"][0], shown["ui"]["piying"][0]["place"]

    yield run
    set_host(None)
    evict_models()


def test_the_card_is_used_and_left(upscale, enlarger):
    with attached(8 * GB) as here:
        larger, place = upscale()
        gc.collect()
        assert not any(device.allocated for device in here.devices)
    assert place == "whole frames on pretend:0"
    assert (larger - expected(enlarger, FRAMES)).abs().max() < 1e-5


class Hungry(Enlarger):
    """Takes more than it says: tensors that only a real picture has."""

    limit = 0

    def forward(self, x):
        if x.device.type != "meta" and x[0, 0].numel() > self.limit and (x.device.type != "cpu"):
            torch.empty(64 * GB, dtype=torch.uint8, device=x.device)
        return super().forward(x)


@pytest.mark.parametrize(
    ("limit", "place"), [(130 * 130, "tiles of 128×128 on pretend:0"), (0, "whole frames on cpu")]
)
def test_out_of_memory_takes_smaller_tiles_then_the_cpu(upscale, enlarger, monkeypatch, caplog, limit, place):
    monkeypatch.setattr("piying.tests.core.test_upscale.Enlarger", Hungry)
    monkeypatch.setattr(Hungry, "limit", limit)
    with attached(8 * GB) as here, caplog.at_level("INFO", "piying"):
        larger, reached = upscale()
        gc.collect()
        assert not any(device.allocated for device in here.devices)
    assert reached == place
    assert (larger - expected(enlarger, FRAMES)).abs().max() < 1e-5
    assert "ran out of memory (whole frames on pretend:0" in caplog.text, "it says so"


def test_a_limit_on_the_card_chooses_the_tiles(upscale, enlarger, monkeypatch):
    """What the card has for it is a plan's budget."""
    monkeypatch.setattr(places.Cost, "bytes", lambda self, pixels: pixels * 16384)
    with attached(8 * GB):
        _, place = upscale(vram=1 * GB)
    assert place.startswith("tiles of ") and place.endswith("on pretend:0")
