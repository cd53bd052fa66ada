"""Cases of VACE tasks on held-out clips, and the content expected in the results."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data import Paths, colours, coverage, draw_paths, paint
from training.language import LANGUAGES, Scene, caption, scenes
from training.reading import overlap, psnr, read_picture, read_video
from training.samples import pack
from training.tasks import reference_pictures, vaguer

SIDE = 64
READ = ("background", "colour", "shape", "motion")
ADDED = 16  # pixels that outpainting adds on one side
CLIP = 5  # frames that extension is given of a clip


@dataclass(frozen=True)
class Settings:
    """How videos are sampled."""

    frames: int = 9
    steps: int = 20
    cfg: float = 4.0
    shift: float = 5.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Clip:
    """A drawn clip: frames [T, H, W, 3] in 0..1 and how much of each pixel the object covers [T, H, W]."""

    scene: Scene
    text: str
    frames: torch.Tensor
    covered: torch.Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """What the video is made from, what it has to show, and where the object has to be, if the task says so."""

    text: str
    scene: Scene
    task: Any = None
    covered: torch.Tensor | None = None
    border: int | None = None


def drawn(scene: Scene, text: str, frames: int) -> Clip:
    """Return a clip of a scene."""
    paths = draw_paths([scene], frames, SIDE, SIDE)
    covered = coverage([scene.shape], paths, SIDE, SIDE)
    picture = paint(covered, colours([scene.colour]), colours([scene.background]))[0]
    return Clip(scene, text, picture.permute(0, 2, 3, 1).contiguous() / 2 + 0.5, covered[0])


def t2v(clip: Clip, draw: random.Random) -> Case:
    """Text alone."""
    return Case(clip.text, clip.scene)


def reference(clip: Clip, draw: random.Random) -> Case:
    """The object on white; its colour is not in the prompt."""
    picture = reference_pictures([clip.scene.shape], colours([clip.scene.colour]), SIDE, SIDE)[0]
    language = "zh" if any(letter > "\u4e00" for letter in clip.text) else "en"
    images = [(picture.permute(0, 2, 3, 1) / 2 + 0.5, None)]
    return Case(vaguer(clip.text, clip.scene, language), clip.scene, tasks("reference").reference(images))


def depth(clip: Clip, draw: random.Random) -> Case:
    """Depth as Control: Depth measures it."""
    control, _ = pack("core.controls.depth").depth(clip.frames, "built-in", "per frame", host())
    return _repaint(clip, control)


def edges(clip: Clip, draw: random.Random) -> Case:
    """Edges as Control: Edges draws them."""
    control = pack("core.controls.lines").edges(clip.frames, low=100, high=200, lines="white on black", host=host())
    return _repaint(clip, control)


def boxes(clip: Clip, draw: random.Random) -> Case:
    """Boxes as Control: Layout from Mask draws them."""
    return _repaint(clip, pack("core.controls.layout").mask_layout(clip.covered, "box", "white on black", host()))


def _repaint(clip: Clip, control: torch.Tensor) -> Case:
    return Case(clip.text, clip.scene, tasks("repaint").repaint(control), clip.covered)


def inpaint(clip: Clip, draw: random.Random) -> Case:
    """The object's place, over a clip in which another object goes the same way."""
    others = [scene for scene in scenes() if _differs(scene, clip.scene)]
    other = draw.choice(others)
    covered = coverage([other.shape], _path_of(clip), SIDE, SIDE)
    frames = paint(covered, colours([other.colour]), colours([other.background]))[0].permute(0, 2, 3, 1) / 2 + 0.5
    brush = tasks("inpaint").Brush(shape="box", grow=4)
    return Case(clip.text, clip.scene, tasks("inpaint").inpaint(frames, covered[0], brush, feather=0))


def _differs(scene: Scene, other: Scene) -> bool:
    same = (scene.background, scene.motion) == (other.background, other.motion)
    return same and scene.colour != other.colour and scene.shape != other.shape


def _path_of(clip: Clip) -> Paths:
    """Return the way of a clip's object, for another of about the same area."""
    weights = clip.covered / clip.covered.sum((1, 2), keepdim=True)
    places = torch.arange(SIDE) + 0.5
    centres = torch.stack([(weights.sum(1) * places).sum(1), (weights.sum(2) * places).sum(1)], dim=1)
    return Paths(centres[None], (clip.covered[:1].sum((1, 2)) / torch.pi).sqrt())


def outpaint(clip: Clip, draw: random.Random) -> Case:
    """The left or the right quarter is missing."""
    left = draw.random() < 0.5
    inner = clip.frames[:, :, ADDED:] if left else clip.frames[:, :, :-ADDED]
    sides = tasks("outpaint").Sides(left=ADDED * left, right=ADDED * (not left), unit="pixels")
    task = tasks("outpaint").outpaint(inner.contiguous(), sides, feather=0)
    return Case(clip.text, clip.scene, task, border=ADDED if left else SIDE - ADDED)


def extend_frame(clip: Clip, draw: random.Random) -> Case:
    """The first frame is given."""
    return _extend(clip, clip.frames[:1])


def extend_clip(clip: Clip, draw: random.Random) -> Case:
    """The first frames are given."""
    return _extend(clip, clip.frames[:CLIP])


def _extend(clip: Clip, first: torch.Tensor) -> Case:
    extend = tasks("extend")
    task = extend.extend(extend.GivenFrames(first=first.contiguous()), num_frames=len(clip.frames))
    return Case(clip.text, clip.scene, task)


TASKS: dict[str, Callable[[Clip, random.Random], Case]] = {
    "t2v": t2v,
    "reference": reference,
    "depth": depth,
    "edges": edges,
    "boxes": boxes,
    "inpaint": inpaint,
    "outpaint": outpaint,
    "extend_frame": extend_frame,
    "extend_clip": extend_clip,
}


def tasks(name: str) -> Any:
    """Return the module of a task node's work."""
    return pack(f"core.wan.task.{name}")


@cache
def host(folder: Path | None = None) -> Any:
    """Return a program that computes on the CPU and keeps what it keeps in a folder."""
    return pack("core.host.headless").HeadlessHost(models=[], chosen_device="cpu", cache=folder)


def cases(task: str, settings: Settings) -> Iterator[Case]:
    """Yield cases of a task without end, the same ones for the same seed."""
    draw = random.Random(f"{task} {settings.seed}")
    torch.manual_seed(settings.seed)
    pool = [scene for scene in scenes() if scene.held_out and (task != "reference" or scene.colour != "white")]
    while True:
        for language in LANGUAGES:
            scene = draw.choice(pool)
            yield TASKS[task](drawn(scene, caption(scene, language, draw), settings.frames), draw)


def request(case: Case, settings: Settings, seed: int) -> Any:
    """Return what VACE Sample would ask for."""
    return pack("core.wan.request").WanRequest(
        case.text,
        width=SIDE,
        height=SIDE,
        num_frames=settings.frames,
        steps=settings.steps,
        cfg=settings.cfg,
        shift=settings.shift,
        seed=seed,
    )


def handle() -> Any:
    """Return the built-in model's handle."""
    choose = pack("core.catalog.selection")
    return choose.ModelHandle(pack("core.wan.family").WAN_VACE, model="built-in")


def score(task: str, count: int, settings: Settings, folder: Path) -> dict[str, float]:
    """Return a task's mean scores."""
    source, rows = cases(task, settings), []
    sample, condition = pack("core.wan.run"), pack("core.wan.conditioning")
    for index in range(count):
        case = next(source)
        asked = request(case, settings, settings.seed + index)
        inputs = condition.prepare(case.task, SIDE, SIDE, settings.frames)
        made, _ = sample.sample_inputs(handle(), asked, inputs, host(folder), has_task=case.task is not None)
        rows.append(judge(case, inputs, made, condition.paste(made, inputs)))
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def judge(case: Case, inputs: Any, made: torch.Tensor, frames: torch.Tensor) -> dict[str, float]:
    """Return what a result shows, as 1 or 0, overlap or decibels.

    Args:
        made: the video as the model gives it.
        frames: the same with the kept pixels brought back.
    """
    reading = read_video(frames.numpy())
    found = {name: float(getattr(reading, name) == getattr(case.scene, name)) for name in READ}
    kept = ~inputs.canvas.make
    if case.covered is not None:
        found["iou"] = float(
            np.mean(
                [overlap(read_picture(f).alpha, c) for f, c in zip(frames.numpy(), case.covered.numpy(), strict=True)]
            )
        )
    if kept.any():
        given = inputs.canvas.frames
        found["kept_exactly"] = float(torch.equal(frames[kept], given[kept]))
        found["kept_dB"] = psnr(made.numpy(), given.numpy(), kept.numpy())
    if case.border is not None:
        found["step_at_border"], found["step_elsewhere"] = steps_at(frames, case.border)
    return found


def steps_at(frames: torch.Tensor, border: int) -> tuple[float, float]:
    """Return the mean step between neighbouring columns, in levels of 255: over the border, and in what is given."""
    steps = (frames[:, :, 1:] - frames[:, :, :-1]).abs().mean((0, 1, 3)) * 255
    inside = steps[border:] if border < SIDE // 2 else steps[: border - 1]
    return float(steps[border - 1]), float(inside.mean())
