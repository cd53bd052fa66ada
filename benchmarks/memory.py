"""Benchmark of memory modes: steps resident, streamed and in FP8, loading, the VAE, and phase changes.

    python benchmarks/memory.py [--models 1.3B 14B] [--sizes 480p 720p] [--caps 24 16 8 6] [--comfyui DIR]

Ours and plain diffusers' ways (and ComfyUI's, given a checkout) run the same random weights in turn, in
one run: a round of all contenders, then the next. On a card the real models are measured; on a CPU a
toy, in fp32 and in processor time. Prints tables, and writes them as JSON with the machine's name into
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from machine import ROOT, be_quiet, command, describe, load_pack, slug, write_json

TYPES = ("fp32", "fp16", "bf16")
PARTS = ("activations", "step", "vae", "load", "phases")
Row = dict[str, Any]


def main() -> None:
    """Read the options; measure; write."""
    options = _options()
    load_pack()
    be_quiet()
    machine = describe(options.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    target = options.json or ROOT / "benchmarks" / "results" / f"memory-{slug(machine['device'])}.json"
    found: dict[str, list[Row]] = {}
    temporary = tempfile.TemporaryDirectory(dir=options.scratch)
    with nullcontext(options.scratch) if options.keep else temporary as scratch:
        for part in options.only:
            found[part] = []
            for rows in globals()[f"part_{part}"](options, Path(scratch)):
                found[part] += rows
                # As they come: a run on a card that is lent for minutes may be stopped.
                write_json(target, {**machine, "command": _command(options), **found})
    print(f"\n{target}")


def _options() -> argparse.Namespace:
    import torch

    card = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda:0" if card else "cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--models", nargs="+", default=["1.3B", "14B"] if card else ["toy"], metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", default=["480p", "720p"] if card else ["toy"], metavar="SIZE")
    parser.add_argument(
        "--caps",
        nargs="*",
        type=float,
        default=[24, 16, 8, 6] if card else [],
        metavar="GB",
        help="cards to stand in for; a GB is 2**30 bytes",
    )
    parser.add_argument("--capped", action="store_true", help="only under the caps, not with the whole card")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["fp32"], help="the VAE's, on a card")
    parser.add_argument(
        "--ways", nargs="+", default=[""], metavar="TEXT", help="only ways with that in their name, or of that name"
    )
    parser.add_argument("--rounds", type=int, default=1 if card else 3, help="rounds of all contenders")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a contender in a round; of a whole run")
    parser.add_argument("--threads", type=int, help="threads torch may use on the CPU")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout to measure beside ours")
    parser.add_argument(
        "--comfyui-python", default=sys.executable, metavar="PYTHON", help="the Python that can run it"
    )
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to write models for the time of the run")
    parser.add_argument("--keep", action="store_true", help="leave the models in --scratch, for another run")
    parser.add_argument("--runs", type=int, default=3, help="of a whole model: first, other prompt, same prompt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if options.keep and options.scratch is None:
        parser.error("--keep needs --scratch, the folder to leave models in.")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def _command(options: argparse.Namespace) -> str:
    names = {str(options.comfyui): "COMFYUI", options.comfyui_python: "PYTHON", str(options.scratch): "SCRATCH"}
    return command("memory.py", sys.argv[1:], names)


def part_activations(options: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    """Count the activations of the real models, without a card and without weights."""
    del options, scratch
    from wan_phases import activations

    print("\nActivations of a prediction in bf16, GiB, counted on the meta device")
    print(f"{'':38}{'diffusers':>14}{'one prompt':>14}{'two prompts':>14}")
    for model in ("1.3B", "14B"):
        for size in ("480p", "720p"):
            found = activations(model, size)
            print(
                f"{f'{model} {size}':38}" + "".join(f"{value / 2**30:14.2f}" for value in found.values()), flush=True
            )
            yield [{"model": model, "size": size, **found}]


def part_step(options: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    """Measure a denoising step of two prompts: resident, under caps, FP8."""
    import torch
    from wan_models import Shape, weights
    from wan_steps import Case

    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    print(f"\nA denoising step of two prompts, {str(dtype).removeprefix('torch.')}")
    _head("seconds", "(from - to)", "peak GB", "planned", "host GB", "moved GB", "stall s", "error")
    for model in options.models:
        state = weights(model, dtype, options.device)
        for size in options.sizes:
            expected = None
            for cap in _caps(options):
                case = Case(Shape(model, size), options.device, dtype, state, cap, expected)
                yield from _steps(case, options, scratch)
                expected = case.expected
        del state
        gc.collect()


def _steps(case: Any, options: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    from apart import comfyui_steps
    from wan_steps import CONTENDERS, merged, wanted

    usable = [contender for contender in CONTENDERS if contender.runs_on(options.device)]
    storages = {"ComfyUI": None, "ComfyUI, fp8": "float8_e4m3fn"} if options.comfyui else {}
    names = wanted([*(contender.name for contender in usable), *storages], options.ways)
    usable = [contender for contender in usable if contender.name in names]
    storages = {name: storage for name, storage in storages.items() if name in names}
    found: dict[str, list[Row]] = {contender.name: [] for contender in usable}
    errors: list[Exception] = []
    for _ in range(options.rounds):
        for contender in usable:
            if any("error" in row for row in found[contender.name]):
                continue
            try:
                found[contender.name].append(case.measure(contender, options.steps))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                # Ours, which is not to be taken for what a device cannot do; the others are measured first.
                found[contender.name] = [{"error": f"{type(error).__name__}: {error}"}]
                errors.append(error)
        for name, storage in storages.items():
            found.setdefault(name, []).append(
                comfyui_steps(case, storage, options.steps, options.comfyui, options.comfyui_python, scratch)
            )
    planned = {contender.name: case.predicted(contender) for contender in usable}
    rows = [
        {
            "model": case.shape.model,
            "size": case.shape.size,
            "cap": case.cap,
            "name": name,
            "planned": planned.get(name),
            **merged(rounds),
        }
        for name, rounds in found.items()
    ]
    label = f"{case.shape.model} {case.shape.size}" + (f", {case.cap:g} GB" if case.cap else "")
    print(f"-- {label}")
    for row in rows:
        _line(row)
    yield rows
    if errors:
        raise errors[0]


def part_vae(options: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    """Measure encoding and decoding a video, in fp32."""
    del scratch
    from wan_models import SIZES
    from wan_phases import measure_vae

    print("\nThe VAE")
    _head("seconds", "(from - to)", "peak GB")
    for size in options.sizes:
        width, height, frames = SIZES[_own(size, "vae")]
        found = measure_vae(options.models[0], _own(size, "vae"), options.device, options.rounds, options.types)
        print(f"-- {size}, {width} × {height} × {frames}")
        for row in found:
            _line(row)
        yield [{"size": size, **row} for row in found]


def part_load(options: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    """Measure the way of a transformer from its file to the device."""
    import torch
    from wan_phases import measure_load

    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    print("\nLoading a transformer; the file is in the system's cache")
    _head("seconds", "(from - to)", "GB/s")
    for model in options.models:
        found = measure_load(model, scratch / f"load-{model}", options.device, dtype, options.rounds)
        print(f"-- {model}, {found[0]['bytes'] / 1e9:.2f} GB")
        for row in found:
            _line({**row, "rate": row["bytes"] / statistics.median(row["seconds"])})
        yield [{"model": model, **row} for row in found]


def part_phases(options: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    """Measure whole runs of a few steps, from the prompt to the frames."""
    from wan_phases import RUNS, WholeRun, measure_phases

    print(f"\nWhole runs of {options.steps} steps, seconds")
    runs = [name for name, _, _ in RUNS[: options.runs]]
    print(f"{'':38}" + "".join(f"{name:>14}" for name in runs) + f"{'peak GB':>10}")
    for model in options.models[:1]:
        for size in options.sizes[:1]:
            for cap in _caps(options):
                print(f"-- {model} {size}" + (f", {cap:g} GB" if cap else ""))
                case = WholeRun(model, _own(size, "run"), options.device, scratch, cap, options.runs, options.steps)
                found = measure_phases(case, options.rounds, options.ways)
                for row in found:
                    cells = "".join(f"{row[name]:14.2f}" for name in runs) if "error" not in row else row["error"]
                    print(f"{row['name']:38}{cells}" + _gigabytes(row.get("peak")), flush=True)
                yield [{"model": model, "size": size, "cap": cap, **row} for row in found]


def _caps(options: argparse.Namespace) -> list[float | None]:
    return [*([] if options.capped else [None]), *options.caps]


def _own(size: str, part: str) -> str:
    """Return the size a part measures; the toy has one for each."""
    return f"toy {part}" if size == "toy" else size


def _head(*names: str) -> None:
    print(f"{'':38}" + "".join(f"{name:>{18 if name.startswith('(') else 10}}" for name in names))


def _line(row: Row) -> None:
    if "error" in row:
        print(f"{row['name']:38}{row['error'][:80]}", flush=True)
        return
    times = row["seconds"]
    cells = f"{statistics.median(times):10.3f}{f'({min(times):.3f} - {max(times):.3f})':>18}"
    cells += "".join(_gigabytes(row.get(key)) for key in _columns(row))
    if "error_rms" in row:
        cells += f"{row['stall_per_step']:10.3f}" if "stall_per_step" in row else f"{'-':>10}"
        cells += f"{row['error_rms']:10.1e}"
    print(f"{row['name']:38}{cells}", flush=True)


def _columns(row: Row) -> Iterable[str]:
    if "rate" in row:
        return ("rate",)
    return ("peak", "planned", "host", "moved_per_step") if "error_rms" in row else ("peak",)


def _gigabytes(value: float | None) -> str:
    """Return bytes in GB of 10**9, with three figures."""
    return f"{'-':>10}" if value is None else f"{value / 1e9:10.3g}"


if __name__ == "__main__":
    main()
