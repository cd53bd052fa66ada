"""The word of the `speed` widget → what is done for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .request import AUTO_VAE, REFERENCE, VACERequest

FEW_STEPS = 12  # what distilled models take; there is nothing to leave out of so few


@dataclass(frozen=True)
class Speed:
    """A bundle of measures.

    Attributes:
        steps: share of the steps that are taken.
        step_cache: see `step_cache.StepCache`.
        batch_cfg: see `VACERequest`.
        vae: the number type of the VAE on a card.
    """

    steps: float = 1.0
    step_cache: float = 0.0
    batch_cfg: bool = True
    vae: str = "fp16"


# Chosen by what benchmarks/speed.py measures on the built-in model (docs/speed.md): forecast steps give up less than
# steps that are not there at all, so fewer steps come second. Guidance left out saves least: that is left to be set by
# hand.
BUNDLES = {
    REFERENCE: Speed(batch_cfg=False, vae="fp32"),
    "balanced": Speed(step_cache=0.08),
    "fast": Speed(steps=2 / 3, step_cache=0.12),
    "draft": Speed(steps=0.5, step_cache=0.12),
}


def with_speed(request: VACERequest) -> VACERequest:
    """Return a request with the measures its `speed` stands for; what was set by hand stays."""
    bundle = BUNDLES[request.speed]
    if request.speed == REFERENCE:
        return request
    request = replace(request, batch_cfg=request.batch_cfg or bundle.batch_cfg)
    if request.steps <= FEW_STEPS:
        return request
    return replace(
        request,
        steps=max(1, round(request.steps * bundle.steps)),
        step_cache=request.step_cache or bundle.step_cache,
    )


def vae_types(vae_precision: str = AUTO_VAE, speed: str = REFERENCE) -> VAETypes:
    """Return the number types that the VAE may compute in; one that is set by hand holds on a CPU too.

    Args:
        vae_precision: one of `request.VAE_PRECISIONS`.
        speed: one of `request.SPEEDS`.
    """
    by_hand = vae_precision != AUTO_VAE
    if (vae_precision if by_hand else BUNDLES[speed].vae) == "fp32":
        return EXACT
    said = f"vae_precision is {vae_precision}" if by_hand else f"speed is {speed}"
    why = f"fp16 in place of fp32, because {said}."
    return VAETypes(HALF, HALF, why) if by_hand else VAETypes(HALF, why=why)


def explained(asked: VACERequest, done: VACERequest) -> list[str]:
    """Return what was done for speed, a sentence each."""
    said = []
    if done.steps != asked.steps:
        said.append(f"{done.steps} steps in place of {asked.steps}.")
    if done.cfg > 1 and (done.cfg_start, done.cfg_end) != (0.0, 1.0):
        said.append(
            f"Guidance from {done.cfg_start:.0%} to {done.cfg_end:.0%} of the steps; the others take half as long."
        )
    if done.step_cache:
        said.append(f"Steps that change by less than {done.step_cache:.0%} are forecast from those before.")
    if asked.speed != REFERENCE and asked.steps <= FEW_STEPS:
        said.append(f"speed is {asked.speed}, and {asked.steps} steps are few already: they stay as they are.")
    return said


@dataclass(frozen=True)
class VAETypes:
    """The types of both VAE phases.

    fp16 comes before bf16 in either order: it takes the same memory, has three more bits, and older cards
    have it too (benchmarks/vae_types.py, docs/speed.md). Where it overflows, what follows it is taken.

    Attributes:
        computes: on a card; a later one only where no earlier one fits or holds.
        on_cpu: on a CPU, where 16-bit products are emulated.
        why: a sentence on the first of `computes`.
    """

    computes: tuple[str, ...]
    on_cpu: tuple[str, ...] = ("fp32",)
    why: str = ""


EXACT = VAETypes(("fp32", "fp16", "bf16"))
HALF = ("fp16", "fp32", "bf16")
