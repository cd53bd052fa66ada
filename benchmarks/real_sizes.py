"""Benchmark of whole runs at the published sizes, random weights: time and peak of each phase beside its plan.

    python benchmarks/real_sizes.py --runs vace-1.3b --scratch /disk --json benchmarks/results/real_sizes.json

Each run writes the files it needs (see real_weights.py), starts the runner in a process of its own on a shipped
workflow with a small size and few steps, and deletes the files. Memory is the process's own, without mapped files, as
the plan counts it; mapped files are beside it. Both are looked at every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from real_weights import FILES, ROOT, load_pack, write

POLL = 0.05  # seconds between two looks at the memory
GIB = 2**30


@dataclass(frozen=True)
class RealRun:
    """A run: files to write, and a workflow with the inputs that make it small."""

    files: tuple[str, ...]
    workflow: str
    inputs: dict[str, Any]


VIDEO = {
    "5.width": 64,
    "5.height": 64,
    "5.num_frames": 5,
    "5.steps": 2,
    "5.cfg": 1.0,
    "5.prompt": "a red circle moves right",
}
IMAGE = {"5.width": 1024, "5.height": 768, "5.steps": 1, "5.prompt": "a red circle"}
EXPAND = {"3.max_new_tokens": 8}
WAN = ("umt5-xxl-fp8-scaled", "wan-vae")
# Of a second run: what the first kept of its prompt and its latents is of no use to it.
SECOND = {
    "t2v": {"5.prompt": "a blue square turns around", "5.seed": 2},
    "t2i": {"5.prompt": "a blue square", "5.seed": 2},
}
RUNS = {
    "vace-1.3b": RealRun(("vace-1.3b-fp16", *WAN), "t2v", VIDEO),
    "vace-1.3b-folder": RealRun(("vace-1.3b-bf16", *WAN), "t2v", VIDEO),
    "vace-1.3b-fp8": RealRun(("vace-1.3b-fp8", *WAN), "t2v", VIDEO),
    "vace-1.3b-gguf": RealRun(("vace-1.3b-q4", *WAN), "t2v", VIDEO),
    "vace-14b": RealRun(("vace-14b-fp8-scaled", *WAN), "t2v", VIDEO | {"5.steps": 1}),
    "hunyuan-dit": RealRun(("hunyuan-dit", "hunyuan-bert", "hunyuan-t5", "hunyuan-vae"), "t2i", IMAGE),
    "qwen3-0.6b": RealRun(("qwen3-0.6b",), "t2v", EXPAND),
    "qwen3-4b": RealRun(("qwen3-4b",), "t2v", EXPAND),
}


def main() -> None:
    """Write, run and delete; print a table for each run."""
    options = _options()
    if options.child:
        run = RUNS[options.child]
        inputs = run.inputs | (SECOND.get(run.workflow, {}) if options.second else {})
        print(json.dumps(measured(replace(run, inputs=inputs), options.models)))
        return
    from machine import be_quiet, command, describe

    be_quiet()
    load_pack()
    machine, found = describe("cpu"), {}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for name in options.runs:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            models = options.models or Path(scratch) / "models"
            size = 0 if options.models else sum(write(FILES[file], models) for file in RUNS[name].files)
            child = [sys.executable, __file__, "--child", name, "--models", str(models)]
            environment = {**os.environ, "XDG_CACHE_HOME": scratch}  # nothing is there from a run before
            runs = []
            for again in [[], ["--second"]][: 1 + options.again]:
                ran = subprocess.run([*child, *again], stdout=subprocess.PIPE, text=True, check=True, env=environment)
                runs.append(json.loads(ran.stdout.splitlines()[-1]))
            found[name] = {"bytes": size, **runs[0]} | ({"again": runs[1]} if options.again else {})
        for one in runs:
            show(name, size, one)
        if options.json:  # after every run: they take long, and one that fails ends the rest
            names = {str(options.scratch): "SCRATCH", str(options.models): "MODELS"}
            text = {**machine, "command": command("real_sizes.py", sys.argv[1:], names), "runs": found}
            options.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN", help=", ".join(RUNS)
    )
    parser.add_argument("--scratch", type=Path, help="a folder on a disk with room for the largest model's files")
    parser.add_argument("--models", type=Path, help="a folder where the files are already; they are not deleted")
    parser.add_argument("--second", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help="run each twice: the second plan knows the first's times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--child", choices=list(RUNS), help=argparse.SUPPRESS)
    return parser.parse_args()


class Memory(threading.Thread):
    """The process's own memory and its mapped files, looked at again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.files = 0

    def run(self) -> None:
        """Look until the process ends."""
        import psutil

        process = psutil.Process()
        while True:
            info = process.memory_info()
            self.own, self.files = max(self.own, info.rss - info.shared), max(self.files, info.shared)
            time.sleep(POLL)

    def reset(self) -> None:
        """Count peaks from here on."""
        self.own = self.files = 0


def measured(run: RealRun, models: Path) -> dict[str, Any]:
    """Run a workflow in this process; return time and peaks of each phase and of loading, beside the plan."""
    load_pack()
    from piying.core.executor import execute_plan, model_cache
    from piying.runner.session import Session

    memory, phases, loads, plans = Memory(), [], [], []
    memory.start()
    enter, read, make = execute_plan.Meter.phase, model_cache.cached_model, execute_plan.plan

    @contextmanager
    def phase(self: Any, choice: Any) -> Iterator[None]:
        memory.reset()
        begun, busy = time.perf_counter(), time.process_time()
        try:
            with enter(self, choice):
                yield
        finally:  # random weights give answers that are no use
            taken = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - busy}
            phases.append({"phase": choice.phase, **taken, "own": memory.own, "mapped": memory.files})
            print(phases[-1], file=sys.stderr, flush=True)

    def cached(slot: str, key: Any, load: Any, *rest: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        model = read(slot, key, load, *rest, **options)
        loads.append({"slot": slot, "seconds": time.perf_counter() - begun})
        return model

    def planned(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        plans.append(made)
        return made

    execute_plan.Meter.phase, execute_plan.plan = phase, planned
    for module in list(sys.modules.values()):
        if getattr(module, "cached_model", None) is read:
            module.cached_model = cached
    with tempfile.TemporaryDirectory() as output:
        session = Session(models=[models], output=Path(output), device="cpu")
        begun = time.perf_counter()
        finished = session.run(ROOT / "workflows" / f"{run.workflow}.json", set=run.inputs)
        seconds = time.perf_counter() - begun
    told = {
        one.phase: {"plan_seconds": one.seconds, "plan_own": one.ram + one.cached, "how": one.choice}
        for made in plans
        for one in made.phases
    }
    rows = [{**row, **told.get(row["phase"], {})} for row in phases]
    return {"seconds": seconds, "phases": rows, "loads": loads, "files": len(finished.files)}


def show(name: str, size: int, found: dict[str, Any]) -> None:
    """Print a run's phases."""
    print(f"\n{name}: {size / 1e9:.1f} GB of files, {found['seconds']:.0f} s in all")
    print(f"{'phase':10}{'how':34}{'s':>8}{'plan s':>8}{'GiB':>7}{'plan':>7}{'mapped':>8}")
    for row in found["phases"]:
        times = f"{row['seconds']:8.1f}{row['plan_seconds']:8.1f}"
        memory = f"{row['own'] / GIB:7.2f}{row['plan_own'] / GIB:7.2f}{row['mapped'] / GIB:8.2f}"
        print(f"{row['phase']:10}{row['how']:34}{times}{memory}")
    for load in found["loads"]:
        if load["seconds"] > 0.1:
            print(f"loading {load['slot']}: {load['seconds']:.1f} s")


if __name__ == "__main__":
    main()
