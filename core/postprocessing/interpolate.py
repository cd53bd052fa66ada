"""Frame interpolation: frames between those of a video, by a network or by optical flow, and none across a cut."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from ..errors import PiyingError
from ..executor.model_cache import cached_model
from ..files.file_state import file_state
from ..host.base import Host
from ..main_memory import has_room
from ..media.frame_rate import exact_rate
from ..media.frames import check_finite, checked_frames
from ..planner.plan_types import amount
from .choices import INTERPOLATION, OPTICAL_FLOW
from .flow_warp import FlowPair, brightness, new_share
from .places import Place, Work, carry_out
from .rife import MULTIPLE, Rife, read_rife, rife_work

log = logging.getLogger("piying")


class InBetween(NamedTuple):
    """A frame of the new video: the frame of the old one before it, and the time since then in frames of that one."""

    before: int
    time: float


def in_betweens(count: int, fps: Fraction, to_fps: Fraction) -> list[InBetween]:
    """Return the frames of a video at a new rate, from the first frame of the old one to its last."""
    step = fps / to_fps
    places = (number * step for number in range(math.floor((count - 1) / step) + 1))
    return [InBetween(math.floor(place), float(place - math.floor(place))) for place in places]


@dataclass(frozen=True)
class NewRate:
    """The rate that a video is to have.

    Attributes:
        fps: what it has.
        multiplier: times that, where `to_fps` is 0.
        to_fps: frames per second.
    """

    fps: float
    multiplier: int = 2
    to_fps: float = 0.0

    @property
    def exact(self) -> tuple[Fraction, Fraction]:
        """Return the old and the new rate.

        Raises:
            PiyingError: one of them is none.
        """
        old = exact_rate("fps", self.fps)
        return old, exact_rate("to_fps", self.to_fps) if self.to_fps else exact_rate("fps", old * self.multiplier)

    def frames(self, count: int) -> list[InBetween]:
        """Return the frames of the new video, of so many of the old one; for errors see `exact`."""
        return in_betweens(count, *self.exact)


def interpolate(
    images: Any, *, model: str, rate: NewRate, scene_cut: float, host: Host
) -> tuple[torch.Tensor, float, dict[str, Any]]:
    """Return a video at another rate, IMAGE [M, H, W, 3], that rate, and what ran.

    It begins with the first frame and ends with the last one that the new rate meets. Frames that it has already are
    kept as they are.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `INTERPOLATION.choices`.
        rate: the new one.
        scene_cut: which share of a picture has to be new for a cut, across which the nearer frame is repeated;
            1 for none.

    Raises:
        PiyingError: no frames, a rate that is none, no such model, one that cannot be read, or memory ran out.
    """
    path = INTERPOLATION.chosen(model, host)
    frames = checked_frames(images)
    check_finite(frames, "frames")
    fps, to_fps = rate.exact
    wanted = rate.frames(len(frames))
    size = 4 * len(wanted) * frames[0].numel()
    if not has_room(size, size):
        raise PiyingError(
            f"{len(wanted)} frames of {frames.shape[2]}×{frames.shape[1]} take {amount(size)} of main memory, which "
            "are not free. Set multiplier or to_fps lower, or give fewer frames at once."
        )
    result = torch.empty(len(wanted), *frames.shape[1:])
    record: dict[str, Any] = {"model": OPTICAL_FLOW, "fps": float(fps), "to_fps": float(to_fps)}
    cuts = _copy_given(frames, wanted, result, scene_cut=scene_cut, host=host)
    jobs = [job for job in enumerate(wanted) if job[1].time and job[1].before not in cuts]
    what = f"Interpolating {len(jobs)} frames of {frames.shape[2]}×{frames.shape[1]}"
    if path is None or not jobs:
        log.info("%s by optical flow on the CPU.", what)
        _by_flow(frames, jobs, result, host)
    else:
        key = path, file_state(path)
        network = cached_model("interpolation", key, partial(read_rife, path), host, size=path.stat().st_size)
        work = rife_work(path, *frames.shape[1:3])
        place = _ByNetwork(frames, jobs, result, network, host).run(work, f"{what} with {path.stem}")
        record |= {"model": path.name, "place": str(place)}
    if cuts:
        log.info("Cuts after the frames %s: nothing is blended there.", ", ".join(map(str, sorted(cuts))))
    return result, float(to_fps), {**record, "cuts": sorted(cuts), "made": len(jobs), "frames": len(wanted)}


def _copy_given(
    frames: torch.Tensor, wanted: list[InBetween], result: torch.Tensor, *, scene_cut: float, host: Host
) -> set[int]:
    """Put what needs no interpolation into the result; return the frames after which there is a cut."""
    cuts, last = set(), -1
    between = sorted({one.before for one in wanted if one.time}) if scene_cut < 1 else []
    progress = host.progress("Looking for cuts", max(1, len(between)))
    gray = None
    for number, index in enumerate(between):
        before = gray if gray is not None and last == index else brightness(frames[index].float().cpu().numpy())
        gray, last = brightness(frames[index + 1].float().cpu().numpy()), index + 1
        if new_share(before, gray) > scene_cut:
            cuts.add(index)
        progress.step(number + 1)
    for number, one in enumerate(wanted):
        if not one.time or one.before in cuts:
            result[number] = frames[one.before + (one.time >= 0.5)]
    return cuts


Job = tuple[int, InBetween]  # a frame of the new video, and its number in it


def _by_pair(jobs: list[Job]) -> Iterator[tuple[int, list[Job]]]:
    """Yield each frame of the old video that has new ones after it, with these."""
    pairs: dict[int, list[Job]] = {}
    for job in jobs:
        pairs.setdefault(job[1].before, []).append(job)
    yield from pairs.items()


def _by_flow(frames: torch.Tensor, jobs: list[Job], result: torch.Tensor, host: Host) -> None:
    progress, done = host.progress("Interpolating", max(1, len(jobs))), 0
    for index, made in _by_pair(jobs):
        first, second = (np.ascontiguousarray(frames[at].float().cpu().numpy()) for at in (index, index + 1))
        pair = FlowPair.measured((first, second), (brightness(first), brightness(second)))
        for number, one in made:
            result[number] = torch.from_numpy(pair.at(one.time))
            done += 1
            progress.step(done)


@dataclass
class _ByNetwork:
    """In-between frames that a network makes, in whatever places it takes.

    Attributes:
        frames: [N, H, W, 3].
        jobs: what is left to do.
        result: [M, H, W, 3]; filled.
    """

    frames: torch.Tensor
    jobs: list[Job]
    result: torch.Tensor
    network: Rife
    host: Host

    def run(self, work: Work, what: str) -> Place:
        """Make all frames and return the place where the last one was."""
        with torch.inference_mode():
            return carry_out(
                work,
                self.network,
                self.host,
                what,
                passes=lambda _: float(work.pixels(0) * len(self.jobs)),
                do=self._interpolate,
            )

    def _interpolate(self, place: Place, seconds: float) -> None:
        height, width = self.frames.shape[1:3]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        progress, done = self.host.progress("Interpolating", max(1, len(self.jobs)), seconds=seconds), 0
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index, made in _by_pair(list(self.jobs)):
            for at in (index, index + 1):
                if at not in seen:
                    picture = functional.pad(self.frames[at].movedim(-1, 0)[None].float().to(place.device), padding)
                    seen[at] = picture, self.network.features(picture)
            (first, first_features), (second, second_features) = seen[index], seen[index + 1]
            for number, one in made:
                picture = self.network((first, second), (first_features, second_features), one.time)
                self.result[number] = picture[0, :, :height, :width].movedim(0, -1).clamp(0, 1).float().cpu()
                self.jobs.remove((number, one))
                done += 1
                progress.step(done)
            seen = {index + 1: seen[index + 1]}
