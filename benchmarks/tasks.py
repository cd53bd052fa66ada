"""Benchmark of VACE tasks with the built-in model: `python -m benchmarks.tasks --count 24 --bench`.

Clips that the model was never trained on become tasks through the pack's own code, are sampled, and are read from
their pixels. `--bench` gives time and memory of each task beside diffusers' WanVACEPipeline with the same inputs.
Figures go to benchmarks/results/tasks.json, tables to docs/vace_scores.md; a part that is not measured anew stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from . import task_bench, task_cases, task_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "tasks.json", ROOT / "docs" / "vace_scores.md"


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=24, help="clips of each task; 0: no scores")
    parser.add_argument("--tasks", nargs="*", choices=list(task_cases.TASKS), default=list(task_cases.TASKS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--shift", type=float, default=5.0)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bench", action="store_true", help="measure time and memory too")
    parser.add_argument("--rounds", type=int, default=3, help="of --bench")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


def main() -> None:
    """Measure, and write figures and tables."""
    given = parse()
    torch.set_num_threads(1)
    found = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
    settings = task_cases.Settings(given.frames, given.steps, given.cfg, given.shift, given.seed)
    about = {"machine": _machine(), "torch": torch.__version__, **settings.__dict__}
    with tempfile.TemporaryDirectory() as cache:
        if given.count:
            scores = {task: _scores(task, given.count, settings, Path(cache)) for task in given.tasks}
            found["scores"] = {**about, "count": given.count, "tasks": scores}
        if given.bench:
            rows = {task: task_bench.measure(task, settings, given.rounds, Path(cache)) for task in given.tasks}
            found["bench"] = {**about, "rounds": given.rounds, "tasks": rows}
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    given.page.write_text(task_table.page(found), encoding="utf-8")


def _scores(task: str, count: int, settings: task_cases.Settings, cache: Path) -> dict[str, Any]:
    scores = task_cases.score(task, count, settings, cache)
    print(task, scores, flush=True)
    return scores


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread"


if __name__ == "__main__":
    main()
