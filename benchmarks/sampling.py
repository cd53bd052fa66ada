"""What the built-in model shows with every sampler and guidance, and which combinations run.

    python -m benchmarks.sampling --scenes 12 --json benchmarks/results/sampling.json
    python -m benchmarks.sampling --combinations

The first scores held-out captions: the share of videos whose background, colour, shape and motion are those asked for.
The second makes a short video, and a long one of three windows, with every task, sampler and guidance, and tells what
does not run with its reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.reading import read_video
from training.samples import pack

from . import task_cases

Row = dict[str, Any]


def guidances() -> dict[str, Any]:
    """Return every kind of guidance, by name."""
    guidance = pack("core.wan.guidance").Guidance
    return {
        "cfg": guidance(),
        "cfg_zero_star": guidance("cfg_zero_star"),
        "apg": guidance("apg"),
        "tcfg": guidance("tcfg"),
        "cfg_steps": guidance(cfg_steps=(5.0, 4.0, 3.0, 2.0)),
        "nag": guidance(nag_scale=3.0),
        "slg": guidance(slg_scale=0.5, slg_blocks=(1,)),
    }


def samplers() -> tuple[str, ...]:
    """Return the samplers' names, without auto."""
    names: tuple[str, ...] = pack("core.wan.request").SAMPLERS[1:]
    return names


def scored(scenes: int, settings: task_cases.Settings, folder: Path) -> Iterator[Row]:
    """Yield the scores of each sampler under plain guidance, and of each guidance with UniPC."""
    sample = pack("core.wan.run").sample
    pairs = [(name, "cfg") for name in samplers()] + [("uni_pc", name) for name in list(guidances())[1:]]
    for sampler, guided in pairs:
        source, found = task_cases.cases("t2v", settings), []
        for index in range(scenes):
            case = next(source)
            asked = task_cases.request(case, settings, index)
            asked = replace(asked, sampler=sampler, guidance=guidances()[guided])
            frames, _ = sample(task_cases.handle(), asked, task_cases.host(folder))
            reading = read_video(frames.numpy())
            found.append([float(getattr(reading, name) == getattr(case.scene, name)) for name in task_cases.READ])
        means = dict(zip(task_cases.READ, np.round(np.mean(found, 0), 3).tolist(), strict=True))
        yield {"sampler": sampler, "guidance": guided, **means}


def combined(settings: task_cases.Settings, folder: Path) -> Iterator[Row]:
    """Yield what becomes of each task with each sampler and guidance, short and long: "runs", or why not."""
    error = pack("core.errors").PiyingError
    sample, long_video = pack("core.wan.run").sample, pack("core.wan.long.sample").make_long_video
    long_request = pack("core.wan.long.request").LongRequest
    for task in task_cases.TASKS:
        case, three = (next(task_cases.cases(task, replace(settings, frames=count))) for count in (5, 13))
        for sampler in samplers():
            for guided, guidance in guidances().items():
                asked = replace(task_cases.request(case, settings, 0), sampler=sampler, guidance=guidance)
                row = {"task": task, "sampler": sampler, "guidance": guided}
                try:
                    frames, _ = sample(
                        task_cases.handle(), replace(asked, num_frames=5), task_cases.host(folder), case.task
                    )
                    row["short"] = "runs" if frames.isfinite().all() else "not finite"
                except error as refused:
                    row["short"] = str(refused)
                try:
                    windows = long_request(replace(asked, num_frames=13), window=9, overlap=5, seams="blended")
                    path, _ = long_video(task_cases.handle(), windows, task_cases.host(folder), three.task)
                    row["long"] = "runs" if path.stat().st_size else "empty"
                except error as refused:
                    row["long"] = str(refused)
                yield row


def as_table(rows: list[Row]) -> str:
    """Return rows in Markdown."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(rows: list[Row]) -> str:
    """Return how many combinations run, and the reasons of the others."""
    lines = []
    for length in ("short", "long"):
        answers = [row[length] for row in rows]
        lines.append(f"{length}: {answers.count('runs')} of {len(answers)} run")
        lines += sorted({f"  {answer}" for answer in answers if answer != "runs"})
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--scenes", type=int, default=12)
    parse.add_argument("--steps", type=int, default=12)
    parse.add_argument("--combinations", action="store_true")
    parse.add_argument("--scratch", type=Path)
    parse.add_argument("--json", type=Path)
    options = parse.parse_args()
    logging.getLogger("piying").setLevel(logging.ERROR)
    settings = task_cases.Settings(steps=2 if options.combinations else options.steps)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        made = (
            combined(settings, Path(folder))
            if options.combinations
            else scored(options.scenes, settings, Path(folder))
        )
        for row in made:
            rows.append(row)
            print(*row.values(), flush=True)
    print(counted(rows) if options.combinations else as_table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
