"""Weight formats of one Linear layer: bits, error, and the time to unpack it and to compute with it.

    python benchmarks/formats.py [--rows 5120] [--columns 5120] [--device cpu] [--rounds 5] [--json FILE]

Gaussian weights with what outliers of published models look like: one input in a hundred is ten times as large. What
`--quantize` writes is measured with these weights; of formats that are only read the time is that of a layer without
values, and the error that of plain Gaussian weights (`WeightFormat.errors`). Seconds are the best of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
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


def layers(weight: torch.Tensor, device: str) -> Iterator[tuple[str, torch.nn.Module, float, bool]]:
    """Yield (name, layer, error, whether the error is that of these weights) of each format."""
    formats = core("quantization.registry").FORMATS
    targets = core("checkpoints.quantized_file").TARGETS
    written = set()
    for target, one in targets.items():
        packed = one.for_file(weight, target)
        written.add(one.name)
        layer = one.layer(packed, None, None)
        error = float((one.dense(layer) - weight).norm() / weight.norm())
        yield target, layer.to(device), error, True
    for name, one in formats.items():
        # GGUF's sample is of the type that most files have.
        if name not in written or name == "gguf":
            kind = next(iter(one.errors)) if name != "gguf" else "Q4_K"
            layer = one.layer(one.sample(weight), None, None)
            yield (kind.lower() if name == "gguf" else name), layer.to(device), one.errors[kind], False


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
    found = [("plain", plain.to(options.device), 0.0, True), *layers(weight, options.device)]
    rows = []
    for name, layer, error, own in found:
        ways = {"one": lambda at=layer: at(inputs[:1]), "many": lambda at=layer: at(inputs)}
        if name != "plain":
            ways["unpack"] = lambda at=layer: at.dense(compute)
        best = {way: min(seconds(run, options.device) for _ in range(options.rounds + 1)) for way, run in ways.items()}
        bits = 8 * stored_bytes(layer) / weight.numel()
        rows.append({"name": name, "bits": bits, "error": error, "of_these_weights": own, "seconds": best})
    return rows


def as_table(rows: list[Row]) -> str:
    """Return the rows in Markdown."""
    lines = ["| | bits a weight | error | unpack, ms | 1 token, ms | 1024 tokens, ms |", "|---" * 6 + "|"]
    for row in rows:
        took = {name: f"{1000 * value:.0f}" for name, value in row["seconds"].items()}
        error = f"{row['error']:.2%}{'' if row['of_these_weights'] else ' *'}"
        times = f"{took.get('unpack', '–')} | {took['one']} | {took['many']}"
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
