"""Denoising: the loop of WanVACEPipeline, with both branches of a step in one pass over the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .context import PLAIN as WHOLE
from .context import Context
from .guidance import PLAIN, Guidance, Guider
from .prediction import Prediction, Predictor, Step

if TYPE_CHECKING:
    import torch

    from .nag import NAGProcessor
    from .samplers import Sampler
    from .step_cache import StepCache
    from .transformer import Transformer


# The index of a step and the number of steps → a value for that step.
Schedule = Callable[[int, int], float]
OnStep = Callable[[int, "torch.Tensor", "torch.Tensor"], None]
# Flow, latents and noise level of a step → the flow that is followed instead.
Steer = Callable[["torch.Tensor", "torch.Tensor", float], "torch.Tensor"]
# Latents and timestep of a step → what the transformer is given of them.
ModelInput = Callable[["torch.Tensor", "torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]
Share = Callable[[Prediction], Predictor]


def denoise(
    transformer: Transformer,
    sampler: Sampler,
    noise: torch.Tensor,
    embeds: Sequence[torch.Tensor],
    *,
    control: torch.Tensor | None = None,
    picture: torch.Tensor | None = None,
    model_input: ModelInput | None = None,
    steps: int,
    cfg_at: Schedule,
    scale_at: Schedule = lambda step, steps: 1.0,
    on_step: OnStep,
    check_cancelled: Callable[[], None],
    cache: StepCache | None = None,
    steer: Steer | None = None,
    batched: bool = False,
    guidance: Guidance = PLAIN,
    nag: NAGProcessor | None = None,
    context: Context = WHOLE,
    in_front: int = 0,
    first: int = 0,
    end: int | None = None,
    share: Share | None = None,
) -> torch.Tensor:
    """Return clean latents, float32, shaped like `noise`, or what they are after step `end`.

    Args:
        transformer: ready to compute on the device of `noise`.
        sampler: before its first step, or as the steps before `first` have left it.
        noise: float32 [1, z, T, h, w]; or the latents that those steps have given.
        embeds: [1, 512, d] of the prompt, and of the negative prompt where any step reads it.
        control: VACE's condition [1, 2z + 64, T, h, w]; None for models without.
        picture: see `transformer.predict`.
        model_input: gives what the transformer reads of latents and timestep; None for those themselves.
        cfg_at: the classifier-free guidance scale; in a step where it is 1 only the prompt is followed.
        scale_at: the conditioning scale.
        on_step: called with the number of steps done, the latents, and what the step took for clean ones; stops the
            run by raising.
        check_cancelled: called before every block; stops the run by raising.
        cache: forecasts steps that hardly differ; None computes every one.
        steer: given the flow of each step, guidance included, before it is followed; the noise level is 1..0.
        batched: predict for both prompts in one batch.
        guidance: how the predictions are combined.
        nag: guides the transformer's cross-attention, see `nag.nag_enabled`.
        context: how the video is parted in each step.
        in_front: latent frames of references in front of it, which every part has.
        first, end: the steps to take, the last one not included; None for all that are left.
        share: gives what makes the predictions together with other ranks; None to make all of them here.
    """
    scheduler, latents, guider = sampler.scheduler, noise, Guider(guidance, steps)
    own = Prediction(
        transformer,
        embeds,
        control,
        picture,
        guidance=guidance,
        nag=nag,
        cache=cache,
        in_front=in_front,
        batched=batched,
        check_cancelled=check_cancelled,
    )
    predictor = own if share is None else share(own)
    for index, timestep in list(enumerate(scheduler.timesteps))[first:end]:
        state, when = (latents, timestep.expand(1)) if model_input is None else model_input(latents, timestep)
        cfg, scale = cfg_at(index, steps), scale_at(index, steps)
        level, branches = float(scheduler.sigmas[index]), guidance.branches(index, steps, cfg)
        windows = context.windows(latents.shape[2] - in_front, index)
        step = Step(index, steps, level, scale, branches, tuple(map(tuple, windows)))
        flows = predictor.flows(step, state.to(embeds[0].dtype), when)
        flow = guider.flow(index, cfg, dict(zip(branches, flows, strict=True)))
        if steer is not None:
            flow = steer(flow, latents, level)
        clean = latents - level * flow
        latents = sampler.step(flow, timestep, latents)
        on_step(index + 1, latents, clean)
    return latents


@dataclass(frozen=True, eq=False)
class PrefixLatents:
    """Latents that a video begins as.

    The video's very first latent frame holds one frame where others hold four, so it has no counterpart
    here and stays as the model makes it.

    Attributes:
        latents: [1, z, m, h, w], for the second latent frame and those behind it.
        ramp: over how many of them, the last ones, it turns into the video's own: the n-th of r keeps
            n / (r + 1) of its own. Those in front are taken as they are.
    """

    latents: torch.Tensor
    ramp: int

    def weights(self) -> torch.Tensor:
        """Return how much each latent frame is drawn to `latents`, 0..1, [1, 1, m, 1, 1]."""
        import torch

        falling = torch.arange(self.ramp, 0, -1) / (self.ramp + 1)
        whole = torch.ones(self.latents.shape[2] - self.ramp)
        return torch.cat([whole, falling]).view(1, 1, -1, 1, 1)

    def steer(self, references: int) -> Steer:
        """Return the change of a step's flow by which the video begins as these latents.

        With latents x = (1 - s) · clean + s · noise the flow v predicts clean = x - s · v. Where that is drawn
        to `latents` by a weight w, the flow becomes (1 - w) · v + w · (x - latents) / s. The scheduler then keeps a
        history of predictions that agree, which it would not if its latents were changed between its steps.

        Args:
            references: latent frames of references in front of the video.
        """
        import torch

        first = references + 1
        behind = first + self.latents.shape[2]

        def steered(flow: torch.Tensor, latents: torch.Tensor, level: float) -> torch.Tensor:
            wanted = (latents[:, :, first:behind] - self.latents.to(latents)) / level
            drawn = torch.lerp(flow[:, :, first:behind].to(wanted), wanted, self.weights().to(wanted))
            return torch.cat([flow[:, :, :first], drawn.to(flow), flow[:, :, behind:]], dim=2)

        return steered
