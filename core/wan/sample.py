"""A request → frames."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..executor.execute_plan import execute_plan
from ..host.base import Host
from ..lora.catalog import record_of
from .attention import attention_for
from .conditioning import VACEInputs, paste, prepare
from .distilled import with_distilled
from .estimate import what_fits, work_of
from .model import load, warn_if_not_made_for, warn_if_untrained
from .request import VACERequest, check_request
from .run import VACERun
from .speed import explained, with_speed
from .step_cache import StepCache

if TYPE_CHECKING:
    import torch

    from ..executor.measure import Meter
    from ..planner.machine import Machine
    from .task.vace_task import VACETask

log = logging.getLogger("piying")


def sample(
    handle: ModelHandle, request: VACERequest, host: Host, task: VACETask | None = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video.

    Without a task the result equals `WanVACEPipeline.__call__` on the same weights with
    `UniPCMultistepScheduler(flow_shift=shift)` and a CPU generator seeded with `seed`.

    Returns:
        Frames as a float32 CPU tensor [num_frames, height, width, 3] in 0..1, and a record of what
        ran, fit for JSON.

    Raises:
        PiyingError: the request, the task, the model or the device cannot be used, or no plan fits
            the machine; the text says why.
    """
    check_request(request)
    handle, request = with_distilled(handle, request, host)
    inputs = prepare(task, request.width, request.height, request.num_frames)
    frames, record = make(handle, request, inputs, host, task is not None)
    return paste(frames, inputs), record | ({"task": task.describe()} if task else {})


def make(
    handle: ModelHandle,
    request: VACERequest,
    inputs: VACEInputs,
    host: Host,
    has_task: bool,
    on_latents: Callable[[torch.Tensor], None] | None = None,
    told: set[str] | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video from prepared inputs; kept pixels are as the model gives them.

    Args:
        has_task: whether there is a video to follow or keep.
        on_latents: told the latents [1, z, T, h, w], float32 on the CPU, before they are decoded.
        told: what the log was told of videos much like this one; it is not said again, and what is said is added.

    Returns:
        Frames and a record, as `sample` does.

    Raises:
        PiyingError: the model or the device cannot be used, or no plan fits the machine.
    """
    import torch

    asked, request = request, with_speed(request)
    model = load(handle, host)
    if not told:
        for sentence in explained(asked, request):
            log.info("Speed: %s", sentence)
        warn_if_untrained(request, model.found)
        warn_if_not_made_for(request, model.parts.loras)
    components = model.components()
    attention = attention_for(request.attention, request.speed, host.device(), model.found.is_built_in)
    phases = work_of(request, components, len(inputs.references), has_task, (attention.why,))

    def advise(machine: Machine) -> str:
        size = (request.width, request.height, request.num_frames)
        return what_fits(components, machine, handle, *size, len(inputs.references), request.cfg)

    # Made here, so that what it left out can be told; a run that found its latents kept left out nothing.
    cache = StepCache(request.step_cache) if request.step_cache else None

    def run(device: str, meter: Meter) -> VACERun:
        return VACERun(model, request, inputs, host, device, meter, attention, cache, on_latents)

    with torch.no_grad():
        frames, ran = execute_plan(phases, handle, host, run, advise, told)
    if cache and cache.skipped:
        log.info("Speed: %d of %d steps were forecast.", cache.skipped, request.steps)
    done = {"attention": attention.name} | ({"steps_forecast": cache.skipped} if cache else {})
    return frames, {"model": model.found.name, **record_of(model.parts.loras), **ran, **asdict(request), **done}
