"""Wan VACE runs: a request → frames, under the best plan that holds; a finished phase is not run again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..executor.execute_plan import Meter
from ..executor.placement import placed
from ..executor.retry import finite_check
from ..host.base import Host, Reporter
from ..preview import fit_colours
from .attention import attention_for
from .conditioning import (
    VAE_STRIDE,
    TaskCache,
    Tensors,
    VACEInputs,
    append_mask,
    encode_task,
    encode_video,
    paste,
    prepare,
)
from .decode import tiling
from .distilled import with_distilled
from .fast_decoder import check_decoder, decoder_of
from .long.timeline import has_times
from .model import check_context, check_guidance, load, with_published_sampler
from .phases import VideoWork, phases
from .request import WanRequest, check_request
from .speed import with_speed
from .step_cache import StepCache
from .video_run import VideoRun, execute, log_request

if TYPE_CHECKING:
    import torch

    from ..planner.plan_types import PhasePlan, Plan
    from .task.canvas import Canvas
    from .task.vace_task import VACETask

log = logging.getLogger("piying")
TIMES_ARE_WORDS = "The prompt has times, which VACE Long Video follows: here they are read as words."


def sample(
    handle: ModelHandle,
    request: WanRequest,
    host: Host,
    task: VACETask | None = None,
    *,
    on_canvas: Callable[[Canvas], None] = lambda canvas: None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video.

    Without a task the result equals `WanVACEPipeline.__call__` on the same weights with
    `UniPCMultistepScheduler(flow_shift=shift)` and a CPU generator seeded with `seed`.

    Args:
        handle: the model.
        request: what to make.
        host: the program around the run.
        task: what the video is made from beside its prompt.
        on_canvas: called with what the model is shown of the task.

    Returns:
        Frames as a float32 CPU tensor [num_frames, height, width, 3] in 0..1, and a record of what
        ran, fit for JSON.

    Raises:
        PiyingError: the request, the task, the model or the device cannot be used, or no plan fits
            the machine; the text says why.
    """
    check_request(request)
    noted = {"note": TIMES_ARE_WORDS} if has_times(request.prompt) else {}
    if noted:
        log.warning("%s", TIMES_ARE_WORDS)
    handle, request = with_distilled(handle, request, host)
    inputs = prepare(task, request.width, request.height, request.num_frames)
    on_canvas(inputs.canvas)
    frames, record = sample_inputs(handle, request, inputs, host, has_task=task is not None)
    return paste(frames, inputs), record | ({"task": task.describe()} if task else {}) | noted


def sample_inputs(
    handle: ModelHandle,
    request: WanRequest,
    inputs: VACEInputs,
    host: Host,
    *,
    has_task: bool,
    reporter: Reporter | None = None,
    on_latents: Callable[[torch.Tensor], None] | None = None,
    logged_plans: set[str] | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video from prepared inputs; kept pixels are as the model gives them.

    Args:
        has_task: whether there is a video to follow or keep.
        reporter: shown the phases' progress in place of the host.
        on_latents: called with the latents [1, z, T, h, w], float32 on the CPU, before they are decoded.
        logged_plans: plans, and lines about the prompt, that were logged for videos much like this one; they are not
            logged again, and new ones are added.

    Returns:
        Frames and a record, as `sample` does.

    Raises:
        PiyingError: the model or the device cannot be used, or no plan fits the machine.
    """
    model = load(handle, host)
    check_guidance(request.guidance, model.found)
    check_context(request.context, model.found)
    asked, request = request, with_published_sampler(with_speed(request), model.parts.loras)
    # A long video says once what is true of all its windows.
    if not logged_plans:
        log_request(handle, asked, request, model)
    device = host.device()
    attention = attention_for(request.attention, request.speed, device, model.found.is_built_in)
    experts = model.experts(request)
    decoder = decoder_of(handle, host)
    if decoder is not None:
        check_decoder(decoder, model.found)
    work = VideoWork.of(asked, len(inputs.references), has_task, (attention.why,))
    work = replace(work, high_steps=experts, fast_decoder=decoder is not None)
    run = VACERun(
        model,
        request,
        host,
        reporter=reporter or host,
        meter=Meter(device),
        attention=attention,
        cache=StepCache(request.step_cache) if request.step_cache else None,
        on_latents=on_latents,
        logged=logged_plans,
        high_steps=experts,
        decoder=decoder,
        inputs=inputs,
    )
    return execute(run, handle, phases(model.components(), work), work)


@dataclass
class VACERun(VideoRun):
    """A run with a task, or with the empty one.

    Attributes:
        control: VACE's condition [1, 2z + 64, T, h, w].
    """

    inputs: VACEInputs = field(kw_only=True)
    control: torch.Tensor | None = None

    def prepare(self, plan: Plan) -> None:
        """Encode the task."""
        if self.control is None:
            self.control, self.colours = self._condition(plan.phase("condition"))

    @property
    def in_front(self) -> int:
        """The latent frames of references."""
        return len(self.inputs.references)

    def latents_shape(self) -> tuple[int, ...]:
        """Return as many channels as the control has beside its mask's, which are the latents' own, twice."""
        assert self.control is not None
        return (1, (self.control.shape[1] - VAE_STRIDE**2) // 2, *self.control.shape[2:])

    def given(self, device: str, dtype: torch.dtype) -> dict[str, Any]:
        """Return the control, its strength, and what the video begins as."""
        assert self.control is not None
        before = self.inputs.before
        return {
            "control": self.control.to(device, dtype),
            "scale_at": self.inputs.scale_at,
            "steer": None if before is None else before.steer(self.in_front),
        }

    def tensors(self) -> list[torch.Tensor]:
        """Return the control, and the latents that the video begins as."""
        assert self.control is not None
        before = self.inputs.before
        return [self.control, *([] if before is None else [before.latents, before.weights()])]

    def key(self) -> dict[str, Any]:
        """Return the strength in each step."""
        return {"scales": [self.inputs.scale_at(step, self.request.steps) for step in range(self.request.steps)]}

    def _condition(self, choice: PhasePlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the control [1, 2z + 64, T, h, w] and the preview's colours.

        Latents of a task that was seen before, with whatever prompt and seed, are not encoded again.
        """
        how = f"{choice.compute} {choice.storage} {choice.variant} {choice.placement} {self.device_kind}"
        tasks = TaskCache.open(self.host.cache_folder(), {"vae": self.model.parts.identity("vae"), "as": how})
        stored = tasks.get_or_encode(self.inputs, lambda: self._encode_task(choice, tasks))
        return append_mask(stored["latents"], self.inputs), stored["colours"]

    def _encode_task(self, choice: PhasePlan, tasks: TaskCache) -> Tensors:
        """Return the task's latents [1, 2z, T, h, w] and the preview's colours, on the CPU."""
        check = finite_check(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)

            def encode(video: torch.Tensor) -> torch.Tensor:
                latents = encode_video(vae, video)
                check(latents, "in the latents of the task")
                return latents.cpu()

            with placed(vae, choice, self.meter.device, self.host):
                progress = self.reporter.progress("Preparing the task", 1, seconds=choice.seconds)
                with tiling(vae, choice.variant == "tiled"):
                    latents = encode_task(tasks.cache_gray(encode), self.inputs)
                colours = fit_colours(vae)
                progress.step(1)
        return {"latents": latents, "colours": colours}
