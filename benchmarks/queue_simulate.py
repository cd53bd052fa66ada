"""Placement of the queue beside first-come placement: a day of mixed jobs on 1,000 simulated cards.

Needs no card and no models. What a job needs on each kind of card is the planner's word; the placement by plan is the
function that the queue calls. Run it from the project's folder:

    python benchmarks/queue_simulate.py --seeds 0 1 2 --json benchmarks/results/queue_simulate.json
    python benchmarks/queue_simulate.py --estimates
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import conftest  # noqa: F401, E402 - loads the pack under the name piying
from simulated_queue import Cards, JobType, Policy, Scenario, Simulation, blind, by_plan, first_come  # noqa: E402

GB = 2**30
RAM = 64  # GB of main memory
NO_DISK = 1e18  # bytes per second: weights that are loaded are not read
# By NVIDIA's papers: name, count, GB, compute capability, multiprocessors, clock, bytes per second, watts.
CARDS = (
    ("GeForce RTX 4060", 400, 8, (8, 9), 24, 2.46e9, 272e9, 115),
    ("GeForce RTX 4080", 300, 16, (8, 9), 76, 2.505e9, 717e9, 320),
    ("GeForce RTX 4090", 200, 24, (8, 9), 128, 2.52e9, 1008e9, 450),
    ("H100 SXM", 100, 80, (9, 0), 132, 1.83e9, 3352e9, 700),
)
POLICIES = ("by plan", "first come", "first come, blind to memory")
SHOWN = (
    "jobs done in the day",
    "mean wait",
    "p95 wait",
    "longest wait",
    "mean turnaround",
    "makespan",
    "share of busy time loading",
    "utilisation",
    "kWh",
    "out of memory",
)


def module(name: str) -> Any:
    """Return a module of the pack."""
    return importlib.import_module(f"piying.{name}")


def machine(row: tuple[Any, ...]) -> Any:
    """Return a kind of card as the planner sees one that was not measured."""
    name, _, vram, capability, multiprocessors, clock, bandwidth, _ = row
    machines = module("core.planner.machine")
    typical = machines.synthetic(vram, RAM)
    peak = machines.peak_operations(capability, multiprocessors, clock, name)
    flops = peak * machines.REACHED
    return replace(
        typical,
        name=name,
        bf16_flops=flops,
        # In proportion to the typical card's: both have FP8 products at twice the rate.
        native_flops={one: rate * flops / typical.bf16_flops for one, rate in typical.native_flops.items()},
        bandwidth=bandwidth * machines.MEMORY_REACHED,
        pcie=machines.pcie_rate(capability),
        capability=capability,
    )


def estimated(phases: Any, row: tuple[Any, ...], times: int = 1) -> Any:
    """Return the planner's estimate of a run of so many repetitions on a kind of card.

    A plan lets reading overlap with arithmetic; here it comes before it, as it is measured in runs.
    """
    plan, estimate = module("core.planner.plan").plan, module("serve.placement").Estimate
    made = plan(phases, machine(row))
    loaded = plan(phases, replace(machine(row), disk=NO_DISK))
    loading = sum(phase.loading for phase in made.phases)
    return estimate(made.fits, loaded.seconds * times, loading, made.peak_vram, made.peak_ram)


def job_types() -> tuple[JobType, ...]:
    """Return the mix of a day: what a studio and its users might send; the shares are an assumption."""
    video, z_image, hunyuan = (module(f"core.{name}.phases") for name in ("wan", "z_image", "hunyuan_dit"))
    prompts = module("core.prompting.phases")
    listed = module("core.catalog.component_sizes").listed_components

    def clip(width: int, height: int, frames: int, steps: int, cfg: float) -> Any:
        return video.VideoWork(width, height, frames, steps=steps, cfg=cfg)

    small, large = "wan2.1-vace-1.3b", "wan2.1-vace-14b-fp8"
    mix: tuple[tuple[str, float, str, str, Any, Any, int], ...] = (
        ("prompt", 0.15, "prompts", "qwen3-4b", prompts, prompts.PromptWork(), 1),
        ("image", 0.15, "z_image", "z-image-turbo", z_image, z_image.ZImageWork(), 1),
        ("image, Hunyuan-DiT", 0.03, "hunyuan", "hunyuan-dit-v1.2", hunyuan, hunyuan.ImageWork(1024, 1024), 1),
        ("edit of an image", 0.05, "z_image", "z-image-turbo", z_image, z_image.ZImageWork(has_image=True), 1),
        ("1.3B, 480p", 0.20, "wan", small, video, clip(832, 480, 81, 30, 5.0), 1),
        ("1.3B, 720p", 0.10, "wan", small, video, clip(1280, 720, 81, 30, 5.0), 1),
        ("14B, 480p, 4 steps", 0.12, "wan", large, video, clip(832, 480, 81, 4, 1.0), 1),
        ("14B, 720p, 4 steps", 0.08, "wan", large, video, clip(1280, 720, 81, 4, 1.0), 1),
        ("14B, 480p", 0.05, "wan", large, video, clip(832, 480, 81, 40, 5.0), 1),
        ("14B, 720p", 0.04, "wan", large, video, clip(1280, 720, 81, 40, 5.0), 1),
        ("14B, 480p, long: 8 windows", 0.02, "wan", large, video, clip(832, 480, 81, 4, 1.0), 8),
        ("14B, 720p, 241 frames", 0.01, "wan", large, video, clip(1280, 720, 241, 4, 1.0), 1),
    )
    return tuple(
        JobType(
            name,
            {slot: model},
            {row[0]: estimated(of.phases(listed(model), work), row, times) for row in CARDS},
            share,
        )
        for name, share, slot, model, of, work, times in mix
    )


def measured_error() -> tuple[float, float, float]:
    """Return how far the planner's times were off in runs at the published sizes, in logarithms of real over planned.

    Returns:
        The standard deviation and the mean over first runs, of which a machine knows nothing, and the standard
        deviation over second runs.
    """
    first, again = [], []
    for name in ("real_sizes", "real_sizes_again"):
        results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for run in results["runs"].values():
            for of, into in ((run, first), (run.get("again"), again)):
                if of:
                    real, planned = (sum(phase[key] for phase in of["phases"]) for key in ("seconds", "plan_seconds"))
                    into.append(math.log(real / planned))
    return stdev(first), fmean(first), stdev(again)


def scenarios(jobs: float, types: tuple[JobType, ...]) -> dict[str, Scenario]:
    """Return the days that are simulated, by name; `jobs` come on a busy one."""
    cards = tuple(Cards(row[0], row[1], row[2] * GB, row[7]) for row in CARDS)
    bias, longer, spread = measured_error()
    busy = Scenario(cards, types, jobs, bias=bias, longer=longer, spread=spread)
    of_one_model = next(one for one in types if one.name == "1.3B, 480p")
    one_kind = next(one for one in cards if one.kind == "GeForce RTX 4090")
    return {
        "quiet": replace(busy, jobs=0.6 * jobs),
        "busy": busy,
        "overloaded": replace(busy, jobs=1.5 * jobs),
        "busy, exact estimates": replace(busy, bias=0.0, longer=0.0, spread=0.0),
        "busy, estimates off by three": replace(busy, bias=math.log(3)),
        "one kind of card, one kind of job": replace(
            busy, cards=(replace(one_kind, count=100),), types=(of_one_model,), jobs=15_000
        ),
    }


def smaller(scenario: Scenario, share: float) -> Scenario:
    """Return a day with a share of the cards and of the jobs."""
    cards = tuple(replace(one, count=max(1, round(one.count * share))) for one in scenario.cards)
    return replace(scenario, cards=cards, jobs=scenario.jobs * share)


def run(names: list[str], seeds: list[int], jobs: float, share: float) -> dict[str, Any]:
    """Return the figures of each scenario, policy and seed, for a share of the cards and jobs."""
    policies: dict[str, Policy] = dict(
        zip(POLICIES, (by_plan(module("serve.placement")), first_come, blind), strict=True)
    )
    days = {name: smaller(day, share) for name, day in scenarios(jobs, job_types()).items()}
    found: dict[str, Any] = {}
    for name in names or list(days):
        for title, policy in policies.items():
            for seed in seeds:
                begun = time.process_time()
                figures = Simulation(days[name], policy, seed).run().to_json(days[name])
                found.setdefault(name, {}).setdefault(title, []).append(figures)
                print(
                    f"{name}, {title}, seed {seed}: {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True
                )
    return found


def tables(found: dict[str, Any]) -> str:
    """Return the figures in Markdown: mean over the seeds, and their range."""
    lines = []
    for name, by_policy in found.items():
        lines += ["", f"**{name}**", "", "| | " + " | ".join(by_policy) + " |", "|---" * (len(by_policy) + 1) + "|"]
        keys = [*SHOWN, *(key for key in next(iter(by_policy.values()))[0] if key.startswith("mean turnaround, "))]
        for key in keys:
            cells = []
            for days in by_policy.values():
                values = [day[key] for day in days if key in day]
                cells.append(shown(key, values) if values else "none done")
            lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def shown(key: str, values: list[float]) -> str:
    """Return a mean and its range in the unit of its figure."""
    counts = ("jobs done", "jobs done in the day", "kWh", "out of memory", "lost with a card")
    if key in ("utilisation", "share of busy time loading"):
        values, words = [100 * one for one in values], "{:.1f} %"
    elif key in counts:
        words = "{:,.0f}"
    else:
        values, words = [one / 60 for one in values], "{:,.1f} min"
    mean, low, high = (words.format(one) for one in (fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low.split()[0]} – {high.split()[0]})"


def estimates_table() -> str:
    """Return the planner's estimates in Markdown: seconds with the models loaded, and of loading."""
    lines = ["| job | share | " + " | ".join(f"{row[0]}, {row[2]} GB" for row in CARDS) + " |"]
    lines.append("|---" * (len(CARDS) + 2) + "|")
    for one in job_types():
        cells = [
            f"{at.seconds:,.0f} s + {at.loading:.0f} s" if at.fits else "–"
            for at in (one.estimates[row[0]] for row in CARDS)
        ]
        lines.append(f"| {one.name} | {100 * one.share:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--scenarios", nargs="*", default=[], help="default: all")
    parse.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parse.add_argument("--jobs", type=float, default=60_000, help="of a busy day")
    parse.add_argument("--share", type=float, default=1.0, help="of cards and jobs: 0.1 for 100 cards")
    parse.add_argument("--estimates", action="store_true", help="print the planner's estimates and stop")
    parse.add_argument("--json", type=Path, help="a file for the figures")
    options = parse.parse_args()
    if options.estimates:
        print(estimates_table())
        return
    found = run(options.scenarios, options.seeds, options.jobs, options.share)
    print(tables(found))
    if options.json is not None:
        # Scenarios that were run before stay.
        before = json.loads(options.json.read_text(encoding="utf-8"))["days"] if options.json.is_file() else {}
        about = {
            "python": platform.python_version(),
            "jobs": options.jobs,
            "share": options.share,
            "seeds": options.seeds,
        }
        options.json.write_text(json.dumps({**about, "days": {**before, **found}}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
