"""What the built-in model shows with every sampler and guidance, and which combinations run.

    python -m benchmarks.sampling --scenes 12 --json benchmarks/results/sampling.json
    python -m benchmarks.sampling --combinations

The first scores held-out captions: the share of videos whose background, colour, shape and motion are those asked for.
The second makes a short video, one in context windows, a loop, and a long video of three windows, with every task,
sampler and guidance, and tells what does not run with its reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
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
    """Yield what becomes of each task with each sampler and guidance, in every length: "runs", or why not.

    The tasks are those of VACE Sample, and `text` and `first frame` of Wan Sample.
    """
    context, refused = pack("core.wan.context").Context, pack("core.errors").PiyingError
    for task, make in ways(settings, folder).items():
        for sampler in samplers():
            for guided, guidance in guidances().items():
                row = {"task": task, "sampler": sampler, "guidance": guided}
                parted = {"windows": context(window=5, overlap=0), "loop": context(loop=True)}
                for length in LENGTHS:
                    changes = {"sampler": sampler, "guidance": guidance}
                    if length in parted:
                        changes["context"] = parted[length]
                    try:
                        row[length] = make(length == "long", changes)
                    except refused as error:
                        row[length] = str(error)
                yield row


LENGTHS = ("short", "windows", "loop", "long")
Make = Callable[[bool, dict[str, Any]], str]


def ways(settings: task_cases.Settings, folder: Path) -> dict[str, Make]:
    """Return for each task what makes a video of it, short or long, and tells whether there is one."""
    sample, long_video = pack("core.wan.run").sample, pack("core.wan.long.sample").make_long_video
    video, handle = pack("core.wan_video.run").sample, pack("core.catalog.selection").ModelHandle
    long_request, host = pack("core.wan.long.request").LongRequest, task_cases.host(folder)
    wan_video = handle(pack("core.wan_video.family").WAN_VIDEO, "built-in")

    def told(frames: Any) -> str:
        return "runs" if frames.isfinite().all() else "not finite"

    def of_vace(task: str) -> Make:
        short, three = (next(task_cases.cases(task, replace(settings, frames=count))) for count in (9, 13))

        def make(is_long: bool, changes: dict[str, Any]) -> str:
            asked = replace(task_cases.request(short, settings, 0), **changes)
            if not is_long:
                return told(sample(task_cases.handle(), replace(asked, num_frames=9), host, short.task)[0])
            windows = long_request(replace(asked, num_frames=13), window=9, overlap=5, seams="blended")
            path, _ = long_video(task_cases.handle(), windows, host, three.task)
            return "runs" if path.stat().st_size else "empty"

        return make

    def of_frames(first: Any) -> Make:
        case = next(task_cases.cases("t2v", replace(settings, frames=9)))

        def make(is_long: bool, changes: dict[str, Any]) -> str:
            if is_long:
                return "VACE Long Video makes them, of VACE's models."
            asked = replace(task_cases.request(case, settings, 0), num_frames=9, **changes)
            return told(video(wan_video, asked, host, first=first)[0])

        return make

    picture = task_cases.drawn(*_scene(settings), 1).frames
    found = {task: of_vace(task) for task in task_cases.TASKS}
    return found | {"text": of_frames(None), "first frame": of_frames(picture)}


def _scene(settings: task_cases.Settings) -> tuple[Any, str]:
    case = next(task_cases.cases("t2v", settings))
    return case.scene, case.text


def as_table(rows: list[Row]) -> str:
    """Return rows in Markdown."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(rows: list[Row]) -> str:
    """Return how many combinations run, and the reasons of the others."""
    lines = []
    for length in LENGTHS:
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
