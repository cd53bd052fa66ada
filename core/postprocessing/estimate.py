"""Estimates of post-processing before a run: tiles, peak memory and time, chosen as the run chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..image_sizes import VideoSize
from ..planner.cost import LIBRARIES, PROCESS_RAM
from ..planner.machine import Limits, Machine, read_machine
from ..planner.measured import with_rates
from ..planner.plan_types import PhaseName, PhasePlan, Plan, Rejected
from ..planner.report import Estimate, duration, in_short, shortages, too_large
from .choices import INTERPOLATION, OPTICAL_FLOW, UPSCALING
from .interpolate import NewRate
from .places import PIECE_SECONDS, Place, Work, operations_per_second, places
from .rife import rife_work
from .upscale import WantedSize, cut_size, tiled_pixels, upscaler_traits

if TYPE_CHECKING:
    from ..host.base import Host

# Of one thread of an Intel Xeon (OpenCV 5.0.0, NumPy 2.3 and Pillow 12.0), at 832×480 and 1280×720: seconds and bytes
# for each pixel of a new frame.
FLOW_SECONDS, FLOW_BYTES = 3.3e-6, 650
RESAMPLING_SECONDS, RESAMPLING_BYTES = 5e-8, 36


@dataclass(frozen=True)
class UnknownEstimate:
    """What stands for an estimate where only the run knows what it would be made from.

    Attributes:
        model: from the node's widget.
        unknown: names of inputs.
    """

    model: str
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as `Estimate.to_json` does; what is not known is None."""
        figures = dict.fromkeys(("fits", "peak_vram_gb", "peak_ram_gb", "seconds"))
        return {"model": self.model, **figures, "components": [], "reasons": [self.to_text()], "rejected": []}

    def to_text(self) -> str:
        """Return it in a sentence."""
        return f"Memory and time are unknown until it runs: {', '.join(self.unknown)} will only be known in the run."


def estimate_upscaling(model: str, given: VideoSize, wanted: WantedSize, *, tile: int, host: Host) -> Estimate:
    """Return what `upscale` would need; of a model no more than the header of its file is read where that will do.

    Args:
        model: from `UPSCALING.choices`.
        given: the frames.
        wanted: the size that they are to have.
        tile: the side of pieces that the user chose, 0 for none.

    Raises:
        PiyingError: no such model, one that cannot be read, or a size that is none.
    """
    path, machine = UPSCALING.chosen(model, host), _machine(host)
    width, height, count = given
    made = VideoSize(*wanted.of(width, height), count)
    job = _Job("upscale", given, made, machine)
    if path is None:
        pixels = max(made.width * made.height, width * height)
        return job.estimate(
            "none", [job.on_cpu("none", RESAMPLING_BYTES * pixels, RESAMPLING_SECONDS * pixels * count)]
        )
    inner_width, inner_height = cut_size(width, height, made.width, made.height)
    work = upscaler_traits(path).work(inner_height, inner_width, tile)
    ways = [
        job.by_network(path, work, place, count * tiled_pixels(inner_height, inner_width, place.side))
        for place in places(work, job.machine_meanwhile)
    ]
    return job.estimate(path.stem, ways, work)


def estimate_interpolation(model: str, given: VideoSize, rate: NewRate, *, host: Host) -> Estimate:
    """Return what `interpolate` would need where there are no cuts; for the errors see `estimate_upscaling`.

    Args:
        model: from `INTERPOLATION.choices`.
        given: the frames.
        rate: that they are to have.
    """
    path, machine = INTERPOLATION.chosen(model, host), _machine(host)
    frames = rate.frames(given.num_frames)
    new = sum(1 for frame in frames if frame.time)
    job = _Job("interpolate", given, VideoSize(given.width, given.height, len(frames)), machine)
    pixels = given.width * given.height
    if path is None or not new:
        seconds = FLOW_SECONDS * pixels * new
        return job.estimate(OPTICAL_FLOW, [job.on_cpu(OPTICAL_FLOW, FLOW_BYTES * pixels if new else 0, seconds)])
    work = rife_work(path, given.height, given.width)
    ways = [
        job.by_network(path, work, place, new * work.pixels(place.side))
        for place in places(work, job.machine_meanwhile)
    ]
    return job.estimate(path.stem, ways, work)


def _machine(host: Host) -> Machine:
    return with_rates(read_machine(host), host.cache_folder(), measure=False)


def _in_words(size: VideoSize) -> str:
    shape = f"{size.width}×{size.height}"
    return f"1 frame of {shape}" if size.num_frames == 1 else f"{size.num_frames} frames of {shape}"


class _Way(NamedTuple):
    """One way to do it: the plan, and the side of pieces, 0 for whole frames."""

    plan: PhasePlan
    side: int


@dataclass(frozen=True)
class _Job:
    """Frames that → others.

    Attributes:
        phase: its name.
        given, made: the frames, which are in main memory together.
        machine: as it is before the run.
    """

    phase: PhaseName
    given: VideoSize
    made: VideoSize
    machine: Machine

    @property
    def held(self) -> int:
        """Bytes of the frames."""
        return self.given.bytes + self.made.bytes

    @property
    def machine_meanwhile(self) -> Machine:
        """The machine with the frames in its memory."""
        return replace(self.machine, ram_free=max(0, self.machine.ram_free - self.held))

    def on_cpu(self, model: str, working: int, seconds: float) -> _Way:
        """Return the way without a network."""
        return _Way(self._plan(model, Place("cpu", 0, working), weights=0, seconds=seconds), 0)

    def by_network(self, path: Path, work: Work, place: Place, pixels: float) -> _Way:
        """Return the way of a network that so many pixels go through in a place."""
        seconds = work.cost.operations * pixels / operations_per_second(self.machine, place.device)
        return _Way(self._plan(path.stem, place, weights=work.weights, seconds=seconds), place.side)

    def _plan(self, model: str, place: Place, *, weights: int, seconds: float) -> PhasePlan:
        on_card = place.device != "cpu"
        vram = place.bytes if on_card else 0
        ram = PROCESS_RAM + self.held + (weights if on_card else place.bytes)
        return PhasePlan(
            phase=self.phase,
            component=model,
            compute="fp32",
            storage="fp32",
            placement="resident" if on_card else "cpu",
            variant="tiled" if place.side else "whole",
            native_matmul=False,
            vram=vram,
            ram=ram,
            moved=weights if on_card else 0,
            seconds=seconds,
            weights=weights,
            copied=weights,
            room=self.machine.room(vram),
            address_space=ram - PROCESS_RAM + LIBRARIES + weights,
        )

    def estimate(self, model: str, ways: Sequence[_Way], work: Work | None = None) -> Estimate:
        """Return the estimate of the first way that fits, else of the one that lacks least.

        Args:
            ways: in the order in which the run tries them.
            work: of the network, where there is one.
        """
        limits = Limits(self.machine, self.machine.vram_budget)
        fitting = [way for way in ways if limits.allow(way.plan)]
        chosen = fitting[0] if fitting else min(ways, key=lambda way: limits.excess(way.plan))
        rejected = [] if work is None else self._whole_rejected(work, chosen, limits)
        reasons = [in_short(chosen.plan, self.machine, "arithmetic"), *self._sentences(chosen, work, rejected)]
        plan = Plan(
            phases=(chosen.plan,),
            fits=bool(fitting),
            peak_vram=chosen.plan.vram,
            peak_ram=chosen.plan.ram,
            seconds=chosen.plan.seconds,
            moved=chosen.plan.moved,
            reasons=tuple(reasons if fitting else [too_large(chosen.plan, limits)]),
            rejected=tuple(rejected),
        )
        return Estimate(model, plan, self.machine)

    def _sentences(self, chosen: _Way, work: Work | None, rejected: list[Rejected]) -> list[str]:
        said = [f"{self.phase}: {_in_words(self.made)} are made from {_in_words(self.given)}."]
        if chosen.side:
            said.append(f"{self.phase}: tiles of {chosen.side}×{chosen.side}.")
        for one in rejected:
            said.append(f"{self.phase}: done in pieces, because {one.choice} {one.reason}.")
        if work is not None and not work.cost.operations:
            said.append(f"{self.phase}: how long it takes is not known, since its operations cannot be counted.")
        return said

    def _whole_rejected(self, work: Work, chosen: _Way, limits: Limits) -> list[Rejected]:
        """Return why frames do not go through whole, where they do not."""
        if not chosen.side or work.tile:
            return []
        machine = self.machine_meanwhile
        device = "cpu" if chosen.plan.placement == "cpu" else machine.device
        whole = self._plan(chosen.plan.component, work.place(device, 0), weights=work.weights, seconds=0.0)
        for need, room in shortages(whole, limits):
            return [Rejected(self.phase, whole.choice, f"needs {need}, {room} can be used")]
        seconds = work.cost.operations * work.pixels(0) / operations_per_second(machine, device)
        if seconds > PIECE_SECONDS:
            reason = f"takes {duration(seconds)} a frame, in which a run cannot be cancelled"
            return [Rejected(self.phase, whole.choice, reason)]
        return [Rejected(self.phase, whole.choice, "takes more than half of the main memory that is free")]
