"""Benchmark of file writing in long videos: in sequence, and concurrent with sampling as the pack does it.

    python benchmarks/long_writing.py [--width 480] [--height 272] [--frames 41] [--steps 1] [--rounds 3] [--json FILE]

The same video of the built-in model, in windows of 17 frames, made both ways in every round. Seconds are time that
passes, the least of the rounds: the whole, and what of it the thread that samples has waited for files. In turn means
that a window is in the cache and its frames are with the encoder before the next window begins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from long_video import CROSSFADE, OVERLAP, PROMPTS, WINDOW, load_pack

Pack = Callable[[str], Any]


@contextmanager
def in_turn(pack: Pack) -> Iterator[None]:
    """Let nothing be unfinished when the next window begins."""
    reel = pack("core.wan.long.video_writer")
    worker, most = reel.background_worker, reel.MAX_PENDING
    reel.background_worker, reel.MAX_PENDING = (lambda work, check, most=0: worker(work, check, most)), 0
    try:
        yield
    finally:
        reel.background_worker, reel.MAX_PENDING = worker, most


@contextmanager
def as_it_is(pack: Pack) -> Iterator[None]:
    """Change nothing."""
    del pack
    yield


class Waits:
    """Adds up what the main thread waits for work in the background."""

    def __init__(self, pack: Pack) -> None:
        self.seconds = 0.0
        worker = pack("core.media.background_worker").BackgroundWorker
        wait = worker._wait

        def timed(*arguments: Any) -> None:
            begun = time.perf_counter()
            try:
                wait(*arguments)
            finally:
                if current_thread() is main_thread():
                    self.seconds += time.perf_counter() - begun

        worker._wait = timed


def make(pack: Pack, options: argparse.Namespace, frames: int) -> bytes:
    """Make a video in folders of its own, and return its windows as they are kept."""
    choose, long = pack("core.catalog.selection"), pack("core.wan.long.request")
    video = pack("core.wan.request").WanRequest(
        PROMPTS[0], "", options.width, options.height, frames, steps=options.steps, cfg=1.0, shift=5.0, seed=0
    )
    request = long.LongRequest(video, WINDOW, OVERLAP, **CROSSFADE)
    handle = choose.ModelHandle(pack("core.wan.family").WAN_VACE, options.model)
    with tempfile.TemporaryDirectory() as name:
        host = pack("core.host.headless").HeadlessHost(chosen_device=options.device, temp=Path(name), cache=Path(name))
        pack("core.wan.long.sample").make_long_video(handle, request, host)
        windows = sorted((Path(name) / "long_video").glob("*.mkv"))
        return b"".join(window.read_bytes() for window in windows)


def measure(pack: Pack, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return for each way the least seconds, in whole and waited, and what the windows are."""
    waits = Waits(pack)
    make(pack, options, WINDOW)  # reads the models
    found: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for name, way in (("in turn", in_turn), ("beside", as_it_is)):
            waits.seconds, begun = 0.0, time.perf_counter()
            with way(pack):
                windows = make(pack, options, options.frames)
            taken = time.perf_counter() - begun
            row = found.setdefault(name, {"seconds": taken, "waited": waits.seconds, "windows": []})
            row["seconds"], row["waited"] = min(row["seconds"], taken), min(row["waited"], waits.seconds)
            row["windows"].append(hashlib.sha256(windows).hexdigest()[:12])
            print(f"{name}: {taken:.1f} s, {waits.seconds:.2f} s of it waited", flush=True)
    return found


def main() -> None:
    """Read the options; measure; print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--height", type=int, default=272)
    parser.add_argument("--frames", type=int, default=41)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    found = measure(load_pack(), options)
    print("\n| | seconds | waited for files |\n|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['seconds']:.1f} | {row['waited']:.2f} |")
    print("same windows:", len({made for row in found.values() for made in row["windows"]}) == 1)
    if options.json:
        about = {"machine": platform.platform(), "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
