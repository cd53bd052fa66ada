"""Previews by TAEHV: pictures of the steps, the node's `use`, what they cost, and what happens where they fail."""

from __future__ import annotations

import numpy as np
import piying
import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.preview import LatentPreview
from piying.core.wan.family import WAN_VACE
from piying.core.wan.fast_preview import FastPreview
from piying.core.wan.taehv import Taehv, decode_fast
from safetensors.torch import save_file

from .hosts import current_host
from .test_taehv import CHANNELS, TOY, lively

NODES = piying.NODE_CLASS_MAPPINGS
SIZES = {"negative_prompt": "", "shift": 3.0, "seed": 1, **TOY}
FILE = "taew2_1_toy.safetensors"


class Cancelled(Exception):
    pass


class Watcher:
    """Looks at each step as a page does, still and moving; raises at the step `stop`."""

    def __init__(self, stop=0):
        self.stills, self.motions, self.stop = [], [], stop

    def step(self, done, preview=None):
        if preview is not None:
            self.stills.append(preview())
            self.motions.append(preview.moving(32, 16))
            if done == self.stop:
                raise Cancelled


@pytest.fixture
def host(tmp_path):
    (tmp_path / "vae_approx").mkdir()
    save_file(lively(CHANNELS).state_dict(), tmp_path / "vae_approx" / FILE)
    with current_host(models=[tmp_path], cache=tmp_path / "cache") as made:
        yield made


def sample(host, watcher, seed=1, **decoder):
    """The frames of VACE Sample behind Fast Decoder, where one is asked for; with each seed they are sampled once."""
    host.on_progress = lambda phase, total: watcher if phase == "Sampling" else Watcher()
    model = ModelHandle(WAN_VACE, "built-in")
    if decoder:
        (model,) = NODES["PiyingFastDecoder"]().add(model, **decoder)
    return NODES["PiyingVACESample"]().sample(model, **SIZES | {"seed": seed})["result"][0]


def latents(frames=5):
    torch.manual_seed(1)
    return torch.randn(1, 16, frames, 6, 8)


def previews(network=None, device="cpu", **place):
    linear = LatentPreview(torch.rand(17, 3) * 0.1, **place)
    return FastPreview(linear, lambda: network, device) if network else linear


def pixels(pictures):
    return np.stack([np.asarray(one) for one in pictures])


@pytest.mark.parametrize("skip", [0, 2])
def test_pictures_are_the_frames_of_the_decoder(skip):
    """Also where latent frames of references stand in front."""
    network = lively(16, (32, 24, 16, 16))
    given = latents(5 + skip)
    preview = previews(network, skip=skip)
    with torch.inference_mode():
        true = decode_fast(network, given[:, :, skip:], lambda done: None)
        middle = decode_fast(network, given[:, :, skip + 1 : skip + 3], lambda done: None)[-1]
    made = pixels(preview.frames(given, 64, 16))
    assert (made == (true[::4] * 255).byte().numpy()).all() and made.shape == (5, 48, 64, 3)
    assert (pixels([preview.image(given)]) == (middle * 255).byte().numpy()).all()
    few = pixels(preview.frames(given, 64, 3))
    assert (few == made[::2]).all(), "evenly taken"
    assert [one.size for one in preview.frames(given, 32, 16)] == [(32, 24)] * 5
    assert len(preview.frames(given[:, :, : skip + 1], 32, 16)) == 1


def test_the_picture_of_a_whole_step_is_as_large_as_the_video():
    assert previews(lively(48, (16, 16, 16, 16), 2), stride=16).image(torch.randn(1, 48, 3, 4, 5)).size == (80, 64)
    assert previews(stride=8).image(latents()).size == (64, 48)


@pytest.mark.parametrize("use", ["result and previews", "previews only"])
def test_the_node_says_what_is_decoded(host, use):
    plain, fast = Watcher(), Watcher()
    by_vae = sample(host, plain)
    frames = sample(host, fast, decoder=FILE, use=use)
    assert torch.equal(frames, by_vae) is (use == "previews only")
    sample(host, fast, seed=2, decoder=FILE, use=use)
    assert [one.size for one in fast.stills] == [(64, 64)] * 2 and [len(one) for one in fast.motions] == [3, 3]
    # Pictures of full size; the linear ones are enlarged eight times, and as smooth.
    rough = [np.abs(np.diff(pixels(one.stills).astype(int), axis=1)).mean() for one in (plain, fast)]
    assert rough[1] > 2 * rough[0]


def test_files_from_before_mean_what_they_meant(host):
    """A workflow without `use`, and a handle without a decoder."""
    (model,) = NODES["PiyingFastDecoder"]().add(ModelHandle(WAN_VACE, "built-in"), FILE)
    assert (model.decoder, model.preview_decoder) == (FILE, FILE)
    (only,) = NODES["PiyingFastDecoder"]().add(model, FILE, "previews only")
    assert (only.decoder, only.preview_decoder) == ("", FILE)
    assert str(only) == str(ModelHandle(WAN_VACE, "built-in")), "windows of long videos do not depend on previews"
    (none,) = NODES["PiyingFastDecoder"]().add(model, "vae")
    assert (none.decoder, none.preview_decoder) == ("", "")
    with pytest.raises(PiyingError, match=r"use is 'never'\. Choose one of: result and previews, previews only"):
        NODES["PiyingFastDecoder"]().add(model, FILE, "never")


def test_a_run_that_nobody_looks_at_reads_no_decoder(host, tmp_path):
    broken = lively(CHANNELS).state_dict()
    broken["decoder.1.bias"] = torch.full_like(broken["decoder.1.bias"], float("nan"))
    save_file(broken, tmp_path / "vae_approx" / "taew2_2_broken.safetensors")
    choice = {"decoder": "taew2_2_broken.safetensors", "use": "previews only"}
    sample(host, Quiet(), **choice)
    with pytest.raises(PiyingError, match=r"taew2_2_broken\.safetensors: decoder\.1\.bias"):
        sample(host, Watcher(), seed=2, **choice)


class Quiet:
    def step(self, done, preview=None):
        pass


def test_out_of_memory_costs_the_preview_and_not_the_run(host, monkeypatch, caplog):
    calls = []

    def hungry(self, given):
        calls.append(given.shape)
        raise torch.OutOfMemoryError("tried to allocate 9 GB")

    monkeypatch.setattr(Taehv, "frames", hungry)
    watcher = Watcher()
    frames = sample(host, watcher, decoder=FILE, use="previews only")
    assert frames.shape == (9, 64, 64, 3)
    assert len(watcher.stills) == 2 and [len(one) for one in watcher.motions] == [3, 3], "linear ones"
    assert len(calls) == 1, "it is not tried again"
    assert caplog.text.count("The preview by TAEHV ran out of memory (tried to allocate 9 GB)") == 1


def test_a_run_is_cancelled_at_a_step_as_before(host):
    watcher = Watcher(stop=1)
    with pytest.raises(Cancelled):
        sample(host, watcher, decoder=FILE)
    assert len(watcher.stills) == 1


def test_values_that_are_no_numbers_are_black_in_a_preview():
    broken = latents()
    broken[0, :, 2] = float("nan")
    assert pixels([previews(lively(16, (16, 16, 16, 16))).image(broken)]).max() == 0


def test_the_plan_counts_it_and_says_so(host):
    host.vram, host.imagined = 8 * 2**30, True
    plans = []
    for use in (None, "previews only", "result and previews"):
        model = ModelHandle(WAN_VACE, "built-in")
        if use:
            (model,) = NODES["PiyingFastDecoder"]().add(model, FILE, use)
        plans.append(NODES["PiyingVACESample"]().plan_memory(model=model, **{**SIZES, "width": 832, "height": 480}))
    plain, only, both = (one.plan for one in plans)
    pixel = 832 * 480
    # TAEHV takes more than the toy: its activations in place of the toy's, and its weights beside.
    assert only.phase("sample").vram > 1062 * pixel > plain.phase("sample").vram
    assert only.phase("sample").vram == both.phase("sample").vram
    assert only.phase("decode").component == "vae" and both.phase("decode").component == "taehv"
    assert "sample: TAEHV makes the previews." in plans[1].to_text()
    assert "makes the previews" not in plans[0].to_text()
