"""Weight formats of one Linear layer: bits, error, and the time to unpack it and to compute with it.

    python benchmarks/formats.py [--rows 5120] [--columns 5120] [--device cpu] [--rounds 5] [--json FILE]

Gaussian weights with what outliers of published models look like: one input in a hundred is ten times as large. What
`--quantize` writes is measured with these weights; of formats that are only read the time is that of a layer without
values, and the error that of plain Gaussian weights (`WeightFormat.errors`). Seconds are the best of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import be_quiet, describe, load_pack, write_json
from measuring import seconds
from wan_steps import core

Row = dict[str, Any]
TOKENS = 1024
OUTLIERS, LARGER = 100, 10.0


def weights(rows: int, columns: int) -> torch.Tensor:
    """Return weights [rows, columns]."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(rows, columns, generator=generator) * 0.02
    found[:, ::OUTLIERS] *= LARGER
    return found


@dataclass(frozen=True)
class Made:
    """A layer in a format.

    Attributes:
        layer: that computes with it.
        error: relative to the weights.
        is_own: whether the error is that of these weights.
        seconds: that quantizing has taken; None where nothing is written in it.
    """

    layer: torch.nn.Module
    error: float = 0.0
    is_own: bool = True
    seconds: float | None = None


def layers(weight: torch.Tensor, device: str) -> Iterator[tuple[str, Made]]:
    """Yield the layer in each format by name."""
    formats = core("quantization.registry").FORMATS
    targets = core("checkpoints.quantized_file").TARGETS
    for target, one in targets.items():
        begun = time.process_time()
        packed = one.for_file(weight, target)
        took = time.process_time() - begun
        layer = one.layer(packed, None, None)
        error = float((one.dense(layer) - weight).norm() / weight.norm())
        yield target, Made(layer.to(device), error, seconds=took)
    for name, one in formats.items():
        if one not in targets.values():
            layer = one.layer(one.sample(weight), None, None)
            yield name, Made(layer.to(device), next(iter(one.errors.values())), is_own=False)


def stored_bytes(layer: torch.nn.Module) -> int:
    """Return the bytes that a layer holds."""
    return sum(one.numel() * one.itemsize for one in (*layer.parameters(), *layer.buffers()))


def measured(options: argparse.Namespace) -> list[Row]:
    """Return a row for each format."""
    weight = weights(options.rows, options.columns)
    compute = torch.float32 if options.device == "cpu" else torch.bfloat16
    inputs = torch.randn(TOKENS, options.columns).to(options.device, compute)
    plain = torch.nn.Linear(options.columns, options.rows, bias=False)
    plain.weight.data = weight.to(compute)
    rows = []
    for name, made in [("plain", Made(plain.to(options.device))), *layers(weight, options.device)]:
        layer = made.layer
        ways = {"one": lambda at=layer: at(inputs[:1]), "many": lambda at=layer: at(inputs)}
        if name != "plain":
            ways["unpack"] = lambda at=layer: at.dense(compute)
        best = {way: min(seconds(run, options.device) for _ in range(options.rounds + 1)) for way, run in ways.items()}
        best |= {} if made.seconds is None else {"quantize": made.seconds}
        bits = 8 * stored_bytes(layer) / weight.numel()
        rows.append(
            {"name": name, "bits": bits, "error": made.error, "of_these_weights": made.is_own, "seconds": best}
        )
    return rows


def as_table(rows: list[Row]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| | bits a weight | error | quantize, ms | unpack, ms | 1 token, ms | 1024 tokens, ms |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        took = {name: f"{1000 * value:.0f}" for name, value in row["seconds"].items()}
        error = f"{row['error']:.2%}{'' if row['of_these_weights'] else ' *'}"
        times = f"{took.get('quantize', '–')} | {took.get('unpack', '–')} | {took['one']} | {took['many']}"
        lines.append(f"| {row['name']} | {row['bits']:.2f} | {error} | {times} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rows", type=int, default=5120)
    parse.add_argument("--columns", type=int, default=5120)
    parse.add_argument("--device", default="cpu")
    parse.add_argument("--rounds", type=int, default=5)
    parse.add_argument("--json", type=Path)
    options = parse.parse_args()
    be_quiet()
    load_pack()
    with torch.inference_mode():
        rows = measured(options)
    print(as_table(rows))
    if options.json:
        write_json(options.json, {"machine": describe(options.device), "rows": rows})


if __name__ == "__main__":
    main()
