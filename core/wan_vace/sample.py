"""A request → frames: text encoder, transformer and VAE, each on the card for its own phase."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..checkpoints.choose import ModelHandle
from ..host import Host
from ..memory.residency import resident
from ..preview import LatentPreview, step_callback
from .model import load, warn_if_untrained
from .request import VACERequest, check_request

if TYPE_CHECKING:
    import torch
    from diffusers import WanVACEPipeline

MAX_PROMPT_TOKENS = 512  # text length of Wan2.1 (wan/configs/shared_config.py, text_len)


def sample(handle: ModelHandle, request: VACERequest, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video.

    The result equals `WanVACEPipeline.__call__` on the same weights with
    `UniPCMultistepScheduler(flow_shift=shift)` and a CPU generator seeded with `seed`.

    Returns:
        Frames as a float32 CPU tensor [num_frames, height, width, 3] in 0..1, and a record of what
        ran, fit for JSON.

    Raises:
        PiyingError: the request, the model or the device cannot be used; the text says why.
    """
    import torch

    check_request(request)
    pipeline, found = load(handle, host)
    warn_if_untrained(request, found)
    device = host.device()
    with torch.no_grad():
        embeds = _encode(pipeline, request, device, host)
        latents = _denoise(pipeline, request, embeds, device, host)
        frames = _decode(pipeline, latents, device, host)
    record = {
        "model": found.name,
        "dtype": str(pipeline.transformer.dtype),
        "device": device,
        **asdict(request),
    }
    return frames, record


def _encode(
    pipeline: WanVACEPipeline, request: VACERequest, device: str, host: Host
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return prompt and negative prompt embeddings [1, 512, d]; no negative without guidance."""
    progress = host.progress("Encoding prompt", 1)
    with resident([pipeline.text_encoder], device, host):
        positive, negative = pipeline.encode_prompt(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            do_classifier_free_guidance=request.cfg > 1,
            max_sequence_length=MAX_PROMPT_TOKENS,
            device=device,
        )
    progress.step(1)
    return positive, negative


def _without_encoder(pipeline: WanVACEPipeline, shift: float) -> WanVACEPipeline:
    """Return a pipeline of the same transformer and VAE, with a fresh scheduler.

    diffusers takes the device of a pipeline's first module as its own: a text encoder left in host
    memory must not be among them.
    """
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=shift)
    sampler = WanVACEPipeline(None, None, pipeline.vae, scheduler, pipeline.transformer)
    sampler.set_progress_bar_config(disable=True)
    return sampler


def _denoise(
    pipeline: WanVACEPipeline,
    request: VACERequest,
    embeds: tuple[torch.Tensor, torch.Tensor | None],
    device: str,
    host: Host,
) -> torch.Tensor:
    """Return latents [1, z, 1 + (num_frames - 1) / 4, height / 8, width / 8]."""
    import torch

    sampler = _without_encoder(pipeline, request.shift)
    with resident([sampler.transformer, sampler.vae], device, host):
        preview = LatentPreview(sampler.vae, sampler.scheduler)
        progress = host.progress("Sampling", request.steps)
        return sampler(
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg,
            # On the CPU, so that one seed gives one video on every card.
            generator=torch.Generator("cpu").manual_seed(request.seed),
            max_sequence_length=MAX_PROMPT_TOKENS,
            callback_on_step_end=step_callback(progress, preview),
            output_type="latent",
        ).frames


def _decode(pipeline: WanVACEPipeline, latents: torch.Tensor, device: str, host: Host) -> torch.Tensor:
    """Return frames [N, H, W, 3] float32 in 0..1, computed as WanVACEPipeline does."""
    import torch

    progress = host.progress("Decoding", 1)
    vae = pipeline.vae
    with resident([vae], device, host):
        latents = latents.to(vae.dtype)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
        scale = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
        video = vae.decode(latents / scale + mean, return_dict=False)[0]
        frames = pipeline.video_processor.postprocess_video(video, output_type="pt")[0]
    progress.step(1)
    return frames.permute(0, 2, 3, 1).float().cpu().contiguous()
