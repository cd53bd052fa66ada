"""Benchmark of a denoising step of Hunyuan-DiT with random weights: resident, streamed, in FP8.

    python benchmarks/images.py [--size 1024] [--device cuda:0] [--rounds 5] [--toy] [--json FILE]

A step predicts for the prompt and the negative prompt in one batch, as HunyuanDiTPipeline does, whose loop the pack
runs: resident is therefore the plain pipeline's step too. Seconds are medians, after a step that warms up.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import be_quiet, describe, load_pack, write_json
from measuring import is_card, peak, seconds, settle
from published_models import sizes
from wan_models import numbers
from wan_steps import core

PUBLISHED = sizes("hunyuan-dit-1.2")
# A small one that any device runs.
TOY = PUBLISHED | {"num_attention_heads": 2, "attention_head_dim": 32, "hidden_size": 64, "num_layers": 4}
TOY_SIZE = 128
# name: storage, whether the blocks are streamed, whether products are computed in FP8
WAYS = {
    "resident": ("bf16", False, False),
    "streamed": ("bf16", True, False),
    "FP8": ("fp8", False, False),
    "FP8, multiplied in FP8": ("fp8", False, True),
    "FP8, streamed": ("fp8", True, False),
}


def empty(config: dict[str, Any]) -> Any:
    """Return the transformer without weights."""
    from diffusers import HunyuanDiT2DModel

    with torch.device("meta"):
        return HunyuanDiT2DModel(**config).eval().requires_grad_(False)


def inputs(config: dict[str, Any], side: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of a prediction for both prompts, for an image of `side` pixels."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    draw = torch.Generator().manual_seed(0)
    grid = side // 8 // config["patch_size"]
    base = config["sample_size"] // config["patch_size"]
    crops = get_resize_crop_region_for_grid((grid, grid), base)
    rotary = get_2d_rotary_pos_embed(config["attention_head_dim"], crops, (grid, grid), output_type="pt")

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=draw).to(device, dtype)

    return {
        "hidden_states": noise(4, side // 8, side // 8),
        "timestep": torch.full((2,), 500.0, device=device, dtype=dtype),
        "encoder_hidden_states": noise(config["text_len"], config["cross_attention_dim"]),
        "text_embedding_mask": torch.ones(2, config["text_len"], device=device, dtype=torch.long),
        "encoder_hidden_states_t5": noise(config["text_len_t5"], config["cross_attention_dim_t5"]),
        "text_embedding_mask_t5": torch.ones(2, config["text_len_t5"], device=device, dtype=torch.long),
        "image_rotary_emb": tuple(each.to(device) for each in rotary),
        "return_dict": False,
    }


@contextmanager
def opened(model: Any, name: str, device: str) -> Iterator[None]:
    """Hold a model in host memory as one of `WAYS` says."""
    storage, streamed, native = WAYS[name]
    if storage == "fp8":
        casting = core("quantization.casting")
        casting.cast_module(model, storage, core("hunyuan_dit.family").HUNYUAN_DIT.rules["transformer"])
        casting.use_native_matmul(model, native)
    if streamed:
        with core("executor.streaming").streamed(model, list(model.blocks), device):
            yield
    else:
        model.to(device)
        yield


def measure(config: dict[str, Any], side: int, device: str, rounds: int) -> Iterator[list[dict[str, Any]]]:
    """Yield, after each way, the rows so far."""
    dtype = torch.bfloat16 if is_card(device) else torch.float32
    state = {
        name: numbers(name, tuple(tensor.shape), dtype, device).to("cpu", dtype)
        for name, tensor in empty(config).named_parameters()
    }
    given, rows, expected = inputs(config, side, device, dtype), [], None
    for name in WAYS:
        settle(device)
        model = empty(config)
        model.load_state_dict(state, assign=True)
        with torch.no_grad(), opened(model, name, device):
            found = model(**given)[0].float().cpu()
            expected = found if expected is None else expected
            times = [seconds(lambda model=model: model(**given), device) for _ in range(rounds)]
            most = peak(lambda model=model: model(**given), device)
        error = float((found - expected).norm() / expected.norm())
        rows.append({"name": name, "seconds": times, "peak": most, "error_rms": error})
        yield rows


def main() -> None:
    """Read the options; measure; print; write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="a small model and image, for any device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    load_pack()
    be_quiet()
    config, side = (TOY, TOY_SIZE) if options.toy else (PUBLISHED, options.size)
    about = describe(options.device) | {"size": side}
    for rows in measure(config, side, options.device, options.rounds):
        print(rows[-1], flush=True)
        if options.json:
            write_json(options.json, about | {"steps": rows})


if __name__ == "__main__":
    main()
