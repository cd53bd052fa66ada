"""Quality metrics of a video: PSNR and SSIM against the reference, and attributes of the caption that it shows."""

from __future__ import annotations

import random
import statistics
from typing import Any

import cv2
import numpy as np
from speed_case import piying

ATTRIBUTES = ("background", "colour", "shape", "motion")


def scenes(count: int) -> list[tuple[Any, str]]:
    """Return scenes that training left out, with a caption each, in both languages."""
    language = piying("training.language")
    draw = random.Random(0)
    pool = [scene for scene in language.scenes() if scene.held_out]
    chosen = [draw.choice(pool) for _ in range(count)]
    return [(scene, language.caption(scene, language.LANGUAGES[i % 2], draw)) for i, scene in enumerate(chosen)]


def judged(scene: Any, frames: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Return the likeness to the reference (psnr is None where they are equal), and 1 or 0 for each attribute."""
    reading = piying("training.reading")
    shown = reading.read_video(frames)
    return {
        "psnr": None if np.array_equal(frames, reference) else reading.psnr(frames, reference),
        "ssim": ssim(frames, reference),
        **{name: float(getattr(shown, name) == getattr(scene, name)) for name in ATTRIBUTES},
    }


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


def summed(rows: list[dict[str, Any]], floor: float) -> dict[str, Any]:
    """Return the median of the seconds and means of the rest; psnr is None where every video is the reference's.

    Args:
        floor: the least seconds that a prediction takes.
    """
    found: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        middle = statistics.median if key == "seconds" else statistics.mean
        found[key] = round(middle(values), 4) if values else None
    taken = [row["seconds"] for row in rows]
    found |= {"fastest": round(min(taken), 4), "slowest": round(max(taken), 4)}
    least = floor * statistics.median(row["predictions"] for row in rows)
    return found | {"floor": round(least, 4), "percent of floor": round(100 * least / found["seconds"], 1)}
