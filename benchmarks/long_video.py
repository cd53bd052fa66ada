"""Benchmark of long videos: colour drift, seams and memory over many windows, for each option.

    python benchmarks/long_video.py [--windows 11] [--steps 10] [--seeds 2] [--frames 481] [--json FILE]

Every measure makes the same videos, of the built-in model unless another is named: a thing that stays where it is on a
background of one colour, so that whatever moves in brightness is drift. The last part makes one video of `--frames`
frames twice: once counting the bytes of all tensors alive at the end of each window, and once stopped half-way and
started again, which must give the same file. The floor is the arithmetic of sampling at the rate of a matrix product.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from floors import rates
from measuring import _Alive

ROOT = Path(__file__).resolve().parents[1]
WINDOW, OVERLAP, SIDE = 17, 5, 64
PROMPTS = ("a red circle stays still on a blue background", "a white square stays still on a gray background")
OFF = {"seams": "cut", "match_colours": 0.0, "anchor": "none"}
CROSSFADE = {**OFF, "seams": "crossfade"}
BLENDED = {**OFF, "seams": "blended"}
MEASURES: dict[str, dict[str, Any]] = {
    "none": OFF,
    "colours matched": {**OFF, "match_colours": 1.0},
    "crossfade (default)": CROSSFADE,
    "crossfade, colours matched": {**CROSSFADE, "match_colours": 1.0},
    "crossfade, anchor colours": {**CROSSFADE, "anchor": "colours"},
    "crossfade, anchor colours, colours matched": {**CROSSFADE, "anchor": "colours", "match_colours": 1.0},
    "crossfade, anchor reference": {**CROSSFADE, "anchor": "reference"},
    "blended": BLENDED,
    "blended, colours matched": {**BLENDED, "match_colours": 1.0},
    "blended, anchor colours": {**BLENDED, "anchor": "colours"},
}


def load_pack() -> Callable[[str], Any]:
    """Return a function that imports the pack's modules by name."""
    sys.path.insert(0, str(ROOT / "tests"))
    importlib.import_module("conftest")
    sys.path.pop(0)
    return lambda name: importlib.import_module(f"piying.{name}")


class Maker:
    """Makes long videos and reads their windows back."""

    def __init__(self, pack: Callable[[str], Any], options: argparse.Namespace, scratch: Path) -> None:
        self.pack, self.options, self.scratch = pack, options, scratch
        choose = pack("core.catalog.selection")
        self.handle = choose.ModelHandle(self.pack("core.wan.family").WAN_VACE, options.model)

    def make(self, name: str, frames: int, prompt: str, seed: int, joining: dict[str, Any], when: Any) -> Any:
        """Return the whole video, uint8 [n, h, w, 3], its windows, processor seconds, and the file."""
        long, request = self.pack("core.wan.long.request"), self.pack("core.wan.request")
        video = request.WanRequest(
            prompt, "", SIDE, SIDE, frames, steps=self.options.steps, cfg=4.0, shift=5.0, seed=seed
        )
        asked = long.LongRequest(video, WINDOW, OVERLAP, **joining)
        folder = self.scratch / name
        host = self.pack("core.host.headless").HeadlessHost(
            chosen_device=self.options.device, temp=folder, cache=folder, on_progress=when
        )
        begun = time.process_time()
        path, _ = self.pack("core.wan.long.sample").make_long_video(self.handle, asked, host)
        taken = time.process_time() - begun
        windows = long.windows(frames, WINDOW, OVERLAP)
        return self.joined(folder, long.shown(windows, OVERLAP)), windows, taken, path

    def flops(self) -> float:
        """Return the operations that sampling a window takes."""
        memory, load = self.pack("core.wan.phases"), self.pack("core.wan.model").load
        transformer = load(self.handle, self.pack("core.host.headless").HeadlessHost()).components()["transformer"]
        tokens = memory.latent_frames(WINDOW) * (SIDE // 16) ** 2
        return float(2 * self.options.steps * tokens * sum(memory.flops_per_token(transformer, tokens)))

    def joined(self, folder: Path, parts: list[tuple[int, int]]) -> np.ndarray:
        """Return the frames of the windows kept, oldest first."""
        files = sorted((folder / "long_video").glob("*.mkv"), key=lambda path: path.stat().st_mtime_ns)
        read = self.pack("core.media.video").read_frames
        cut = [list(read(path))[first:behind] for path, (first, behind) in zip(files, parts, strict=True)]
        return np.array([frame for frames in cut for frame in frames])


class Quiet:
    """Progress for nobody; tells `when` what it hears."""

    def __init__(self, when: Callable[[int], None]) -> None:
        self.when = when

    def step(self, done: int, preview: Any = None) -> None:
        """Pass it on."""
        self.when(done)

    def text(self, text: str) -> None:
        """Show nothing."""


def judged(frames: np.ndarray, windows: list[Any]) -> dict[str, float]:
    """Return drift and seams of a video, in 255ths.

    drift: how far the mean colour of the last window lies from that of the first, largest channel.
    contrast: the spread of the last window over that of the first.
    seam, inside: the largest change from one frame to the next where two windows meet, and in as many frames before;
        medians over the windows.
    """
    values = frames.astype(np.float32)
    first, last = values[:WINDOW], values[-WINDOW:]
    steps = np.abs(np.diff(values, axis=0)).mean((1, 2, 3))
    # A measure may lay the seam anywhere in an overlap: the largest change there counts.
    span = OVERLAP + 1
    worst = [max(steps[window.end - span : window.end]) for window in windows[:-1]]
    inside = [max(steps[window.end - 2 * span : window.end - span]) for window in windows[:-1]]
    return {
        "drift": float(np.abs(first.mean((0, 1, 2)) - last.mean((0, 1, 2))).max()),
        "contrast": float(last.std() / max(first.std(), 1e-6)),
        "seam": float(np.median(worst)),
        "inside": float(np.median(inside)),
    }


def measure(maker: Maker, options: argparse.Namespace) -> dict[str, Any]:
    """Return a row for each measure: means over prompts and seeds."""
    frames = WINDOW + (options.windows - 1) * (WINDOW - OVERLAP)
    rows = {}
    maker.make("first", WINDOW, PROMPTS[0], 0, OFF, lambda *_: Quiet(lambda done: None))  # reads the models
    for name, joining in MEASURES.items():
        if options.only is not None and name not in options.only:
            continue
        found = []
        for index in range(options.seeds):
            made, windows, taken, _ = maker.make(
                f"{name} {index}",
                frames,
                PROMPTS[index % len(PROMPTS)],
                index,
                joining,
                lambda *_: Quiet(lambda done: None),
            )
            found.append({**judged(made, windows), "seconds": taken})
        rows[name] = {key: round(statistics.mean(each[key] for each in found), 3) for key in found[0]}
        print(name, rows[name], flush=True)
    return rows


class Stopped(Exception):
    """The run is to end here."""


def long_one(maker: Maker, options: argparse.Namespace) -> dict[str, Any]:
    """Return what is asked of one long video.

    second, last: bytes of live tensors at the end of the second window and of the last.
    same file: whether a run that was stopped half-way and started again gives the same bytes.
    """
    alive, held = _Alive(), []

    def note(done: int) -> None:
        if done % 1000 == 0:
            held.append(alive.now)

    def stop(done: int) -> None:
        if done > half:
            raise Stopped

    asked = (options.frames, PROMPTS[0], 0, MEASURES["crossfade, anchor colours"])
    with alive:
        made, windows, taken, path = maker.make("long", *asked, lambda *_: Quiet(note))
    half = 1000 * len(windows) // 2 + 500
    with suppress(Stopped):
        maker.make("stopped", *asked, lambda *_: Quiet(stop))
    kept = len(list((maker.scratch / "stopped" / "long_video").glob("*.mkv")))
    _, _, _, again = maker.make("stopped", *asked, lambda *_: Quiet(lambda done: None))
    return {
        "frames": options.frames,
        "windows": len(windows),
        "seconds": round(taken, 1),
        "second": held[1],
        "last": held[-1],
        "stopped behind": kept,
        "same file": path.read_bytes() == again.read_bytes(),
        **judged(made, windows),
    }


def main() -> None:
    """Read the options; measure; print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=11, help="windows of a video")
    parser.add_argument("--only", nargs="*", metavar="MEASURE", help="these alone; without a name none")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2, help="videos for each measure")
    parser.add_argument("--frames", type=int, default=481, help="of the video whose memory is counted; 0: none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        maker = Maker(load_pack(), options, Path(scratch))
        found: dict[str, Any] = {"measures": measure(maker, options)}
        if options.frames:
            found["long"] = long_one(maker, options)
        best = rates(options.device)
        found["flops_per_second"] = best.flops
        floor = options.windows * best.floor(maker.flops(), 0)
    print("\n| | drift | contrast | at seams | inside | seconds | floor |\n|---|---|---|---|---|---|---|")
    for name, row in found["measures"].items():
        cells = (row["drift"], row["contrast"], row["seam"], row["inside"], row["seconds"], floor)
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    print(found.get("long", ""))
    if options.json:
        about = {"machine": platform.platform(), "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
