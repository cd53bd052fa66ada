"""Fast Decoder: TAEHV in place of the VAE, in runs, plans and refusals; its frames beside the authors' code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import piying.runner
import pytest
import torch
from diffusers import AutoencoderKLWan
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.errors import PiyingError
from piying.core.executor.tensor_cache import TensorCache
from piying.core.postprocessing.places import _LiveBytes
from piying.core.wan.phases import VideoWork, fast_decode_phase
from piying.core.wan.taehv import Taehv, decode_fast, read_taehv
from piying.runner.errors import InvalidGraph
from safetensors.torch import save_file
from torch.nn import functional

from .hosts import current_host

WIDTHS = (256, 128, 64, 64)
CHANNELS = 9  # of the built-in model's latents
THEIRS = os.environ.get("TAEHV_PATH", "")
TOY = {"prompt": "a red circle moves right", "width": 64, "height": 64, "num_frames": 9, "steps": 2, "cfg": 1.0}


@pytest.fixture
def host(tmp_path):
    (tmp_path / "vae_approx").mkdir()
    with current_host(models=[tmp_path], cache=tmp_path / "cache") as made:
        yield made


def lively(channels, widths=WIDTHS, patch=1):
    """A decoder with random weights whose frames are neither black nor white."""
    torch.manual_seed(0)
    network = Taehv(channels, widths, patch)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.mul_(2.0) if name.endswith("weight") else weight.add_(0.05)
        network.decoder[-1].bias.add_(0.5)
    return network.eval().requires_grad_(False)


def at_once(network, latents):
    """All frames together, layer by layer: blocks see what stood at their place one frame before."""
    x = latents[0].movedim(1, 0)
    for layer in network.decoder:
        if hasattr(layer, "frames"):
            x = layer(x).unflatten(1, (layer.frames, -1)).flatten(0, 1)
        elif type(layer).__name__ == "_MemoryBlock":
            x = layer(x, functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1])
        else:
            x = layer(x)
    x = functional.pixel_shuffle(x, network.patch) if network.patch > 1 else x
    return x[3:].clamp(0, 1).movedim(1, -1)


@pytest.mark.parametrize(("channels", "patch"), [(16, 1), (48, 2)])
def test_frames_one_by_one_are_those_of_all_at_once(channels, patch):
    network, latents = lively(channels, (32, 24, 16, 16), patch), torch.randn(1, channels, 4, 5, 6)
    steps = []
    with torch.inference_mode():
        frames = decode_fast(network, latents, steps.append)
        assert frames.shape == (13, 40 * patch, 48 * patch, 3)
        assert (frames - at_once(network, latents)).abs().max() < 1e-4
    assert steps == list(range(1, 14))
    assert frames.std() > 0.02 and 0.1 < frames.mean() < 0.9


@pytest.mark.skipif(not THEIRS, reason="TAEHV_PATH names no folder with the authors' taehv.py")
@pytest.mark.parametrize(("channels", "patch"), [(16, 1), (48, 2)])
def test_frames_are_the_authors_bit_for_bit(channels, patch, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(THEIRS)
    theirs = pytest.importorskip("taehv").TAEHV(None, patch_size=patch, latent_channels=channels).eval()
    theirs.decoder.load_state_dict(lively(channels, patch=patch).decoder.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "taew2_1.pth")
    latents = torch.randn(1, channels, 3, 8, 10)
    with torch.inference_mode():
        true = theirs.decode_video(latents.transpose(1, 2), parallel=False, show_progress_bar=False)[0].movedim(1, -1)
        assert torch.equal(decode_fast(read_taehv(tmp_path / "taew2_1.pth"), latents, lambda done: None), true)
    assert true.std() > 0.02
    sys.modules.pop("taehv", None)


def graph(decoder, **inputs):
    loader = {"model": "built-in", "precision": "auto", "memory": "auto"}
    return {
        "1": {"class_type": "PiyingLoadWanVACE", "inputs": loader},
        "2": {"class_type": "PiyingFastDecoder", "inputs": {"model": ["1", 0], "decoder": decoder}},
        "3": {
            "class_type": "PiyingVACESample",
            "inputs": {"model": ["2", 0], "negative_prompt": "", "shift": 3.0, "seed": 1, **TOY, **inputs},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def test_a_run_is_decoded_by_it_and_decoded_again_by_the_vae_without_sampling(host, tmp_path, monkeypatch, caplog):
    network = lively(CHANNELS)
    save_file(network.state_dict(), tmp_path / "vae_approx" / "taew2_1_toy.safetensors")
    kept = []
    put = TensorCache.put
    monkeypatch.setattr(
        TensorCache, "put", lambda self, key, found: (kept.append(found.get("latents")), put(self, key, found))[1]
    )
    with caplog.at_level("INFO", "piying"):
        done = piying.runner.run(graph("auto"), output=tmp_path, models=[tmp_path], device="cpu")
    (frames,) = done.outputs("3")[0]
    latents = next(one for one in reversed(kept) if one is not None)
    with torch.inference_mode():
        assert torch.equal(frames, decode_fast(network, latents, lambda step: None))
    assert "taehv 38 MB" in caplog.text, "it is in the plan"
    (record,) = done.results["3"].ui["piying"]
    assert record["decoder"] == "taew2_1_toy.safetensors"
    caplog.clear()
    with caplog.at_level("INFO", "piying"):
        again = piying.runner.run(graph("vae"), output=tmp_path, models=[tmp_path], device="cpu")
    assert "going on from them" in caplog.text
    assert (again.outputs("3")[0][0] - frames).abs().mean() > 0.05


def test_lighttae_reads_latents_in_the_scale_of_the_vae(host, tmp_path, monkeypatch):
    """As LightX2V decodes its own files: need_scaled of lightx2v/models/video_encoders/hf/wan/vae_tiny.py."""
    network = lively(CHANNELS)
    save_file(network.state_dict(), tmp_path / "vae_approx" / "lighttaew2_1_toy.safetensors")
    kept = []
    put = TensorCache.put
    monkeypatch.setattr(
        TensorCache, "put", lambda self, key, found: (kept.append(found.get("latents")), put(self, key, found))[1]
    )
    done = piying.runner.run(graph("auto"), output=tmp_path, models=[tmp_path], device="cpu")
    (frames,) = done.outputs("3")[0]
    latents = next(one for one in reversed(kept) if one is not None)
    config = AutoencoderKLWan.load_config(BUILT_IN_ROOT / "wan_vace" / "vae")
    std, mean = (torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_std", "latents_mean"))
    with torch.inference_mode():
        assert (frames - decode_fast(network, latents * std + mean, lambda step: None)).abs().max() < 1e-4
        assert (frames - decode_fast(network, latents, lambda step: None)).abs().mean() > 0.005


@pytest.mark.parametrize(("channels", "mean", "std"), [(16, -0.7571, 2.8184), (48, -0.2289, 0.4765)])
def test_the_scale_of_single_files_is_the_published_one(tmp_path, channels, mean, std):
    """The numbers of LightX2V's WanVAE_tiny and Wan2_2_VAE_tiny, the first ones of each."""
    from piying.core.wan.latent_scale import denormalised, vae_config

    small = {"z_dim": channels, "base_dim": 4, "decoder_base_dim": 6}
    if channels == 48:
        small |= {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
        small |= {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    save_file(AutoencoderKLWan(**small).state_dict(), tmp_path / "vae.safetensors")
    config = vae_config([tmp_path / "vae.safetensors"])
    found = [denormalised(config, torch.full((1, channels, 1, 1, 1), value))[0, 0].item() for value in (0.0, 1.0)]
    assert found == pytest.approx([mean, mean + std])


def test_what_is_no_decoder_for_the_model_is_refused_before_the_run(host, tmp_path, caplog):
    folder = tmp_path / "vae_approx"
    assert piying.NODE_CLASS_MAPPINGS["PiyingFastDecoder"]().add(handle(), "auto")[0].decoder == ""
    assert "No taew2 file for this model is in models/vae_approx: the VAE decodes." in caplog.text
    save_file(lively(16, (8, 8, 8, 8)).state_dict(), folder / "taew2_1.safetensors")
    save_file({"x": torch.zeros(2)}, folder / "taesd.safetensors")
    for name, sentence in (
        ("taew2_1.safetensors", "reads latents of 16 channels, and built-in makes 9. Set decoder to vae"),
        ("taesd.safetensors", r"taesd\.safetensors: is no TAEHV decoder"),
        ("gone.pth", r"'gone\.pth' is not in models/vae_approx. Here are: auto, vae, taesd"),
    ):
        with pytest.raises(InvalidGraph, match=sentence):
            piying.runner.run(graph(name), output=tmp_path, models=[tmp_path], device="cpu")


def handle():
    from piying.core.catalog.selection import ModelHandle
    from piying.core.wan.family import WAN_VACE

    return ModelHandle(WAN_VACE, "built-in")


def test_files_of_other_layers_are_refused(tmp_path):
    weights = lively(16, (8, 8, 8, 8)).state_dict()
    del weights["decoder.5.conv.0.weight"]
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(PiyingError, match=r"is no TAEHV decoder of Wan.*decoder\.5\.conv\.0\.weight"):
        read_taehv(Path(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(("stride", "channels"), [(8, 16), (16, 48)])
def test_the_plan_counts_what_it_takes(stride, channels):
    """Live tensors of the real networks on the meta device, in fp32."""
    network = Taehv(channels, WIDTHS, stride // 8).to("meta")
    phase = fast_decode_phase(VideoWork(320, 192, 17, stride=stride))
    with torch.inference_mode(), _LiveBytes() as live:
        for _ in network.frames(torch.empty(1, channels, 5, 192 // stride, 320 // stride, device="meta")):
            pass
    (variant,) = phase.variants
    assert live.peak <= variant.peak("fp32") <= 1.1 * live.peak
    assert phase.component.parameters == pytest.approx(sum(one.numel() for one in network.parameters()), rel=0.01)


def test_wan_sample_takes_it_too(host, tmp_path, caplog):
    """`auto` takes the file whose channels are those of the model's latents."""
    folder = tmp_path / "vae_approx"
    save_file(lively(16, (8, 8, 8, 8)).state_dict(), folder / "a_taew2_1.safetensors")
    save_file(lively(CHANNELS).state_dict(), folder / "b_taew2_toy.safetensors")
    sample = {"negative_prompt": "", "shift": 3.0, "seed": 1, "fit": "crop", "size_from": "widgets", **TOY}
    nodes = {
        "1": {
            "class_type": "PiyingLoadWanVideo",
            "inputs": {"model": "built-in", "precision": "auto", "memory": "auto"},
        },
        "2": {"class_type": "PiyingWanFastDecoder", "inputs": {"model": ["1", 0], "decoder": "auto"}},
        "3": {"class_type": "PiyingWanSample", "inputs": {"model": ["2", 0], **sample}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    with caplog.at_level("INFO", "piying"):
        done = piying.runner.run(nodes, output=tmp_path, models=[tmp_path], device="cpu")
    assert done.results["3"].ui["piying"][0]["decoder"] == "b_taew2_toy.safetensors"
    assert "taehv 38 MB" in caplog.text
    assert done.outputs("3")[0][0].shape == (9, 64, 64, 3)
