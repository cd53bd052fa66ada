"""How well the Wan VACE model does VACE's tasks, read off the videos it makes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import WanVACEPipeline

from . import tasks
from .data import colours, coverage, draw_paths, paint
from .language import LANGUAGES, Scene, caption, scenes
from .reading import overlap, psnr, read_picture, read_video
from .video_sampling import Given, Sampling, draw_video

SCORED = ("first_frame", "last_frame", "inpaint", "outpaint", "reference", "edges", "boxes", "depth")
KEPT_FRAME_DB, OUTSIDE_DB, SAME_PLACE = 24.0, 26.0, 0.5


@dataclass(frozen=True)
class Case:
    """One clip that was never trained on, the task made of it, and the caption that goes with it."""

    scene: Scene
    text: str
    truth: torch.Tensor
    covered: torch.Tensor
    given: Given


def make_case(task: str, sampling: Sampling, draw: random.Random, index: int) -> Case:
    """Return a case of a task."""
    pool = [scene for scene in scenes() if scene.held_out and (task != "reference" or scene.colour != "white")]
    scene = draw.choice(pool)
    text = caption(scene, LANGUAGES[index % 2], draw)
    paths = draw_paths([scene], sampling.frames, sampling.width, sampling.height)
    covered = coverage([scene.shape], paths, sampling.width, sampling.height)
    palette = colours([scene.colour]), colours([scene.background])
    truth = paint(covered, *palette)[0]
    if task == "reference":
        picture = tasks.reference_pictures([scene.shape], palette[0], sampling.width, sampling.height)[0, 0]
        return Case(scene, text, truth, covered[0], Given(reference=picture))
    # `make` takes the even frames of a clip; a clip of twice the length has all of these as its even ones.
    control = tasks.make(task, truth[::2], covered[0][::2], paths.centres[0], paths.radii[0], draw)
    if task in tasks.CONTROLS:
        video = tasks.control_video(task, truth, covered[0], control.dark)
    else:
        video = truth * (1 - control.mask[:, None])
    return Case(scene, text, truth, covered[0], Given(video, control.mask))


def judge(task: str, case: Case, frames: np.ndarray) -> dict[str, float]:
    """Return what a task asks of a video: 1 or 0 each, or decibels."""
    reading = read_video(frames)
    right = {name: float(getattr(reading, name) == getattr(case.scene, name)) for name in NAMES}
    return {**right, **JUDGES[task](case, frames)}


NAMES = ("background", "colour", "shape", "motion")


def _kept(case: Case, frames: np.ndarray) -> dict[str, float]:
    """Compare what was given with the same place of the result."""
    assert case.given.mask is not None
    truth = case.truth.permute(0, 2, 3, 1).numpy() / 2 + 0.5
    likeness = psnr(frames, truth, case.given.mask.numpy() < 0.5)
    return {"kept_dB": likeness}


def _followed(case: Case, frames: np.ndarray) -> dict[str, float]:
    """Compare where the object is with where the control has it."""
    places = [overlap(read_picture(f).alpha, c.numpy()) for f, c in zip(frames[::2], case.covered[::2], strict=True)]
    return {"iou": float(np.mean(places)), "followed": float(np.mean(places) >= SAME_PLACE)}


def _nothing(case: Case, frames: np.ndarray) -> dict[str, float]:
    del case, frames
    return {}


JUDGES: dict[str, Callable[[Case, np.ndarray], dict[str, float]]] = {
    **dict.fromkeys(("first_frame", "last_frame", "first_and_last", "first_clip", "inpaint", "outpaint"), _kept),
    **dict.fromkeys(tasks.CONTROLS, _followed),
    "reference": _nothing,
}


def score_tasks(
    pipeline: WanVACEPipeline, count: int, sampling: Sampling, names: list[str] | None = None
) -> dict[str, Any]:
    """Return each task's mean scores over `count` clips that training left out."""
    scores = {}
    for task in names or SCORED:
        torch.manual_seed(sampling.seed)
        draw = random.Random(f"{task} {sampling.seed}")
        rows = []
        for index in range(count):
            case = make_case(task, sampling, draw, index)
            frames = draw_video(pipeline, case.text, sampling, sampling.seed + index, case.given)
            rows.append(judge(task, case, frames))
        scores[task] = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
        print(task, scores[task], flush=True)
    return scores
