"""Samplers: how latents get from one noise level to the next, once the model has predicted the flow there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .request import SamplerName
from .schedule import TRAINING_STEPS

# At level 1 there is no signal, whose logarithm these need; UniPC's own schedule in diffusers begins below it too.
BELOW_ONE = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class Sampler:
    """A scheduler of diffusers, or of the same form, before its first step.

    Attributes:
        scheduler: its `timesteps` are what the model is told, its `sigmas` the noise levels, with a last 0.
        generator: makes the noise that a stochastic one adds; None for the others.
        upcast: whether it computes in the type of the flow, which then is made float32.
    """

    scheduler: Any
    generator: torch.Generator | None = None
    upcast: bool = True

    def begin_at(self, step: int, shape: Sequence[int]) -> None:
        """Go to a later step than the first; a sampler with noise draws what the steps before it would have drawn.

        Args:
            step: from 0.
            shape: of the latents.
        """
        self.scheduler.set_begin_index(step)
        for _ in range(step if self.generator is not None else 0):
            torch.randn(shape, generator=self.generator)

    def step(self, flow: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents at the next noise level, float32."""
        noise = {} if self.generator is None else {"generator": self.generator}
        flow = flow.float() if self.upcast else flow
        result: torch.Tensor = self.scheduler.step(flow, timestep, latents, return_dict=False, **noise)[0]
        return result


def sampler(
    name: SamplerName,
    config: Mapping[str, Any],
    *,
    shift: float,
    steps: int,
    sigmas: Sequence[float] | None,
    device: torch.device,
    generator: torch.Generator,
) -> Sampler:
    """Return a sampler of that name.

    Args:
        config: of the model's own scheduler.
        shift: of the timesteps, where `sigmas` is None.
        steps: how many.
        sigmas: the noise level at which each step begins; None for UniPC's own.
        device: of the latents.
        generator: continues the one that the first noise came from.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchLCMScheduler,
        UniPCMultistepScheduler,
    )

    scheduler: Any
    if name in ("auto", "uni_pc"):
        scheduler = UniPCMultistepScheduler.from_config(config, flow_shift=shift)
        scheduler.set_timesteps(steps, device=device)
        _begin(scheduler, sigmas, device)
        return Sampler(scheduler, upcast=False)
    assert sigmas is not None  # only UniPC has a list of its own
    if name in ("dpmpp_2m", "dpmpp_2m_sde"):
        stochastic = name == "dpmpp_2m_sde"
        algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
        scheduler = DPMSolverMultistepScheduler.from_config(
            config, flow_shift=shift, algorithm_type=algorithm, solver_type="midpoint", solver_order=2
        )
        scheduler.set_timesteps(steps, device=device)
        _begin(scheduler, sigmas, device)
        return Sampler(scheduler, generator if stochastic else None)
    if name == "res_multistep":
        return Sampler(ResMultistep(sigmas, device))
    # Their levels come shifted.
    scheduler = FlowMatchLCMScheduler(shift=1.0) if name == "lcm" else FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=list(sigmas), device=device)
    scheduler.set_begin_index(0)
    return Sampler(scheduler, generator if name == "lcm" else None)


def _begin(scheduler: Any, sigmas: Sequence[float] | None, device: torch.device) -> None:
    """Put a scheduler with logarithms of levels before its first step, with these levels in place of its own."""
    if sigmas is not None:
        levels = torch.tensor([*sigmas, 0.0])
        scheduler.timesteps = (levels[:-1] * TRAINING_STEPS).to(device)
        scheduler.sigmas = levels.clamp(max=BELOW_ONE)
    # Many steps at a high shift round to equal timesteps at the start, by which diffusers would begin at the second.
    scheduler.set_begin_index(0)


class ResMultistep:
    """Second-order multistep of Refined Exponential Solver (Zhang et al. 2023, arXiv 2308.02157), without noise.

    Equals `sample_res_multistep` of ComfyUI's k_diffusion/sampling.py, which takes -log(sigma) for the time, and not
    the half log-SNR of a flow.
    """

    def __init__(self, sigmas: Sequence[float], device: torch.device) -> None:
        self.sigmas = torch.tensor([*sigmas, 0.0])
        self.timesteps = (self.sigmas[:-1] * TRAINING_STEPS).to(device)
        self._index = 0
        self._before: torch.Tensor | None = None

    def set_begin_index(self, begin_index: int) -> None:
        """Have that step be the next one, as diffusers' schedulers do."""
        self._index = begin_index

    def step(
        self, flow: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """Return the latents at the next noise level, in a tuple as diffusers' schedulers do."""
        del timestep, return_dict
        index, before = self._index, self._before
        level, following = self.sigmas[index], self.sigmas[index + 1]
        clean = latents - level.to(latents.device) * flow
        self._index, self._before = index + 1, clean
        if before is None or following == 0:
            return (latents + (latents - clean) / level * (following - level),)
        time, previous, next_time = -level.log(), -self.sigmas[index - 1].log(), -following.log()
        width = next_time - time
        first = torch.expm1(-width) / -width
        second = (first - 1) / -width
        ratio = (previous - time) / width
        new, old = first - second / ratio, second / ratio
        return (torch.exp(-width) * latents + width * (new * clean + old * before),)
