"""Contact sheets of what the models draw: `python -m training.sheets video docs/images/t2v.png`.

One row per caption, printed as they come; frames of a video go from left to right.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import HunyuanDiTPipeline
from PIL import Image

from .evaluate import BUILT_IN, load, load_video, unseen
from .task_score import SCORED, make_case
from .video_sampling import Sampling, draw_video

COLUMNS = 8
GAP = 2  # white pixels between pictures


def row(pictures: list[np.ndarray]) -> np.ndarray:
    """Return pictures [H, W, 3] side by side with gaps."""
    gap = np.ones((pictures[0].shape[0], GAP, 3))
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def sheet(rows: list[np.ndarray]) -> Image.Image:
    """Return rows below each other with gaps."""
    gap = np.ones((GAP, rows[0].shape[1], 3))
    whole = np.concatenate([part for line in rows for part in (line, gap)][:-1], axis=0)
    return Image.fromarray((whole * 255).round().clip(0, 255).astype(np.uint8))


def some(frames: np.ndarray, count: int = COLUMNS) -> list[np.ndarray]:
    """Return a few frames, evenly apart."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[index] for index in chosen]


def video_rows(models: Path, count: int, sampling: Sampling) -> list[np.ndarray]:
    """Return text-to-video rows."""
    pipeline, rows = load_video(models / "wan_vace", sampling), []
    for index, (_, text) in enumerate(unseen(count, sampling.seed)):
        print(text)
        rows.append(row(some(draw_video(pipeline, text, sampling, sampling.seed + index))))
    return rows


def task_rows(models: Path, count: int, sampling: Sampling) -> list[np.ndarray]:
    """Return rows of every task: what was given, then what was made of it."""
    pipeline, rows = load_video(models / "wan_vace", sampling), []
    for task in SCORED:
        torch.manual_seed(sampling.seed)
        draw = random.Random(f"sheet {task} {sampling.seed}")
        for index in range(count):
            case = make_case(task, sampling, draw, index)
            print(f"{task}: {case.text}")
            shown = case.given.video if case.given.video is not None else case.given.reference[None]
            given = shown.permute(0, 2, 3, 1).numpy() / 2 + 0.5
            given = given if len(given) > 1 else given.repeat(sampling.frames, axis=0)
            made = draw_video(pipeline, case.text, sampling, sampling.seed + index, case.given)
            rows.append(row([*some(given, 4), *some(made, 4)]))
    return rows


def image_rows(models: Path, count: int, sampling: Sampling) -> list[np.ndarray]:
    """Return text-to-image rows, as many captions a row as there are columns."""
    pipeline, pictures = load(HunyuanDiTPipeline, models / "hunyuan_dit"), []
    for index, (_, text) in enumerate(unseen(count * COLUMNS, sampling.seed, moving=False)):
        print(text)
        pictures.append(
            pipeline(
                text,
                width=sampling.width,
                height=sampling.height,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.cfg,
                use_resolution_binning=False,
                generator=torch.Generator().manual_seed(index),
                output_type="np",
            ).images[0]
        )
    return [row(pictures[start : start + COLUMNS]) for start in range(0, len(pictures), COLUMNS)]


def main() -> None:
    """Draw one sheet."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet.")
    parser.add_argument("what", choices=("video", "tasks", "image"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--models", type=Path, default=BUILT_IN)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling(given.width, given.height, given.frames, given.steps, given.cfg, seed=given.seed)
    rows = {"video": video_rows, "tasks": task_rows, "image": image_rows}[given.what]
    sheet(rows(given.models, given.rows, sampling)).save(given.path, optimize=True)


if __name__ == "__main__":
    main()
