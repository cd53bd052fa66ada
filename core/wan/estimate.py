"""What a video would need, asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from ..catalog.component_sizes import wanted_components
from ..catalog.selection import ModelHandle
from ..host.base import Host
from ..image_sizes import MULTIPLE
from ..planner.machine import Machine, read_machine
from ..planner.phases import Component, Phase
from ..planner.plan import largest, plan
from ..planner.report import Estimate
from .phases import BLOCK_LISTS, FP8_KEEP, work
from .request import DEFAULT_CFG, FRAME_STEP, MIN_FRAMES, VACERequest, check_measures
from .speed import vae_types, with_speed


def ask(handle: ModelHandle, host: Host, request: VACERequest, references: int = 0, task: bool = True) -> Estimate:
    """Return the plan of a video, its `speed` without a distilled LoRA's steps; see `memory.work` for the rest.

    Raises:
        PiyingError: a measure for speed is out of range, the model is neither installed nor listed with its sizes, or
            the device cannot be used.
    """
    check_measures(request)
    name, components = wanted_components(handle, host, BLOCK_LISTS, FP8_KEEP)
    machine = read_machine(host)
    request = with_speed(request)
    size = (request.width, request.height, request.num_frames)
    made = plan(
        work_of(request, components, references, task),
        machine,
        precision=handle.precision,
        memory=handle.memory,
        advise=lambda: what_fits(components, machine, handle, *size, references, request.cfg),
    )
    return Estimate(name, made, machine)


def work_of(
    request: VACERequest,
    components: Mapping[str, Component],
    references: int,
    task: bool,
    notes: tuple[str, ...] = (),
) -> tuple[Phase, ...]:
    """Return the phases of a request whose `speed` is carried out already; see `memory.work` for the rest."""
    return work(
        components,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        references=references,
        cfg=request.cfg,
        steps=request.steps,
        task=task,
        step_cache=request.step_cache > 0,
        batch_cfg=request.batch_cfg,
        notes=notes,
        vae=vae_types(request.vae_precision, request.speed),
    )


def what_fits(
    components: Mapping[str, Component],
    machine: Machine,
    handle: ModelHandle,
    width: int,
    height: int,
    num_frames: int,
    references: int = 0,
    cfg: float = DEFAULT_CFG,
) -> str:
    """Return a sentence on the longest video of this size and the largest of this length that fit."""

    def fits(wide: int, high: int, frames: int) -> bool:
        phases = work(components, wide, high, frames, references, cfg)
        return plan(phases, machine, precision=handle.precision, memory=handle.memory).fits

    def side(part: int) -> tuple[int, int]:
        """Return a size of the same shape whose shorter side is `part` times 16."""
        short = part * MULTIPLE
        long = max(1, round(short * max(width, height) / min(width, height) / MULTIPLE)) * MULTIPLE
        return (long, short) if width >= height else (short, long)

    frames = largest(lambda count: fits(width, height, count), MIN_FRAMES, num_frames, FRAME_STEP)
    part = largest(lambda count: fits(*side(count), num_frames), 1, min(width, height) // MULTIPLE, 1)
    found = [f"num_frames {frames} at {width}×{height}"] if frames else []
    found += ["{}×{} with num_frames {}".format(*side(part), num_frames)] if part else []
    if not found:
        return "No size or length fits. Choose a smaller model, or one whose files are in FP8."
    return f"What would fit: {', or '.join(found)}."
