"""Benchmark of sampling speed and quality: the pack's options, plain diffusers and ComfyUI in one run.

    python benchmarks/speed.py [--captions 12] [--steps 30] [--device cpu] [--comfyui CHECKOUT] [--json FILE]
    python benchmarks/speed.py --random 1.3B --size 480p [--rounds 3] [--comfyui CHECKOUT] [--json FILE]

The first makes the same videos of captions that the built-in model was never trained on, in turn: ours with every
measure, diffusers' pipeline with every cache it has that works here, and ComfyUI's sampler, from the same weights,
noise and embeddings. What they show is read from pixels (training/reading.py): the share of videos whose background,
colour, shape and motion are as the caption says. PSNR and SSIM compare with our reference video. Seconds are those of
sampling, medians; on a CPU seconds of the processor. The floor is the arithmetic of the predictions that went through
all blocks at the rate of a matrix product of 2048 × 2048, or reading the weights once a prediction at the rate of a
copy, whichever takes longer; both rates are the best of before and after the same run. Percent are of the floor
reached.

The second measures single steps at the published shapes with random weights, for a card: attention kernels, compiled
blocks, FP8, one batch of both prompts. The toy of both kinds runs on any machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from floors import rates
from machine import be_quiet, command, describe, load_pack, write_json
from speed_judge import ATTRIBUTES


def table(cells: list[list[str]]) -> str:
    """Return a table in Markdown, from its rows; the first is the head."""
    head, *rest = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|---" * len(cells[0]) + "|", *rest])


def videos(found: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table of whole videos."""
    head = ["", "seconds", "floor", "% of floor", "predictions", "steps left out", "PSNR dB", "SSIM", *ATTRIBUTES]
    cells = [head]
    for name, row in found["measures"].items():
        cells.append(
            [
                name,
                f"{row['seconds']:.2f}",
                f"{row['floor']:.2f}",
                f"{row['percent of floor']:.0f}",
                f"{row['predictions']:.0f}",
                "-" if row["steps left out"] is None else f"{row['steps left out']:.1f}",
                "same" if row["psnr"] is None else f"{row['psnr']:.1f}",
                f"{row['ssim']:.3f}",
                *(f"{row[attribute]:.2f}" for attribute in ATTRIBUTES),
            ]
        )
    return cells


def measure_videos(options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Make videos; print."""
    from speed_contest import Contest

    found = Contest(options, scratch).run()
    print(table(videos(found)))
    yield found


def measure_steps(options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Time single steps of random weights; yield the figures so far after each contender; print all."""
    from speed_random import comfyui_way, measure, rows_of_table, with_floor
    from wan_models import Shape

    best, comfyui = rates(options.device), None
    if options.comfyui:
        comfyui = comfyui_way(options.comfyui, options.comfyui_python, options.timed, scratch)
    shape = Shape(options.random, options.size)
    rows: list[dict[str, Any]] = []
    for measured, notes in measure(shape, options.device, options.rounds, options.timed, options.ways, comfyui):
        best = best.or_better(rates(options.device))
        rows = with_floor(measured, shape, options.device, best)
        yield {
            "flops_per_second": best.flops,
            "bytes_per_second": best.bandwidth,
            "model": options.random,
            "size": options.size,
            "steps": rows,
            "notes": notes,
        }
    print(table(rows_of_table(rows)))


def read_options(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    from wan_models import CONFIGS, SIZES

    checkout = os.environ.get("COMFYUI_PATH")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="built-in", help="a model in diffusers' form, by its name on the loader")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30, help="denoising steps of a video")
    parser.add_argument("--random", choices=list(CONFIGS), help="time steps of this shape with random weights instead")
    parser.add_argument("--size", choices=list(SIZES), default="480p", help="the video's, for --random")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all contenders, for --random")
    parser.add_argument("--timed", type=int, default=2, help="timed steps in a round, for --random")
    parser.add_argument("--ways", nargs="+", default=[""], metavar="TEXT", help="only contenders with such names")
    parser.add_argument("--comfyui", type=Path, default=checkout and Path(checkout), metavar="CHECKOUT")
    parser.add_argument("--comfyui-python", default=os.environ.get("COMFYUI_PYTHON", sys.executable), metavar="PYTHON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser.parse_args(given)


def main() -> None:
    """Read the options; measure; print; write."""
    options = read_options()
    load_pack()
    be_quiet()
    machine = describe(options.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()) + "\n")
    names = {str(options.comfyui): "COMFYUI", options.comfyui_python: "PYTHON", str(options.json): "FILE"}
    about = {**machine, "command": command("speed.py", sys.argv[1:], names)}
    found: dict[str, Any] = {"notes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for found in (measure_steps if options.random else measure_videos)(options, Path(scratch)):
            if options.json:
                write_json(options.json, {**about, **found})
    for name, note in found["notes"].items():
        print(f"\n{name}: {note}." if not note.endswith(".") else f"\n{name}: {note}")


if __name__ == "__main__":
    main()
