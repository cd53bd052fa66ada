"""Benchmark of a denoising step of two prompts at the published shapes, random weights, for each optimisation.

Without a card, peaks are counted as operations are called, and compiled blocks are then called as if they were not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from floors import Rates
from measuring import is_card
from wan_models import Shape, weights
from wan_steps import CONTENDERS, Case, Contender, core, merged, ours, phase_of, theirs, wanted

Row = dict[str, Any]
BASE = ("Piying, resident", "diffusers, resident", "Piying, fp8", "Piying, fp8 matmul")


def kernels(device: str) -> tuple[list[Contender], dict[str, str]]:
    """Return a contender for each attention kernel that runs here, and why the others do not."""
    attention, errors = core("wan.attention"), core("errors")
    found, left_out = [], {}
    for word in sorted({kernel.name for kernel in attention.KERNELS}):
        name = f"Piying, attention by {word}"
        try:
            chosen = attention.attention_for(word, "reference", device, False)
        except errors.PiyingError as error:
            left_out[name] = str(error)
            continue
        found.append(Contender(name, ours("bf16", "resident", inside=_with_kernel(chosen))))
    return found, left_out


def _with_kernel(chosen: Any) -> Callable[[Any], AbstractContextManager[Any]]:
    return lambda model: chosen.enabled("bf16")


def _compiled(model: Any) -> AbstractContextManager[Any]:
    torch.compiler.reset()  # of what contenders before have had compiled
    compiled: AbstractContextManager[Any] = core("wan.transformer").compiled_blocks(model)
    return compiled


def _theirs_compiled(model: Any, device: str) -> None:
    torch.compiler.reset()
    model.to(device).compile_repeated_blocks()


def contenders(device: str) -> tuple[list[Contender], dict[str, str]]:
    """Return what runs on a device, the one others are compared with first, and why the rest does not."""
    by_name = {contender.name: contender for contender in CONTENDERS}
    base = [by_name[name] for name in BASE]
    faster, left_out = kernels(device)
    found = [
        base[0],
        Contender("Piying, one batch", ours("bf16", "resident", batched=True)),
        *faster,
        Contender("Piying, compiled blocks", ours("bf16", "resident", inside=_compiled)),
        Contender("Piying, compiled blocks, one batch", ours("bf16", "resident", batched=True, inside=_compiled)),
        *base[2:],
        base[1],
        Contender("diffusers, compiled blocks", theirs(_theirs_compiled)),
    ]
    left_out |= {each.name: "the device cannot do it" for each in found if not each.runs_on(device)}
    return [each for each in found if each.runs_on(device)], left_out


def with_floor(rows: list[Row], shape: Shape, device: str, best: Rates) -> list[Row]:
    """Return rows with the least seconds of a step: both predictions' arithmetic, or reading the weights for each."""
    phase, kind = phase_of(shape), "bf16" if is_card(device) else "fp32"
    least = best.floor(phase.flops, 2.0 * phase.component.bytes(kind, kind))
    shares = [100 * least / statistics.median(row["seconds"]) for row in rows]
    return [
        row | {"floor": least, "percent of floor": round(share, 1)} for row, share in zip(rows, shares, strict=True)
    ]


def measure(
    shape: Shape,
    device: str,
    rounds: int,
    steps: int,
    ways: list[str],
    comfyui: Callable[[Case], Row] | None = None,
) -> Iterator[tuple[list[Row], dict[str, str]]]:
    """Yield, after each measurement, a row for each contender so far, and why contenders are left out.

    Args:
        steps: timed steps of a contender in a round.
        ways: of which contenders, as `wan_steps.wanted` reads them.
        comfyui: measures ComfyUI's steps.

    Raises:
        RuntimeError, ValueError, NotImplementedError: a contender of ours has failed; after the last measurement.
    """
    dtype = torch.bfloat16 if is_card(device) else torch.float32
    case = Case(shape, device, dtype, weights(shape.model, dtype, device))
    usable, left_out = contenders(device)
    names = wanted([each.name for each in usable], ways)
    usable = [each for each in usable if each.name in names]
    turns = {each.name: lambda each=each: case.measure(each, steps) for each in usable}
    if comfyui is not None:
        turns["ComfyUI"] = lambda: comfyui(case)
    found: dict[str, list[Row]] = {}
    errors: list[Exception] = []
    for _ in range(rounds):
        for name, turn in turns.items():
            if any("error" in row for row in found.get(name, [])):
                continue
            try:
                found.setdefault(name, []).append(turn())
            except (RuntimeError, ValueError, NotImplementedError) as error:
                # Ours, which is not to be taken for what a device cannot do; the others are measured first.
                found[name] = [{"error": f"{type(error).__name__}: {error}"}]
                errors.append(error)
            rows = [{"name": name, **merged(several)} for name, several in found.items()]
            failed = {row["name"]: row["error"] for row in rows if "error" in row}
            yield [row for row in rows if "error" not in row], left_out | failed
    if errors:
        raise errors[0]


def rows_of_table(rows: list[Row]) -> list[list[str]]:
    """Return the cells of the table, its head first."""
    cells = [["", "seconds a step", "from - to", "floor", "% of floor", "peak GB", "error"]]
    for row in rows:
        times = row["seconds"]
        cells.append(
            [
                row["name"],
                f"{statistics.median(times):.3f}",
                f"{min(times):.3f} - {max(times):.3f}",
                f"{row['floor']:.3f}",
                f"{row['percent of floor']:.0f}",
                f"{row['peak'] / 1e9:.3g}",
                f"{row['error_rms']:.1e}",
            ]
        )
    return cells


def comfyui_way(checkout: Path, python: str, steps: int, scratch: Path) -> Callable[[Case], Row]:
    """Return what measures ComfyUI's steps of a case."""
    from apart import comfyui_steps
    from wan_comfyui import TORCH_ATTENTION

    def measured(case: Case) -> Row:
        options = [] if is_card(case.device) else [TORCH_ATTENTION]
        return comfyui_steps(case, None, steps, checkout, python, scratch, *options)

    return measured
