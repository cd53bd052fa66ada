"""Benchmark of the execution engine: overhead per node on chains and diamonds of no-op nodes.

    python benchmarks/engine.py [--sizes 10 100 1000 10000] [--comfyui DIR] [--json FILE]

For each graph: validation, a first run, a run with everything cached, and a run after one leaf
changed, in microseconds per node, the best of several. With a checkout, ComfyUI's executor runs the
same graphs, as far as it can and as they take under a minute.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Api = dict[str, dict[str, Any]]
REPEATS = 5
SLOW = 60.0  # seconds; larger graphs are left out behind a slower one


class Same:
    """Gives its input."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare two inputs."""
        return {"required": {"a": ("INT", {}), "b": ("INT", {})}}

    def run(self, a: int, b: int) -> tuple[int]:
        """Return the first."""
        return (a,)


class End(Same):
    """The output node."""

    OUTPUT_NODE = True
    RETURN_TYPES = ()

    def run(self, a: int, b: int) -> tuple[()]:  # type: ignore[override]
        """Return nothing."""
        return ()


CLASSES = {"Same": Same, "End": End}


def chain(size: int) -> Api:
    """Return nodes one behind the other."""
    return _graph(size, lambda index: [[str(index - 1), 0], index])


def diamonds(size: int) -> Api:
    """Return nodes that each use the two before them."""
    return _graph(size, lambda index: [[str(index - 1), 0], [str(max(index - 2, 0)), 0]])


def _graph(size: int, inputs: Callable[[int], list[Any]]) -> Api:
    api: Api = {"0": {"class_type": "Same", "inputs": {"a": 0, "b": 0}}}
    for index in range(1, size):
        a, b = inputs(index)
        api[str(index)] = {"class_type": "End" if index == size - 1 else "Same", "inputs": {"a": a, "b": b}}
    return api


def with_leaf(api: Api, value: int) -> Api:
    """Return the graph with another literal in its last node, so that this one alone runs again."""
    last = str(len(api) - 1)
    return {**api, last: {"class_type": "End", "inputs": {**api[last]["inputs"], "b": value}}}


def measure_ours(api: Api, repeats: int) -> dict[str, float]:
    """Return seconds of each kind of run, best of `repeats`."""
    runner = _load_runner()
    info = runner("definitions").object_info(CLASSES, {})
    parse, validate = runner("graph").parse_graph, runner("validate").validate_graph
    rounds = []
    for repeat in range(repeats):
        graph, changed = parse(api), parse(with_leaf(api, -1 - repeat))
        executor, hidden = runner("execute").Executor(CLASSES, _Silent()), runner("execute").Hidden()
        roots = [str(len(api) - 1)]
        seconds = {"validate": timed(validate, graph, info, CLASSES)}
        for name, each in (("cold", graph), ("cached", graph), ("one leaf", changed)):
            seconds[name] = timed(executor.run, each, roots, hidden)
        rounds.append(seconds)
    return best(rounds)


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the least of each figure."""
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the processor seconds a call takes; other programs on a busy machine do not count."""
    begun = time.process_time()
    call(*arguments)
    return time.process_time() - begun


class _Silent:
    def node_started(self, node: Any) -> None:
        """Ignore it."""

    def node_finished(self, node: Any, ui: Any, cached: bool) -> None:
        """Ignore it."""

    def node_blocked(self, node: Any, message: str) -> None:
        """Ignore it."""


def _load_runner() -> Callable[[str], Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    importlib.import_module("conftest")
    sys.path.pop(0)
    return lambda name: importlib.import_module(f"piying.runner.{name}")


def measure_theirs(api: Api, repeats: int, checkout: Path) -> dict[str, float]:
    """Return the same for ComfyUI's executor; to be called in a process of its own."""
    sys.path.insert(0, str(checkout))
    sys.argv[1:] = ["--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    execution, nodes = importlib.import_module("execution"), importlib.import_module("nodes")
    asyncio = importlib.import_module("asyncio")
    nodes.NODE_CLASS_MAPPINGS.update(CLASSES)
    last = [str(len(api) - 1)]
    rounds = []
    for repeat in range(repeats):
        executor = execution.PromptExecutor(_Server())
        seconds = {"validate": timed(asyncio.run, execution.validate_prompt("p", api, None))}
        for name, graph in (("cold", api), ("cached", api), ("one leaf", with_leaf(api, -1 - repeat))):
            seconds[name] = timed(executor.execute, graph, "p", {}, last)
        rounds.append(seconds)
    return best(rounds)


class _Server:
    client_id = last_node_id = None

    def send_sync(self, *arguments: Any) -> None:
        """Ignore it."""


def theirs_in_a_process(shape: str, size: int, checkout: Path, python: str) -> dict[str, float]:
    """Measure ComfyUI apart from us: it has modules called `nodes` and `execution`."""
    command = [python, str(Path(__file__).resolve()), "--worker", shape, str(size), "--comfyui", str(checkout)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def report(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything and print a table."""
    rows = []
    contenders = ["ours"] + (["ComfyUI"] if options.comfyui else [])
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; µs per node")
    print(f"{'graph':16}{'engine':10}{'validate':>10}{'cold':>10}{'cached':>10}{'one leaf':>10}")
    for shape in ("chain", "diamonds"):
        for contender in contenders:
            for size in options.sizes:
                try:
                    found = _measure(contender, shape, size, options)
                except RuntimeError as error:
                    print(f"{f'{shape} {size}':16}{contender:10} cannot: {error}")
                    break
                rows.append({"graph": shape, "nodes": size, "engine": contender, "seconds": found})
                cells = "".join(f"{value / size * 1e6:10.1f}" for value in found.values())
                print(f"{f'{shape} {size}':16}{contender:10}{cells}", flush=True)
                if found["cold"] > SLOW / 10:
                    break
    return rows


def _measure(contender: str, shape: str, size: int, options: argparse.Namespace) -> dict[str, float]:
    if contender == "ours":
        return measure_ours(globals()[shape](size), REPEATS)
    return theirs_in_a_process(shape, size, options.comfyui, options.comfyui_python)


def main() -> None:
    """Read the options; measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout to measure beside ours")
    parser.add_argument(
        "--comfyui-python", default=sys.executable, metavar="PYTHON", help="the Python that can run it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--worker", nargs=2, metavar=("SHAPE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        shape, size = options.worker
        print(json.dumps(measure_theirs(globals()[shape](int(size)), 3, options.comfyui.resolve())))
        return
    rows = report(options)
    if options.json:
        machine = {"machine": platform.platform(), "python": platform.python_version(), "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
