"""Time and memory of a VACE task: the pack beside diffusers' WanVACEPipeline, with the same inputs and seeds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from training.evaluate import BUILT_IN, load_video
from training.samples import pack
from training.video_sampling import Given, Sampling, control_arguments

from .measuring import clock, peak, settle
from .task_cases import SIDE, Case, Settings, cases, handle, host, request

DEVICE = "cpu"
Way = Callable[[Case, Settings, int, Path], torch.Tensor]


def measure(task: str, settings: Settings, rounds: int, folder: Path) -> dict[str, Any]:
    """Return medians of processor seconds, the peak bytes of tensors, and how far the two videos are apart.

    Every round has a case of its own, since the pack keeps what it encoded and sampled. The round before the first
    loads the models and is not counted; the one after the last is for memory.
    """
    chosen = list(itertools.islice(cases(task, settings), rounds + 2))
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    apart = 0.0
    for turn, case in enumerate(chosen[:-1]):
        made = {name: _timed(way, case, settings, turn, folder) for name, way in WAYS.items()}
        apart = max(apart, float((made["ours"][1] - made["diffusers"][1]).abs().max()))
        for name, (took, _) in made.items():
            times[name] += [took] if turn else []
    row = {name: statistics.median(found) for name, found in times.items()}
    for name, way in WAYS.items():
        settle(DEVICE)
        row[f"{name}_peak"] = peak(partial(way, chosen[-1], settings, rounds + 1, folder), DEVICE)
    print(task, row, f"apart by {apart:.2g}", flush=True)
    return {**row, "apart": apart}


def _timed(way: Way, case: Case, settings: Settings, seed: int, folder: Path) -> tuple[float, torch.Tensor]:
    settle(DEVICE)
    begun = clock(DEVICE)
    frames = way(case, settings, seed, folder)
    return clock(DEVICE) - begun, frames


def ours(case: Case, settings: Settings, seed: int, folder: Path) -> torch.Tensor:
    """Return the frames [N, H, W, 3] that VACE Sample makes, before kept pixels are brought back."""
    inputs = pack("core.wan.conditioning").prepare(case.task, SIDE, SIDE, settings.frames)
    asked = request(case, settings, seed)
    frames, _ = pack("core.wan.run").sample_inputs(
        handle(), asked, inputs, host(folder), has_task=case.task is not None
    )
    return frames


def theirs(case: Case, settings: Settings, seed: int, folder: Path) -> torch.Tensor:
    """Return the frames [N, H, W, 3] of the plain pipeline."""
    asked = request(case, settings, seed)
    with torch.no_grad():
        made = pipeline(settings)(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            width=SIDE,
            height=SIDE,
            num_frames=settings.frames,
            num_inference_steps=settings.steps,
            guidance_scale=settings.cfg,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **control_arguments(_given(case, settings)),
        ).frames[0]
    return made.permute(0, 2, 3, 1)


def _given(case: Case, settings: Settings) -> Given:
    if case.task is None:
        return Given()
    inputs = pack("core.wan.conditioning").prepare(case.task, SIDE, SIDE, settings.frames)
    (picture,) = inputs.references or (None,)
    return Given(inputs.video[0].transpose(0, 1), inputs.mask[0, 0], picture)


@cache
def pipeline(settings: Settings) -> Any:
    """Return the plain pipeline on the built-in model."""
    return load_video(BUILT_IN / "wan_vace", Sampling(shift=settings.shift))


WAYS: dict[str, Way] = {"ours": ours, "diffusers": theirs}
