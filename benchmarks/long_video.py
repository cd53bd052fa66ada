"""What holds a long video together: colour drift, seams and memory over many windows, with and without each measure.

    python benchmarks/long_video.py [--windows 11] [--steps 10] [--seeds 2] [--frames 481] [--json FILE]

Every measure makes the same videos, of the built-in model unless another is named: a thing that stays where it is on a
background of one colour, so that whatever moves in brightness is drift. The last part makes one video of `--frames`
frames and counts the bytes of all tensors alive at the end of each window.
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
from pathlib import Path
from typing import Any

import numpy as np
from measuring import _Alive

ROOT = Path(__file__).resolve().parents[1]
WINDOW, OVERLAP, SIDE = 17, 5, 64
PROMPTS = ("a red circle stays still on a blue background", "a white square stays still on a gray background")
OFF = {"seams": "cut", "match_colours": 0.0, "anchor": "none"}
MEASURES: dict[str, dict[str, Any]] = {
    "none": OFF,
    "crossfade": {**OFF, "seams": "crossfade"},
    "colours matched": {**OFF, "match_colours": 1.0},
    "crossfade, colours matched (default)": {"seams": "crossfade", "match_colours": 1.0, "anchor": "none"},
    "default, anchor colours": {"seams": "crossfade", "match_colours": 1.0, "anchor": "colours"},
    "default, anchor reference": {"seams": "crossfade", "match_colours": 1.0, "anchor": "reference"},
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
        choose = pack("core.checkpoints.choose")
        self.handle = choose.ModelHandle(choose.WAN_VACE, options.model)

    def make(self, name: str, frames: int, prompt: str, seed: int, joining: dict[str, Any], when: Any) -> Any:
        """Return the whole video, uint8 [n, h, w, 3], its windows, and processor seconds."""
        long, request = self.pack("core.wan_vace.long.request"), self.pack("core.wan_vace.request")
        video = request.VACERequest(
            prompt, "", SIDE, SIDE, frames, steps=self.options.steps, cfg=4.0, shift=5.0, seed=seed
        )
        asked = long.LongRequest(video, WINDOW, OVERLAP, **joining)
        folder = self.scratch / name
        host = self.pack("core.host").HeadlessHost(
            chosen_device=self.options.device, temp=folder, cache=folder, on_progress=when
        )
        begun = time.process_time()
        self.pack("core.wan_vace.long.make").make_long_video(self.handle, asked, host)
        taken = time.process_time() - begun
        windows = long.windows(frames, WINDOW, OVERLAP)
        return self.joined(folder, long.shown(windows, OVERLAP)), windows, taken

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
    seam, inside: median change from frame to frame, where windows meet and elsewhere.
    """
    values = frames.astype(np.float32)
    first, last = values[:WINDOW], values[-WINDOW:]
    steps = np.abs(np.diff(values, axis=0)).mean((1, 2, 3))
    seams = {index for window in windows[:-1] for index in range(window.end - OVERLAP - 1, window.end)}
    # A measure may lay the seam anywhere in an overlap: the largest change there counts.
    worst = [max(steps[window.end - OVERLAP - 1 : window.end]) for window in windows[:-1]]
    inside = [step for index, step in enumerate(steps) if index not in seams]
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
    for name, joining in MEASURES.items():
        found = []
        for index in range(options.seeds):
            made, windows, taken = maker.make(
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


def memory(maker: Maker, options: argparse.Namespace) -> dict[str, Any]:
    """Return the bytes of live tensors at the end of the second window and of the last, for a video of that length."""
    alive, held = _Alive(), []

    def note(done: int) -> None:
        if done % 1000 == 0:
            held.append(alive.now)

    with alive:
        _, windows, taken = maker.make(
            "long", options.frames, PROMPTS[0], 0, MEASURES["default, anchor colours"], lambda *_: Quiet(note)
        )
    return {"frames": options.frames, "windows": len(windows), "seconds": taken, "second": held[1], "last": held[-1]}


def main() -> None:
    """Read the options; measure; print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=11, help="windows of a video")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2, help="videos for each measure")
    parser.add_argument("--frames", type=int, default=481, help="of the video whose memory is counted; 0: none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        maker = Maker(load_pack(), options, Path(scratch))
        found: dict[str, Any] = {"measures": measure(maker, options)}
        if options.frames:
            found["memory"] = memory(maker, options)
    print("\n| | drift | contrast | at seams | inside | seconds |\n|---|---|---|---|---|---|")
    for name, row in found["measures"].items():
        cells = (row["drift"], row["contrast"], row["seam"], row["inside"], row["seconds"])
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    print(found.get("memory", ""))
    if options.json:
        about = {"machine": platform.platform(), "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
