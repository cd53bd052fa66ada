"""Noise → latents: the loop of WanVACEPipeline, with both branches of a step in one pass over the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .forward import predict

if TYPE_CHECKING:
    import torch
    from diffusers import UniPCMultistepScheduler, WanVACETransformer3DModel

    from .step_cache import StepCache

Scale = Callable[[int, int], float]
OnStep = Callable[[int, "torch.Tensor"], None]
# Flow, latents and noise level of a step → the flow that is followed instead.
Steer = Callable[["torch.Tensor", "torch.Tensor", float], "torch.Tensor"]


def denoise(
    transformer: WanVACETransformer3DModel,
    scheduler: UniPCMultistepScheduler,
    noise: torch.Tensor,
    embeds: Sequence[torch.Tensor],
    control: torch.Tensor,
    steps: int,
    cfg_at: Scale,
    scale_at: Scale,
    on_step: OnStep,
    check: Callable[[], None],
    cache: StepCache | None = None,
    steer: Steer | None = None,
    together: bool = False,
) -> torch.Tensor:
    """Return clean latents, float32, shaped like `noise`.

    Args:
        transformer: ready to compute on the device of `noise`.
        scheduler: fresh, with its shift set.
        noise: float32 [1, z, T, h, w].
        embeds: [1, 512, d] of the prompt, and of the negative prompt where any step is guided.
        control: VACE's condition [1, 2z + 64, T, h, w].
        cfg_at: the classifier-free guidance scale of a step, from its index and the number of steps; in a step
            where it is 1 only the prompt is followed.
        scale_at: the conditioning scale of a step, from its index and the number of steps.
        on_step: told the number of steps done and the latents; stops the run by raising.
        check: called before every block; stops the run by raising.
        cache: forecasts steps that hardly differ; None computes every one.
        steer: given the flow of each step, guidance included, before it is followed; the noise level is 1..0.
        together: predict for both prompts in one batch.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise
    for index, timestep in enumerate(scheduler.timesteps):
        state, cfg, scale = latents.to(control.dtype), cfg_at(index, steps), scale_at(index, steps)
        followed = embeds if cfg > 1 else embeds[:1]
        level = float(scheduler.sigmas[index])
        if cache is not None:
            cache.begin(index, steps, scale, level)
        branches = predict(transformer, state, timestep.expand(1), followed, control, scale, check, cache, together)
        flow = branches[0] if len(branches) == 1 else branches[1] + cfg * (branches[0] - branches[1])
        if steer is not None:
            flow = steer(flow, latents, level)
        latents = scheduler.step(flow, timestep, latents, return_dict=False)[0]
        on_step(index + 1, latents)
    return latents
