"""A request → frames."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..checkpoints.choose import ModelHandle
from ..host import Host
from ..memory.carry_out import carry_out
from .ask import what_fits
from .condition import VACEInputs, paste, prepare
from .memory import work
from .model import load, warn_if_untrained
from .request import VACERequest, check_request
from .run import VACERun
from .speed import explained, with_speed
from .step_cache import StepCache

if TYPE_CHECKING:
    import torch

    from ..memory.machine import Machine
    from ..memory.measure import Meter
    from .task import VACETask

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
    inputs = prepare(task, request.width, request.height, request.num_frames)
    frames, record = make(handle, request, inputs, host, task is not None)
    return paste(frames, inputs), record | ({"task": task.describe()} if task else {})


def make(
    handle: ModelHandle, request: VACERequest, inputs: VACEInputs, host: Host, has_task: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video from prepared inputs; kept pixels are as the model gives them.

    Args:
        has_task: whether there is a video to follow or keep.

    Returns:
        Frames and a record, as `sample` does.

    Raises:
        PiyingError: the model or the device cannot be used, or no plan fits the machine.
    """
    import torch

    asked, request = request, with_speed(request)
    for sentence in explained(asked, request):
        log.info("Speed: %s", sentence)
    model = load(handle, host)
    warn_if_untrained(request, model.found)
    components = model.components()
    phases = work(
        components,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        references=len(inputs.references),
        cfg=request.cfg,
        steps=request.steps,
        task=has_task,
        step_cache=request.step_cache > 0,
    )

    def advise(machine: Machine) -> str:
        size = (request.width, request.height, request.num_frames)
        return what_fits(components, machine, handle, *size, len(inputs.references), request.cfg)

    # Made here, so that what it left out can be told; a run that found its latents kept left out nothing.
    cache = StepCache(request.step_cache) if request.step_cache else None

    def run(device: str, meter: Meter) -> VACERun:
        return VACERun(model, request, inputs, host, device, meter, cache)

    with torch.no_grad():
        frames, ran = carry_out(phases, handle, host, run, advise)
    left_out = {"steps_taken_again": cache.skipped} if cache else {}
    return frames, {"model": model.found.name, **ran, **asdict(request), **left_out}
