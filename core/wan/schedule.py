"""Schedules: the noise level at which each step of a video begins."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from itertools import pairwise

from ..errors import PiyingError
from .request import ALL_STEPS, SCHEDULERS, SchedulerName, WanRequest

MAX_STEPS = 1000  # as of the `steps` widget
TRAINING_STEPS = 1000  # a noise level of 1 is this timestep
CLOSEST = 1e-5  # by which levels set by hand fall at least: in float32 closer ones are one, and solvers divide by zero
# Timesteps published with step-distilled models, which have a number of steps of their own. causvid: those of the 14B
# model, as they are (`flowmatch_causvid` of kijai/ComfyUI-WanVideoWrapper). distill: `denoising_step_list` in
# configs/distill of ModelTC/LightX2V, shifted as evenly spaced ones are.
CAUSVID = (999, 934, 862, 756, 603, 410, 250, 140, 74)
DISTILL = (1000, 750, 500, 250)
# Of the beta distribution that the levels of `beta` are spread by (Lee et al. 2024, arXiv 2407.12173).
BETA = 0.6


def sigmas(request: WanRequest) -> tuple[float, ...] | None:
    """Return the noise levels from the first step's, at most 1, down to the last step's, above 0.

    None stands for the list of diffusers' UniPC scheduler, which is published for the model.

    Raises:
        PiyingError: the levels set by hand are no such list.
    """
    if request.sigmas.strip():
        return parse_sigmas(request.sigmas)
    if request.scheduler == "causvid":
        return tuple(timestep / TRAINING_STEPS for timestep in CAUSVID)
    if request.scheduler == "distill":
        return tuple(shifted(timestep / TRAINING_STEPS, request.shift) for timestep in DISTILL)
    if request.scheduler == "beta":
        return _beta(request.steps, request.shift)
    if request.scheduler == "auto" and request.sampler in ("auto", "uni_pc"):
        return None
    # As get_sampling_sigmas in wan/utils/fm_solvers.py of Wan-Video/Wan2.1, and as ComfyUI's `simple`.
    return tuple(shifted(1 - step / request.steps, request.shift) for step in range(request.steps))


def _beta(steps: int, shift: float) -> tuple[float, ...]:
    """Return levels that are dense where there is most and least noise, as `beta_scheduler` of ComfyUI's samplers.py.

    From about 140 steps on some round to equal timesteps: there are then as many as round to others, 138 of 150.
    """
    from scipy.stats import beta

    shares = [1 - step / steps for step in range(steps)]
    places = dict.fromkeys(round(float(place) * (TRAINING_STEPS - 1)) for place in beta.ppf(shares, BETA, BETA))
    if len(places) < steps:
        return _beta(len(places), shift)
    return tuple(shifted((place + 1) / TRAINING_STEPS, shift) for place in places)


def shifted(level: float, shift: float) -> float:
    """Return an evenly spaced noise level shifted in time (Esser et al. 2024, equation 23)."""
    return shift * level / (1 + (shift - 1) * level)


def parse_sigmas(text: str) -> tuple[float, ...]:
    """Return the noise levels in a text such as "1, 0.9, 0.7, 0.4, 0"; a last 0 is where the last step ends.

    Raises:
        PiyingError: it is not a list of falling numbers from at most 1.
    """
    from .guidance import listed_words

    rule = "Write falling numbers from at most 1, such as 1, 0.9, 0.7, 0.4; or leave it empty."
    found = []
    for word in listed_words(text):
        try:
            found.append(float(word))
        except ValueError:
            raise PiyingError(f"sigmas holds {word!r}, which is no number. {rule}") from None
    levels = found[:-1] if found and found[-1] == 0 else found
    if not levels:
        raise PiyingError(f"sigmas holds no noise level above 0. {rule}")
    if len(levels) > MAX_STEPS:
        raise PiyingError(f"sigmas holds {len(levels)} noise levels, and a video takes at most {MAX_STEPS} steps.")
    for level in levels:
        if not (math.isfinite(level) and 0 < level <= 1):
            raise PiyingError(f"sigmas holds {level:.12g}. {rule}")
    for before, after in pairwise(levels):
        if after >= before:
            raise PiyingError(f"sigmas holds {after:g} after {before:g}. {rule}")
        if round(before - after, 9) < CLOSEST:
            raise PiyingError(
                f"sigmas holds {after:.9g} after {before:.9g}, which is too close: each is lower by {CLOSEST:.5f} at "
                "least. Leave one of them out."
            )
    return tuple(levels)


def check_schedule(scheduler: SchedulerName, sigmas: str) -> None:
    """Accept a scheduler and noise levels by hand.

    Raises:
        PiyingError: there is no such scheduler, what it needs is not installed, the levels are no list of noise
            levels, or both are set.
    """
    if scheduler not in SCHEDULERS:
        raise PiyingError(f"scheduler is {scheduler!r}. Choose one of: {', '.join(SCHEDULERS)}.")
    if scheduler == "beta" and importlib.util.find_spec("scipy") is None:
        raise PiyingError(
            "scheduler is beta, and SciPy, which spreads its levels, is not installed in this Python. Choose another "
            "scheduler, or install it: pip install scipy."
        )
    if not sigmas.strip():
        return
    parse_sigmas(sigmas)
    if scheduler != "auto":
        raise PiyingError(
            f"scheduler is {scheduler}, and sigmas gives the noise levels by hand. Set scheduler to auto, or leave "
            "sigmas empty."
        )


def has_own_steps(request: WanRequest) -> bool:
    """Return whether the schedule decides how many steps there are."""
    return bool(request.sigmas.strip()) or request.scheduler in ("causvid", "distill")


def with_schedule(request: WanRequest) -> WanRequest:
    """Return a request with the steps of its schedule, where that has a number of its own.

    Raises:
        PiyingError: the levels set by hand are no list of noise levels, or a scheduler is set beside them.
    """
    check_schedule(request.scheduler, request.sigmas)
    levels = sigmas(request) if has_own_steps(request) or request.scheduler == "beta" else None
    return request if levels is None else replace(request, steps=len(levels))


def check_step_range(request: WanRequest, has_latents: bool) -> None:
    """Accept the first and the last step.

    Args:
        has_latents: whether there are latents to begin from.

    Raises:
        PiyingError: there is no such step, none is taken, or nothing has been made of the steps before the first.
    """
    steps, start, end = with_schedule(request).steps, request.start_at_step, request.end_at_step
    if not 0 <= start < steps:
        raise PiyingError(f"start_at_step is {start}, and there are {steps} steps. Choose 0 to {steps - 1}.")
    if end <= start:
        raise PiyingError(
            f"end_at_step is {end} and start_at_step {start}: no step is taken. Choose an end above the start; "
            f"{ALL_STEPS} is the last step."
        )
    if start and not has_latents:
        raise PiyingError(
            f"start_at_step is {start}, and no latents are connected. Wire latents from another sampler or from VAE "
            "Encode, or set start_at_step to 0."
        )


def schedule_notes(asked: WanRequest) -> list[str]:
    """Return the settings of a request that are without effect under its schedule, a sentence each."""
    steps = with_schedule(asked).steps
    if not has_own_steps(asked):
        return [] if steps == asked.steps else [f"scheduler beta: {asked.steps} steps round to {steps} levels."]
    name = "sigmas" if asked.sigmas.strip() else f"scheduler {asked.scheduler}"
    notes = [f"{name} takes {steps} steps in place of {asked.steps}."] if steps != asked.steps else []
    if asked.scheduler != "distill":
        notes.append(f"{name} gives the noise levels as they are: shift is without effect.")
    return notes
