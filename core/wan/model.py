"""Wan model: where it is on disk, and its parts as the phases need them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ..catalog.installed_model import InstalledModel
from ..catalog.selection import ModelHandle
from ..families.diffusion_model import ModelParts
from ..host.base import Host
from ..lora.catalog import LoraFile, in_words, made_for
from .context import Context, check_frequency, temporal_frequencies
from .experts import DEFAULT_BOUNDARY, boundary_of, has_two_experts, high_steps
from .fast_decoder import FastDecoders, check_decoders
from .guidance import Guidance, check_blocks
from .latent_scale import vae_config
from .request import SAMPLERS, SamplerName, WanRequest
from .schedule import sigmas

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLWan, WanPipeline

    from ..planner.phases import Component
    from ..planner.plan_types import PhasePlan
    from .samplers import Sampler
    from .transformer import Transformer

log = logging.getLogger("piying")


@dataclass(frozen=True)
class WanModel:
    """One installed model, by its parts.

    Attributes:
        boundary: of two experts, where the model's folder names none; see `experts.boundary_of`.
    """

    parts: ModelParts
    boundary: float = DEFAULT_BOUNDARY

    @property
    def found(self) -> InstalledModel:
        """Where it is."""
        return self.parts.found

    def components(self) -> Mapping[str, Component]:
        """Return the sizes of its parts, read from the headers of its files."""
        return self.parts.components()

    def encoder_pipeline(self, choice: PhasePlan) -> WanPipeline:
        """Return a pipeline of tokenizer and text encoder alone; those with VACE encode prompts the same way."""
        from diffusers import WanPipeline

        from ..checkpoints.tokenizers import tokenizer_of

        # Encoding needs neither VAE nor scheduler.
        absent: Any = None
        return WanPipeline(tokenizer_of(self.found), self.parts.load("text_encoder", choice), absent, absent)

    def transformer(self, choice: PhasePlan) -> Transformer:
        """Return the transformer, or the expert that a phase is of, in host memory, stored as the plan says."""
        transformer: Transformer = self.parts.load(choice.component, choice)
        return transformer

    def experts(self, request: WanRequest) -> int | None:
        """Return how many of a request's steps the first of two experts has; None where there is one transformer.

        Raises:
            PiyingError: the model's folder names a boundary that is none.
        """
        if not has_two_experts(self.found):
            return None
        import torch

        boundary, device = request.boundary or boundary_of(self.found, self.boundary), torch.device("cpu")
        return high_steps(self.sampler(request, device, torch.Generator(device)).scheduler.timesteps, boundary)

    def levels(self, request: WanRequest) -> list[float]:
        """Return the noise level at which each of a request's steps begins, and that at which the last one ends, 0."""
        import torch

        device = torch.device("cpu")
        found: list[float] = self.sampler(request, device, torch.Generator(device)).scheduler.sigmas.tolist()
        return found

    def vae(self, choice: PhasePlan) -> AutoencoderKLWan:
        """Return the VAE in host memory."""
        vae: AutoencoderKLWan = self.parts.load("vae", choice)
        return vae

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        """The configuration of the VAE, read from its files without their weights."""
        return vae_config(self.found.place("vae"))

    def sampler(self, request: WanRequest, device: torch.device, generator: torch.Generator) -> Sampler:
        """Return the request's sampler before its first step; `generator` makes the noise that it may add."""
        from diffusers import UniPCMultistepScheduler

        from .samplers import sampler

        config: Any = UniPCMultistepScheduler.load_config(self.found.place("scheduler")[0], local_files_only=True)
        return sampler(
            request.sampler,
            config,
            shift=request.shift,
            steps=request.steps,
            sigmas=sigmas(request),
            device=device,
            generator=generator,
        )


def load(handle: ModelHandle, host: Host) -> WanModel:
    """Return the model a handle stands for; nothing is read yet.

    Raises:
        PiyingError: the model or a LoRA is not installed.
    """
    return WanModel(ModelParts.of(handle, host))


def check_settings(found: InstalledModel, guidance: Guidance, context: Context, decoders: FastDecoders) -> None:
    """Accept what a video is sampled and decoded with for an installed model.

    Args:
        decoders: the files of what decodes in place of the VAE.

    Raises:
        PiyingError: the blocks that are to be left out, or the frequency that is to be slowed, are none of the
            model's, or the decoder reads other latents.
    """
    from ..checkpoints.components import find_component

    check_decoders(decoders, found)
    if not (guidance.skips_blocks or context.riflex):
        return
    config = find_component("transformer", found.place("transformer")).config
    if guidance.skips_blocks:
        check_blocks(guidance, int(config["num_layers"]))
    if context.riflex:
        check_frequency(context.riflex, temporal_frequencies(int(config.get("attention_head_dim", 128))))


def with_published_sampler(request: WanRequest, loras: tuple[LoraFile, ...]) -> WanRequest:
    """Return a request whose `auto` sampler is that of the last LoRA that was published with one, else UniPC."""
    if request.sampler != "auto":
        return request
    published = next((lora.sampler for lora in reversed(loras) if lora.sampler in SAMPLERS), "uni_pc")
    return replace(request, sampler=cast(SamplerName, published))


def warn_if_not_made_for(request: WanRequest, loras: tuple[LoraFile, ...]) -> None:
    """Say so when a LoRA made for few steps is run with other settings."""
    wanted = {name: value for name, value in made_for(loras).items() if name != "strength"}
    if any(getattr(request, name) != value for name, value in wanted.items()):
        log.warning(
            "%s was made for %s; this run has %s. Wire the outputs of Add LoRA to the sampler to have the former.",
            next(lora.name for lora in reversed(loras) if lora.settings),
            in_words(wanted),
            in_words({name: getattr(request, name) for name in wanted}),
        )
