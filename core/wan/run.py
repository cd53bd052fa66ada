"""Wan VACE runs: a request → frames, under the best plan that holds; a finished phase is not run again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..host.base import Host, Reporter
from .conditioning import (
    TaskCache,
    Tensors,
    VACEInputs,
    append_mask,
    encode_task,
    paste,
    prepare,
)
from .distilled import with_distilled
from .latents import STRIDE
from .long.timeline import TIMES_ARE_WORDS, has_times
from .model import load
from .phases import VideoWork, phases
from .request import WanRequest, check_request
from .video_run import VideoRun, execute

if TYPE_CHECKING:
    import torch

    from ..planner.plan_types import PhasePlan, Plan
    from .task.canvas import Canvas
    from .task.vace_task import VACETask

log = logging.getLogger("piying")


def sample(
    handle: ModelHandle,
    request: WanRequest,
    host: Host,
    task: VACETask | None = None,
    *,
    latent: Mapping[str, Any] | None = None,
    on_canvas: Callable[[Canvas], None] = lambda canvas: None,
    on_latent: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video.

    Without a task the result equals `WanVACEPipeline.__call__` on the same weights with
    `UniPCMultistepScheduler(flow_shift=shift)` and a CPU generator seeded with `seed`.

    Args:
        handle: the model.
        request: what to make.
        host: the program around the run.
        task: what the video is made from beside its prompt.
        latent: ComfyUI's LATENT to begin from, where the first step is a later one; see `start_latents`.
        on_canvas: called with what the model is shown of the task.
        on_latent: called with the video's LATENT.

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
    frames, record = sample_inputs(
        handle, request, inputs, host, has_task=task is not None, latent=latent, on_latent=on_latent
    )
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
    latent: Mapping[str, Any] | None = None,
    on_latent: Callable[[dict[str, Any]], None] | None = None,
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
    run = VACERun.of(
        handle,
        request,
        model,
        host,
        reporter=reporter,
        logged=logged_plans,
        latent=latent,
        on_latents=on_latents,
        inputs=inputs,
    )
    work = VideoWork.of(request, len(inputs.references), has_task, **run.planned)
    result = execute(run, handle, phases(model.components(), work), work)
    if on_latent is not None:
        on_latent(run.latent())
    return result


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

    def front(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the references as they are encoded, which the control begins with."""
        assert self.control is not None
        return self.control[:, : noise.shape[1], : self.in_front]

    @property
    def in_front(self) -> int:
        """How many references there are."""
        return len(self.inputs.references)

    def latents_shape(self) -> tuple[int, ...]:
        """Return as many channels as the control has beside its mask's, which are the latents' own, twice."""
        assert self.control is not None
        return (1, (self.control.shape[1] - STRIDE**2) // 2, *self.control.shape[2:])

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
        tasks = TaskCache.open(
            self.host.cache_folder(), {"vae": self.model.parts.identity("vae"), "as": self.way(choice)}
        )
        stored = tasks.get_or_encode(self.inputs, lambda: self._encode_task(choice, tasks))
        return append_mask(stored["latents"], self.inputs), stored["colours"]

    def _encode_task(self, choice: PhasePlan, tasks: TaskCache) -> Tensors:
        """Return the task's latents [1, 2z, T, h, w] and the preview's colours, on the CPU."""
        latents, colours = self.encode_by_vae(
            choice,
            "Preparing the task",
            "the task",
            lambda encode: encode_task(tasks.cache_gray(encode), self.inputs),
        )
        return {"latents": latents, "colours": colours}
