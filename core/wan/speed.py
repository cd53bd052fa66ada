"""Speed settings: what each choice of the `speed` widget stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..planner.plan_types import Compute
from .request import AUTO_VAE, REFERENCE, SpeedName, VAEPrecision, WanRequest
from .schedule import has_own_steps, with_schedule

FEW_STEPS = 12  # what distilled models take; there is nothing to leave out of so few


@dataclass(frozen=True)
class SpeedSettings:
    """What a choice of `speed` sets.

    Attributes:
        steps: share of the steps that are taken.
        step_cache: see `step_cache.StepCache`.
        batch_cfg: see `WanRequest`.
        vae: the number type of the VAE on a card.
    """

    steps: float = 1.0
    step_cache: float = 0.0
    batch_cfg: bool = True
    vae: str = "fp16"


# Measured by benchmarks/speed.py (docs/benchmarks.md): forecast steps give up less than steps left out,
# so fewer steps come second. Guidance left out saves least: that is left to be set by hand.
SETTINGS: dict[SpeedName, SpeedSettings] = {
    "reference": SpeedSettings(batch_cfg=False, vae="fp32"),
    "balanced": SpeedSettings(step_cache=0.08),
    "fast": SpeedSettings(steps=2 / 3, step_cache=0.12),
    "draft": SpeedSettings(steps=0.5, step_cache=0.12),
}


def with_speed(request: WanRequest) -> WanRequest:
    """Return a request with the settings its `speed` stands for; what was set by hand stays.

    Raises:
        PiyingError: the noise levels set by hand are none, or a scheduler is set beside them.
    """
    settings, request = SETTINGS[request.speed], with_schedule(request)
    if request.context.parts:
        settings, request = replace(settings, step_cache=0.0), replace(request, step_cache=0.0)
    if request.speed == REFERENCE:
        return request
    request = replace(request, batch_cfg=request.batch_cfg or settings.batch_cfg)
    if request.steps <= FEW_STEPS:
        return request
    request = replace(
        request,
        steps=request.steps
        if has_own_steps(request) or request.is_partial
        else max(1, round(request.steps * settings.steps)),
        step_cache=request.step_cache or settings.step_cache,
    )
    return with_schedule(request)


def vae_types(vae_precision: VAEPrecision = AUTO_VAE, speed: SpeedName = REFERENCE) -> VAETypes:
    """Return the number types that the VAE may compute in; one that is set by hand holds on a CPU too."""
    by_hand = vae_precision != AUTO_VAE
    if (vae_precision if by_hand else SETTINGS[speed].vae) == "fp32":
        return FP32_FIRST
    setting = f"vae_precision is {vae_precision}" if by_hand else f"speed is {speed}"
    why = f"fp16 in place of fp32, because {setting}."
    return VAETypes(FP16_FIRST, FP16_FIRST, why) if by_hand else VAETypes(FP16_FIRST, why=why)


def speed_notes(asked: WanRequest, done: WanRequest) -> list[str]:
    """Return the settings that `speed` has changed, a sentence each."""
    notes = []
    if done.steps != asked.steps and not has_own_steps(asked):
        notes.append(f"{done.steps} steps in place of {asked.steps}.")
    if asked.is_partial and SETTINGS[asked.speed].steps < 1:
        notes.append(f"start_at_step and end_at_step count {asked.steps} steps, so all of them stay.")
    if done.largest_cfg > 1 and (done.cfg_start, done.cfg_end) != (0.0, 1.0):
        notes.append(
            f"Guidance from {done.cfg_start:.0%} to {done.cfg_end:.0%} of the steps; the others take half as long."
        )
    if done.step_cache:
        notes.append(f"Steps that change by less than {done.step_cache:.0%} are forecast from those before.")
    if asked.context.parts and (asked.step_cache or SETTINGS[asked.speed].step_cache):
        notes.append("step_cache is left out: the windows of a step differ from those of the next.")
    if asked.speed != REFERENCE and asked.steps <= FEW_STEPS:
        notes.append(f"speed is {asked.speed}, and {asked.steps} steps are few already: they stay as they are.")
    return notes


@dataclass(frozen=True)
class VAETypes:
    """The types of both VAE phases.

    fp16 comes before bf16 in either order: it takes the same memory, has three more bits, and older cards
    have it too (benchmarks/vae_types.py, docs/benchmarks.md). Where it overflows, what follows it is taken.

    Attributes:
        computes: on a card; a later one only where no earlier one fits, or one overflows.
        on_cpu: on a CPU, where 16-bit products are emulated.
        why: a sentence on the first of `computes`.
    """

    computes: tuple[Compute, ...]
    on_cpu: tuple[Compute, ...] = ("fp32",)
    why: str = ""


FP32_FIRST = VAETypes(("fp32", "fp16", "bf16"))
FP16_FIRST: tuple[Compute, ...] = ("fp16", "fp32", "bf16")
