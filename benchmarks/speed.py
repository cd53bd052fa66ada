"""What each measure for speed gains, and what it gives up, against the reference path on the same noise.

    python benchmarks/speed.py [--captions 12] [--steps 30] [--device cpu] [--json FILE]

Every measure makes the same videos of captions that the built-in model was never trained on. What they show is read
from pixels (training/reading.py): the share of videos whose background, colour, shape and motion are as the caption
says. PSNR and SSIM compare with the reference video. Seconds are those of sampling, medians; on a CPU seconds of the
processor. The floor is the arithmetic of the predictions that went through all blocks at the rate of a matrix
product of 2048 × 2048, or reading the weights once a prediction at the rate of a copy, whichever takes longer; both
rates are measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from floors import rates
from measuring import clock

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, FRAMES = 64, 64, 17
MEASURES: dict[str, dict[str, Any]] = {
    "reference": {},
    "speed balanced": {"speed": "balanced"},
    "speed fast": {"speed": "fast"},
    "speed draft": {"speed": "draft"},
    "half the steps": {"steps": 0.5},
    "half the steps, step_cache 0.12": {"steps": 0.5, "step_cache": 0.12},
    "step_cache 0.12": {"step_cache": 0.12},
    "step_cache 0.25": {"step_cache": 0.25},
    "cfg_end 0.8": {"cfg_end": 0.8},
    "cfg_end 0.6": {"cfg_end": 0.6},
    "cfg_start 0.2": {"cfg_start": 0.2},
    "cfg_start 0.4": {"cfg_start": 0.4},
}


def load_pack() -> Callable[[str], Any]:
    """Return a function that imports the pack's modules by name, training's too."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    importlib.import_module("conftest")
    sys.path.pop(0)
    return lambda name: importlib.import_module(f"piying.{name}")


def scenes(count: int) -> list[tuple[Any, str]]:
    """Return scenes that training left out, with a caption each, in both languages."""
    language = importlib.import_module("training.language")
    draw = random.Random(0)
    pool = [scene for scene in language.scenes() if scene.held_out]
    chosen = [draw.choice(pool) for _ in range(count)]
    return [(scene, language.caption(scene, language.LANGUAGES[i % 2], draw)) for i, scene in enumerate(chosen)]


class Sampled:
    """Samples videos; times the sampling alone, and counts the predictions that went through all blocks."""

    def __init__(self, pack: Callable[[str], Any], options: argparse.Namespace, cache: Path) -> None:
        self.pack, self.options = pack, options
        choose = pack("core.checkpoints.choose")
        self.handle = choose.ModelHandle(choose.WAN_VACE, options.model)
        self.host = pack("core.host").HeadlessHost(chosen_device=options.device, cache=cache)
        self.taken, self.whole = 0.0, 0
        self._time_denoise()

    def _time_denoise(self) -> None:
        """Have the loop over the steps, wherever it is called, note how long it took."""
        run = self.pack("core.wan_vace.run")
        denoise = run.denoise

        def timed(transformer: Any, *arguments: Any) -> Any:
            self.whole = 0
            hook = transformer.blocks[-1].register_forward_hook(self._count)
            begun = clock(self.options.device)
            result = denoise(transformer, *arguments)
            self.taken = clock(self.options.device) - begun
            hook.remove()
            return result

        run.denoise = timed

    def _count(self, *_: Any) -> None:
        self.whole += 1

    def video(self, text: str, seed: int, measure: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any], float]:
        """Return frames [n, h, w, 3] in 0..1, the record, and seconds of sampling."""
        request = self.pack("core.wan_vace.request").VACERequest(
            text, "", WIDTH, HEIGHT, FRAMES, steps=self.options.steps, cfg=4.0, shift=5.0, seed=seed
        )
        if "steps" in measure:
            measure = {**measure, "steps": round(measure["steps"] * self.options.steps)}
        store = self.host.cache_folder() / "latents"
        for path in store.glob("*"):
            path.unlink()  # nothing is taken from a run before
        frames, record = self.pack("core.wan_vace.sample").sample(self.handle, replace(request, **measure), self.host)
        return frames.numpy(), record, self.taken


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean structural similarity of two videos in 0..1 (Wang et al. 2004), in windows of 7 × 7."""
    return float(np.mean([_ssim(first, second) for first, second in zip(one, other, strict=True)]))


def _ssim(one: np.ndarray, other: np.ndarray) -> float:
    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (7, 7))

    first, second = mean(one), mean(other)
    spread = mean(one * one) - first**2, mean(other * other) - second**2
    together = mean(one * other) - first * second
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * first * second + c1) * (2 * together + c2)
    return float((top / ((first**2 + second**2 + c1) * (sum(spread) + c2))).mean())


def judged(scene: Any, frames: np.ndarray) -> dict[str, float]:
    """Return 1 or 0 for each attribute of a scene."""
    reading = importlib.import_module("training.reading").read_video(frames)
    return {name: float(getattr(reading, name) == getattr(scene, name)) for name in ATTRIBUTES}


ATTRIBUTES = ("background", "colour", "shape", "motion")


def cost(pack: Callable[[str], Any], sampled: Sampled) -> tuple[float, float]:
    """Return the floating point operations of one prediction, and the bytes of the weights."""
    memory = pack("core.wan_vace.memory")
    transformer = pack("core.wan_vace.model").load(sampled.handle, sampled.host).components()["transformer"]
    tokens = memory.latent_frames(FRAMES) * (WIDTH // 16) * (HEIGHT // 16)
    kind = "fp32" if sampled.options.device == "cpu" else "bf16"
    return float(tokens * sum(memory.flops_per_token(transformer, tokens))), float(transformer.bytes(kind, kind))


def measure(pack: Callable[[str], Any], options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Return a row for each measure."""
    psnr = importlib.import_module("training.reading").psnr
    sampled, known = Sampled(pack, options, cache), scenes(options.captions)
    sampled.video(known[0][1], 0, {})  # models are read, kernels are chosen
    best, (flops, weights) = rates(options.device), cost(pack, sampled)
    rows: dict[str, Any] = {name: [] for name in MEASURES}
    reference = np.empty(0)
    for index, (scene, text) in enumerate(known):
        for name, measures in MEASURES.items():
            frames, record, taken = sampled.video(text, index, measures)
            reference = reference if measures else frames  # which is the first of each caption
            same = np.array_equal(frames, reference)
            rows[name].append(
                {
                    "seconds": taken,
                    "floor": best.floor(sampled.whole * flops, sampled.whole * weights),
                    "predictions": sampled.whole,
                    "steps left out": record.get("steps_taken_again", 0),
                    "psnr": None if same else psnr(frames, reference),
                    "ssim": ssim(frames, reference),
                    **judged(scene, frames),
                }
            )
    return {
        "flops_per_second": best.flops,
        "bytes_per_second": best.bandwidth,
        "flops_per_prediction": flops,
        "bytes_of_weights": weights,
        "measures": {n: summed(r) for n, r in rows.items()},
    }


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians of times and means of the rest; psnr is None where every video is the reference's."""
    found: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        middle = statistics.median if key in ("seconds", "floor") else statistics.mean
        found[key] = round(middle(values), 4) if values else None
    return found


def main() -> None:
    """Read the options; measure; print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        found = measure(load_pack(), options, Path(cache))
    print("| | seconds | floor | predictions | steps left out | PSNR dB | SSIM | " + " | ".join(ATTRIBUTES) + " |")
    print("|---" * (7 + len(ATTRIBUTES)) + "|")
    for name, row in found["measures"].items():
        likeness = "same" if row["psnr"] is None else f"{row['psnr']:.1f}"
        cells = [
            f"{row['seconds']:.2f}",
            f"{row['floor']:.2f}",
            f"{row['predictions']:.0f}",
            f"{row['steps left out']:.1f}",
        ]
        cells += [likeness, f"{row['ssim']:.3f}", *(f"{row[name]:.2f}" for name in ATTRIBUTES)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.json:
        about = {"machine": platform.platform(), "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
