"""Two experts: Wan2.2's first transformer takes the steps with much noise, its second one those that are left.

As `WanVACEPipeline` with a `transformer_2`: the scheduler goes on through the switch, and the first expert has a step
where its timestep is at least `boundary` of all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..catalog.installed_model import InstalledModel
from ..errors import PiyingError
from ..families.base import LORA_COMPONENT, SECOND_EXPERT
from ..files.folder import CONFIG_BYTES, INDEX
from ..files.json_file import read_json_or_empty
from .schedule import TRAINING_STEPS, shifted

if TYPE_CHECKING:
    import torch

    from ..planner.plan_types import PhaseName
    from .samplers import Sampler

DEFAULT_BOUNDARY = 0.875  # of VideoX-Fun, Wan2.2 and diffusers' converter alike
# The phases in which an expert samples, with its component and what it is called.
EXPERT_PHASES: tuple[tuple[PhaseName, str, str], ...] = (
    ("sample", LORA_COMPONENT, "high-noise expert"),
    ("sample_2", SECOND_EXPERT, "low-noise expert"),
)


def has_two_experts(model: InstalledModel) -> bool:
    """Return whether a second transformer takes over in a model."""
    return model.has(SECOND_EXPERT)


def boundary_of(model: InstalledModel, default: float = DEFAULT_BOUNDARY) -> float:
    """Return the share of all noise down to which a model's first expert denoises; `default` where it does not say.

    Raises:
        PiyingError: its folder names one that is none.
    """
    index = model.path / INDEX
    found = read_json_or_empty(index, CONFIG_BYTES).get("boundary_ratio") if model.path.is_dir() else None
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise PiyingError(f"{index}: boundary_ratio is {found!r}. It is a number from 0 to 1. Fetch it again.")
    return float(found)


def planned_timesteps(steps: int, shift: float, levels: Sequence[float] | None) -> list[float]:
    """Return the timestep of each step from the formula of the scheduler; nothing is imported for it.

    Args:
        levels: the noise levels; None for UniPC's own, evenly spaced and shifted.
    """
    if levels is not None:
        return [TRAINING_STEPS * level for level in levels]
    even = [1 - (1 - 1 / TRAINING_STEPS) * index / steps for index in range(steps)]
    # It never is all noise.
    return [math.floor(TRAINING_STEPS * min(shifted(level, shift), 1 - 1e-6)) for level in even]


def high_steps(timesteps: Iterable[Any], boundary: float) -> int:
    """Return how many steps the first expert has.

    Args:
        timesteps: of all steps, falling.
        boundary: see `boundary_of`.
    """
    return sum(float(timestep) >= boundary * TRAINING_STEPS for timestep in timesteps)


def shared_steps(taken: range, high: int) -> tuple[range, range]:
    """Return the steps of each expert, of those taken; the first one has so many of all."""
    switch = min(max(high, taken.start), taken.stop)
    return range(taken.start, switch), range(switch, taken.stop)


@dataclass(frozen=True, eq=False)
class SamplingState:
    """Where sampling stands between two experts, in main memory: a second one that fails is begun again from here.

    Attributes:
        latents: of references and video.
        clean: what the last step took for clean ones, where no step is to follow it here.
        sampler: with what it keeps of the steps before.
        done: steps that were taken.
        forecast: those of them that were forecast.
    """

    latents: torch.Tensor
    sampler: Sampler
    done: int = 0
    forecast: int = 0
    clean: torch.Tensor | None = None


def sampler_on(sampler: Sampler, device: str) -> Sampler:
    """Return a copy of a sampler with what it keeps of steps on a device; its tables are on the CPU, wherever it is.

    A step of the copy changes nothing of the original.
    """
    import torch

    scheduler, generator, state = copy.copy(sampler.scheduler), None, sampler.generator
    for name, value in vars(sampler.scheduler).items():
        setattr(scheduler, name, _on(value, device) if name not in TABLES else value)
    if state is not None:
        generator = torch.Generator(state.device)
        generator.set_state(state.get_state())
    return replace(sampler, scheduler=scheduler, generator=generator)


TABLES = ("_internal_dict", "betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t", "sigmas")


def _on(value: Any, device: str) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, list):
        return [_on(one, device) for one in value]
    return copy.deepcopy(value)
