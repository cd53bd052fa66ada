"""Benchmark of batched CFG, VAE decoding and file writing: the work around the denoising steps.

    python benchmarks/ends.py [--device cpu] [--rounds 5] [--compile] [--json FILE]

The built-in model, 64 × 64, 17 frames; files at 832 × 480. Seconds are the best of the rounds, which take turns; on a
CPU seconds of the processor, but for files, which other processes write: there it is time that passes. `--compile`
tries torch.compile on the decoder instead, which takes many minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from measuring import clock
from vae_compile import compiled, table

ROOT = Path(__file__).resolve().parents[1]
SIDE, LATENT_FRAMES = 64, 5
WIDTH, HEIGHT, FRAMES = 832, 480, 81
Ways = dict[str, Callable[[], Any]]


def load_pack() -> Callable[[str], Any]:
    """Return a function that imports the pack's modules by name."""
    sys.path.insert(0, str(ROOT / "tests"))
    importlib.import_module("conftest")
    sys.path.pop(0)
    return lambda name: importlib.import_module(f"piying.{name}")


def steps(pack: Callable[[str], Any], device: str) -> Ways:
    """Return ways of predicting for both prompts."""
    from diffusers import WanVACETransformer3DModel

    path = pack("core.catalog.installed_model").built_in("wan_vace").path
    transformer = WanVACETransformer3DModel.from_pretrained(path / "transformer").to(device)
    config, side = transformer.config, SIDE // 8
    latents = torch.randn(1, config.in_channels, LATENT_FRAMES, side, side, device=device)
    control = torch.randn(1, config.vace_in_channels, LATENT_FRAMES, side, side, device=device)
    embeds = [torch.randn(1, 512, config.text_dim, device=device) for _ in range(2)]
    predict, when = pack("core.wan.transformer").predict, torch.tensor([500], device=device)
    twice = {"embeds": [torch.cat(embeds)], "control": torch.cat([control, control])}
    return {
        "a step, block by block (ours)": lambda: predict(transformer, latents, when, embeds=embeds, control=control),
        "a step, one batch of two": lambda: predict(
            transformer, torch.cat([latents, latents]), when.expand(2), **twice
        ),
        "a step, one prompt after the other": lambda: [
            predict(transformer, latents, when, embeds=[embed], control=control) for embed in embeds
        ],
    }


def decodes(pack: Callable[[str], Any], device: str) -> Ways:
    """Return ways of decoding."""
    from diffusers import AutoencoderKLWan

    path = pack("core.catalog.installed_model").built_in("wan_vace").path
    vae, last = (AutoencoderKLWan.from_pretrained(path / "vae").to(device) for _ in range(2))
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in last.parameters():
        if weight.dim() in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])
    z = torch.randn(1, vae.config.z_dim, LATENT_FRAMES, SIDE // 8, SIDE // 8, device=device)
    decode = pack("core.wan.decode").decode
    return {
        "decode, diffusers": lambda: vae.decode(z).sample,
        "decode, latent frame by latent frame (ours)": lambda: decode(vae, z, tiled=False, on_step=lambda done: None),
        "decode, the same, channels last": lambda: decode(last, z, tiled=False, on_step=lambda done: None),
    }


def compiles(pack: Callable[[str], Any], device: str, rounds: int) -> dict[str, Any]:
    """Return what compiling parts of the decoder gives."""
    from diffusers import AutoencoderKLWan

    path = pack("core.catalog.installed_model").built_in("wan_vace").path
    vae = AutoencoderKLWan.from_pretrained(path / "vae").to(device)
    z = torch.randn(1, vae.config.z_dim, LATENT_FRAMES, SIDE // 8, SIDE // 8, device=device)
    decode = pack("core.wan.decode").decode
    with torch.no_grad():
        return compiled(vae, lambda: decode(vae, z, tiled=False, on_step=lambda done: None), device, rounds)


def files(pack: Callable[[str], Any], folder: Path) -> dict[str, float]:
    """Return the seconds that keeping a window and writing its part of the video take."""
    draw = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 11, 30, 52, generator=draw)
    clip = torch.nn.functional.interpolate(small, size=(FRAMES, HEIGHT, WIDTH), mode="trilinear")[0]
    frames = clip.permute(1, 2, 3, 0).contiguous()
    windows = pack("core.wan.long.window_cache")
    cache = windows.WindowCache(folder)
    begun = time.perf_counter()
    cache.put("window", windows.FinishedWindow(windows.rounded(frames)))
    kept = time.perf_counter()
    pack("core.media.mp4").write_mp4(folder / "video.mp4", cache.read("window"), Fraction(16))
    return {"a window of 81 frames kept, 832 × 480": kept - begun, "written as H.264": time.perf_counter() - kept}


def best(ways: Ways, device: str, rounds: int) -> dict[str, float]:
    """Return the least seconds of each way."""
    found = {name: float("inf") for name in ways}
    with torch.no_grad():
        for _ in range(rounds + 1):  # the first one warms up, and may be the best as well
            for name, way in ways.items():
                begun = clock(device)
                way()
                found[name] = min(found[name], clock(device) - begun)
    return found


def main() -> None:
    """Read the options; measure; print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile on the VAE's decoder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    pack = load_pack()
    if options.compile:
        print(table(compiles(pack, options.device, options.rounds)))
        return
    found = best(steps(pack, options.device), options.device, options.rounds)
    found |= best(decodes(pack, options.device), options.device, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        found |= files(pack, Path(folder))
    print("| | seconds |\n|---|---|")
    for name, taken in found.items():
        print(f"| {name} | {taken:.3f} |")
    if options.json:
        about = {"machine": platform.platform(), "command": " ".join(sys.argv), "seconds": found}
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
