"""Whether a long video does what each line of a timeline says, and when.

    python -m benchmarks.timeline --videos 12 --json benchmarks/results/timeline.json

Each video has three windows and a line for each: the object changes its colour, or the way it moves, from line to
line. The score is the share of windows whose own frames show what their line says; the delay is how many frames after
a line's first one its colour is seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.language import COLOURS, MOTIONS, Scene, plain_caption, scenes
from training.reading import read_picture, read_video
from training.samples import pack

from . import task_cases

Row = dict[str, Any]
WINDOW, LINES = 17, 3
MOVING = [motion for motion in MOTIONS if motion != "stays still"]


def films(changed: str, seed: int) -> Iterator[list[Scene]]:
    """Yield what the lines of videos say: scenes that differ in colour, or in motion, from each to the next."""
    draw = random.Random(f"{changed} {seed}")
    pool = [scene for scene in scenes() if scene.held_out and scene.motion in MOVING]
    words = list(COLOURS) if changed == "colour" else MOVING
    while True:
        film = [draw.choice(pool)]
        while len(film) < LINES:
            last = film[-1]
            left = [word for word in words if word not in (getattr(last, changed), last.background)]
            film.append(replace(last, **{changed: draw.choice(left)}))
        yield film


def make(film: list[Scene], overlap: int, *, steps: int, seed: int, folder: Path) -> tuple[np.ndarray, list[int]]:
    """Return the frames of a long video [n, h, w, 3] in 0..1, and the first frame of each line."""
    long, reel = pack("core.wan.long.request"), pack("core.wan.long.sample")
    starts = [0, *(WINDOW + line * (WINDOW - overlap) for line in range(LINES - 1))]
    prompt = "\n".join(f"{start}f: {plain_caption(scene, 'en')}" for start, scene in zip(starts, film, strict=True))
    asked = pack("core.wan.request").WanRequest(
        prompt,
        width=task_cases.SIDE,
        height=task_cases.SIDE,
        num_frames=WINDOW + (LINES - 1) * (WINDOW - overlap),
        steps=steps,
        cfg=4.0,
        shift=5.0,
        seed=seed,
    )
    path, _ = reel.make_long_video(
        task_cases.handle(), long.LongRequest(asked, WINDOW, overlap), task_cases.host(folder)
    )
    return np.array(list(pack("core.media.video").read_frames(path))) / 255, starts


def score(changed: str, overlap: int, options: argparse.Namespace, folder: Path) -> Row:
    """Return the share of windows that show what their line says, and the mean delay of a changed colour."""
    right, delays, source = [], [], films(changed, 0)
    for seed in range(options.videos):
        film = next(source)
        frames, starts = make(film, overlap, steps=options.steps, seed=seed, folder=folder)
        for scene, start, end in zip(film, starts, [*starts[1:], len(frames)], strict=True):
            found = read_video(frames[start:end])
            right.append(getattr(found, changed) == getattr(scene, changed))
            if changed == "colour" and start:
                seen = (n for n in range(start, end) if read_picture(frames[n]).colour == scene.colour)
                delays.append(next(seen, end) - start)
    delay = round(float(np.mean(delays)), 1) if delays else None
    return {"changed": changed, "overlap": overlap, "right": round(float(np.mean(right)), 3), "delay": delay}


def main() -> None:
    """Run the command."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--videos", type=int, default=12)
    parse.add_argument("--steps", type=int, default=12)
    parse.add_argument("--overlaps", type=int, nargs="+", default=[1, 5])
    parse.add_argument("--json", type=Path)
    options = parse.parse_args()
    logging.getLogger("piying").setLevel(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for changed in ("colour", "motion"):
            for overlap in options.overlaps:
                rows.append(score(changed, overlap, options, Path(folder)))
                print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
