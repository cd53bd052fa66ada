"""Benchmark of a card's kernels at a model's shapes: attention backends, matrix products by number type, copies.

    python benchmarks/kernels.py [--model 1.3B] [--size 480p] [--device cuda:0] [--rounds 5] [--json FILE]

Seconds are the best of the rounds, and are given as TFLOP/s and GB/s. What a device or a version of torch cannot do is
a note with the reason. FP8 goes through the pack's own layer, once multiplied in FP8, once cast to the input's type;
torch's products alone tell what bringing the input to FP8 costs there, and what FP8's faster and less exact sums would
gain. INT8 is torch's product alone, since no layer of the pack computes in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from floors import rates
from machine import be_quiet, describe, load_pack, write_json
from measuring import is_card, seconds
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention
from wan_models import CONFIGS, SIZES, Shape
from wan_steps import core

Row = dict[str, Any]
HEAD = 128
# The math backend is left out: it would hold every pair of tokens, 26 GB at 480p.
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
COPIED = 256 * 2**20  # bytes
CANNOT = (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError)


def timed(
    ways: dict[str, Callable[[], Any]], work: float, device: str, rounds: int
) -> tuple[list[Row], dict[str, str]]:
    """Return a row for each way, all in turn, and why ways are left out.

    Args:
        work: operations or bytes of one call; a row's rate is `work` a second.
    """
    rows: dict[str, Row] = {}
    left_out: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            if name in left_out:
                continue
            try:
                took = seconds(way, device)
            except CANNOT as error:
                left_out[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            if turn:  # the first warms up
                row = rows.setdefault(name, {"name": name, "seconds": [], "rate": 0.0})
                row["seconds"].append(took)
                row["rate"] = work / min(row["seconds"])
    return list(rows.values()), left_out


def attentions(tokens: int, heads: int, device: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """Return ways of attending from all tokens to all, and the operations that takes."""
    dtype = torch.bfloat16 if is_card(device) else torch.float32
    query, key, value = (torch.randn(1, heads, tokens, HEAD, device=device, dtype=dtype) for _ in range(3))

    def by(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value)

    ways: dict[str, Callable[[], Any]] = {"torch's choice": lambda: scaled_dot_product_attention(query, key, value)}
    ways |= {name: lambda backend=backend: by(backend) for name, backend in BACKENDS.items()}
    return ways, 4.0 * heads * tokens**2 * HEAD


def products(tokens: int, width: int, ffn: int, device: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """Return ways of computing a feed-forward layer's first product, and the operations of one."""
    layers = core("quantization.fp8_linear")
    inputs = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    weight = torch.randn(ffn, width, device=device, dtype=torch.bfloat16) / width**0.5
    values, scale = layers.quantize(weight)
    fp8 = layers.Fp8Linear(values, scale)
    whole = torch.randint(-127, 128, (tokens, width), device=device, dtype=torch.int8)
    whole_weight = torch.randint(-127, 128, (ffn, width), device=device, dtype=torch.int8)
    half, half_weight = inputs.half(), weight.half()
    small, row_scale = layers.quantize(inputs)

    def scaled(is_fast: bool) -> torch.Tensor:
        scales = {"scale_a": row_scale, "scale_b": scale.t().contiguous()}
        return torch._scaled_mm(small, values.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=is_fast)

    ways = {
        "bf16": lambda: linear(inputs, weight),
        "fp16": lambda: linear(half, half_weight),
        "FP8, cast to bf16": lambda: fp8(inputs),
        "FP8, multiplied in FP8": lambda: layers.multiply(inputs, values, scale, None),
        "FP8, torch._scaled_mm": lambda: scaled(False),
        "FP8, torch._scaled_mm, fast accumulation": lambda: scaled(True),
        "INT8, torch._int_mm": lambda: torch._int_mm(whole, whole_weight.t()),
    }
    return ways, 2.0 * tokens * width * ffn


def copies(device: str) -> dict[str, Callable[[], Any]]:
    """Return ways of moving `COPIED` bytes to, from and on the device."""
    there, other = (torch.empty(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.ones(COPIED, dtype=torch.uint8)
    ways: dict[str, Callable[[], Any]] = {
        "host to device, pageable": lambda: there.copy_(host),
        "device to host, pageable": lambda: host.copy_(there),
        "on the device, read and written": lambda: other.copy_(there),
    }
    if is_card(device):
        pinned = host.pin_memory()
        ways["host to device, page-locked"] = lambda: there.copy_(pinned, non_blocking=True)
        ways["device to host, page-locked"] = lambda: pinned.copy_(there, non_blocking=True)
    return ways


def measure(model: str, size: str, device: str, rounds: int) -> dict[str, Any]:
    """Return rows of each kind, and notes on what cannot run."""
    config, (frames, rows, columns) = CONFIGS[model], Shape(model, size).latent
    heads, tokens = config["num_attention_heads"], frames * (rows // 2) * (columns // 2)
    found: dict[str, Any] = {"tokens": tokens, "heads": heads}
    notes: dict[str, str] = {}
    with torch.no_grad():
        for kind, (ways, work) in {
            "attention": attentions(tokens, heads, device),
            "products": products(tokens, heads * HEAD, config["ffn_dim"], device),
            "copies": (copies(device), float(COPIED)),
        }.items():
            found[kind], left_out = timed(ways, work, device, rounds)
            notes |= {f"{kind}: {name}": why for name, why in left_out.items()}
    best = rates(device)
    return found | {"notes": notes, "flops_per_second": best.flops, "bytes_per_second": best.bandwidth}


def main() -> None:
    """Read the options; measure; print; write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=list(CONFIGS), default="1.3B")
    parser.add_argument("--size", choices=list(SIZES), default="480p")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    load_pack()
    be_quiet()
    found = describe(options.device) | measure(options.model, options.size, options.device, options.rounds)
    for kind, unit in (("attention", "TFLOP/s"), ("products", "TFLOP/s"), ("copies", "GB/s")):
        for row in found[kind]:
            print(f"{kind:12}{row['name']:44}{row['rate'] / (1e12 if unit == 'TFLOP/s' else 1e9):10.3g} {unit}")
    for name, why in found["notes"].items():
        print(f"{name}: {why}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
