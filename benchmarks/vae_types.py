"""Benchmark of VAE precision: fp16 and bf16 against fp32, encoding and decoding, and the largest activations.

    python benchmarks/vae_types.py [--model toy|wan2.1-vae] [--side 64] [--frames 17] [--json FILE]

`toy` is the built-in VAE on the clips that come with the pack (its encoder is a chain of averages, its decoder is
trained); `wan2.1-vae` has the published shape and random weights, which say little about the trained ones. Rounding is
that of a card: each operation's result is rounded, products and convolutions sum in fp32. Without a card they are
therefore computed in fp32 and rounded after.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ends import load_pack
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SUMS = ("convolution", "addmm", "mm", "bmm", "baddbmm", "_scaled_dot_product")  # operations that add up products
CLIPS = ("moving_circle.mp4", "moving_square_depth.mp4", "waving_person_pose.mp4")
Row = dict[str, Any]


class SumsInFp32(TorchDispatchMode):
    """Has products of 16-bit numbers added up in fp32, as cards do."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [tensor for tensor in args if isinstance(tensor, torch.Tensor)]
        narrow = given and given[0].dtype in TYPES.values() and given[0].device.type == "cpu"
        if not narrow or not function.overloadpacket.__name__.startswith(SUMS):
            return function(*args, **(kwargs or {}))
        dtype = given[0].dtype
        wide = tree_map(lambda value: value.float() if isinstance(value, torch.Tensor) else value, args)
        result = function(*wide, **(kwargs or {}))
        return tree_map(lambda value: value.to(dtype) if _is_float(value) else value, result)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


@contextmanager
def largest(module: torch.nn.Module) -> Iterator[list[float]]:
    """Give a list that holds the largest number any layer of a module makes inside the block."""
    found = [0.0]

    def look(layer: Any, given: Any, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            found[0] = max(found[0], float(result.detach().abs().max()))

    hooks = [layer.register_forward_hook(look) for layer in module.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def decibels(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the PSNR of frames in 0..1."""
    return -10 * float((found - wanted).square().mean().log10())


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the relative error, root mean square."""
    return float((found.float() - wanted).norm() / wanted.norm())


def clips(pack: Callable[[str], Any], side: int, count: int) -> list[torch.Tensor]:
    """Return the pack's clips as the VAE takes them, [1, 3, count, side, side] in -1..1."""
    folder = pack("core.catalog.installed_model").built_in("wan_vace").path.parent / "samples"
    found = []
    for name in CLIPS:
        frames = [torch.from_numpy(frame) for frame in pack("core.media.video").read_frames(folder / name)]
        frames = (frames + frames[-1:] * count)[:count]
        pictures = torch.stack(frames).permute(0, 3, 1, 2) / 127.5 - 1
        pictures = functional.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
        found.append(pictures.permute(1, 0, 2, 3)[None])
    return found


def compare(pack: Callable[[str], Any], made: Callable[[], Any], video: torch.Tensor) -> list[Row]:
    """Return a row for each type; both decode the latents that fp32 has encoded."""
    encode, decode = pack("core.wan.conditioning").encode_video, pack("core.wan.decode").decode
    vae = made()
    with largest(vae.encoder) as most_encoding:
        latents = encode(vae, video)
    with largest(vae.decoder) as most_decoding:
        frames = decode(vae, latents, tiled=False, on_step=lambda done: None)
    rows = []
    for name, dtype in TYPES.items():
        narrow = made().to(dtype)
        with SumsInFp32():
            row = {"type": name, "latents": error(encode(narrow, video), latents)}
            found = decode(narrow, latents, tiled=False, on_step=lambda done: None)
        row |= {"frames": decibels(found, frames), "furthest": float((found - frames).abs().max())}
        # What the transformer reads is rounded to its own type, whatever the VAE computes in.
        row |= {"read as bf16": error(latents.bfloat16(), latents)}
        row |= {"largest, encoding": most_encoding[0], "largest, decoding": most_decoding[0]}
        rows.append(row)
    return rows


def main() -> None:
    """Read the options; measure; print."""
    from wan_phases import vae_of

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="toy", choices=("toy", "wan2.1-vae"))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    pack = load_pack()
    rows: list[Row] = []
    with torch.no_grad():
        for name, video in zip(CLIPS, clips(pack, options.side, options.frames), strict=True):
            given = video.to(options.device)
            for row in compare(pack, lambda: vae_of(options.model).to(options.device), given):
                rows.append({"clip": name} | row)
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        about = {"machine": platform.platform(), "command": " ".join(sys.argv), "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
