"""A request → an image: both text encoders, transformer and VAE, each on the card for its own phase."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..checkpoints.choose import ModelHandle, choose_model
from ..checkpoints.folders import load_pipeline
from ..checkpoints.found import FoundModel
from ..host import Host
from ..memory.devices import resolve_dtype
from ..memory.kept import kept
from ..memory.residency import resident
from ..preview import LatentPreview, step_callback
from .request import SIZES, TOY_SIZES, ImageRequest, check_size

if TYPE_CHECKING:
    import torch
    from diffusers import HunyuanDiTPipeline

log = logging.getLogger("piying")

BERT_TOKENS, T5_TOKENS = 77, 256  # text lengths of the two encoders (HunyuanDiTPipeline)


def sample(handle: ModelHandle, request: ImageRequest, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one image.

    The result equals `HunyuanDiTPipeline.__call__` on the same weights with
    `use_resolution_binning=False` and a CPU generator seeded with `seed`.

    Returns:
        A float32 CPU tensor [1, height, width, 3] in 0..1, and a record of what ran, fit for JSON.

    Raises:
        PiyingError: the request, the model or the device cannot be used; the text says why.
    """
    import torch

    found = choose_model(handle, host)
    check_size(request.width, request.height, SIZES + TOY_SIZES if found.is_built_in else SIZES)
    pipeline = _load(found, handle, host)
    device = host.device()
    with torch.no_grad():
        embeds = _encode(pipeline, request, device, host)
        latents = _denoise(pipeline, request, embeds, device, host)
        image = _decode(pipeline, latents, device, host)
    record = {
        "model": found.name,
        "dtype": str(pipeline.transformer.dtype),
        "device": device,
        **asdict(request),
    }
    return image, record


def _load(found: FoundModel, handle: ModelHandle, host: Host) -> HunyuanDiTPipeline:
    dtype = resolve_dtype(handle.precision, host.device(), preferred="fp16")
    host.check_cancelled()
    return kept("hunyuan_dit", (found.path, dtype), lambda: _read(found, dtype))


def _read(found: FoundModel, dtype: torch.dtype) -> HunyuanDiTPipeline:
    from diffusers import HunyuanDiTPipeline

    log.info("Loading Hunyuan-DiT: %s", found.name)
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return load_pipeline(HunyuanDiTPipeline, found.path, "Hunyuan-DiT", dtype, **without)


def _encode(pipeline: HunyuanDiTPipeline, request: ImageRequest, device: str, host: Host) -> dict[str, torch.Tensor]:
    """Return the eight embedding and mask arguments that HunyuanDiTPipeline takes in place of a prompt."""
    progress = host.progress("Encoding prompt", 2)
    named: dict[str, Any] = {}
    for index, (encoder, length, suffix) in enumerate(
        ((pipeline.text_encoder, BERT_TOKENS, ""), (pipeline.text_encoder_2, T5_TOKENS, "_2"))
    ):
        with resident([encoder], device, host):
            embeds, negative, mask, negative_mask = pipeline.encode_prompt(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                do_classifier_free_guidance=request.cfg > 1,
                max_sequence_length=length,
                text_encoder_index=index,
                device=device,
                dtype=pipeline.transformer.dtype,
            )
        named |= {f"prompt_embeds{suffix}": embeds, f"negative_prompt_embeds{suffix}": negative}
        named |= {
            f"prompt_attention_mask{suffix}": mask,
            f"negative_prompt_attention_mask{suffix}": negative_mask,
        }
        progress.step(index + 1)
    return named


def _without_encoders(pipeline: HunyuanDiTPipeline) -> HunyuanDiTPipeline:
    """Return a pipeline of the same transformer and VAE.

    diffusers takes the device of a pipeline's first module as its own: text encoders left in host
    memory must not be among them.
    """
    from diffusers import HunyuanDiTPipeline

    sampler = HunyuanDiTPipeline(
        vae=pipeline.vae,
        text_encoder=None,
        tokenizer=None,
        transformer=pipeline.transformer,
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    sampler.set_progress_bar_config(disable=True)
    return sampler


def _denoise(
    pipeline: HunyuanDiTPipeline,
    request: ImageRequest,
    embeds: dict[str, torch.Tensor],
    device: str,
    host: Host,
) -> torch.Tensor:
    """Return latents [1, 4, height / 8, width / 8]."""
    import torch

    sampler = _without_encoders(pipeline)
    with resident([sampler.transformer, sampler.vae], device, host):
        preview = LatentPreview(sampler.vae, sampler.scheduler)
        progress = host.progress("Sampling", request.steps)

        return sampler(
            **embeds,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg,
            # On the CPU, so that one seed gives one image on every card.
            generator=torch.Generator("cpu").manual_seed(request.seed),
            use_resolution_binning=False,
            callback_on_step_end=step_callback(progress, preview),
            output_type="latent",
        ).images


def _decode(pipeline: HunyuanDiTPipeline, latents: torch.Tensor, device: str, host: Host) -> torch.Tensor:
    """Return the image [1, H, W, 3] float32 in 0..1, computed as HunyuanDiTPipeline does."""
    progress = host.progress("Decoding", 1)
    vae = pipeline.vae
    with resident([vae], device, host):
        decoded = vae.decode(latents.to(device) / vae.config.scaling_factor, return_dict=False)[0]
        image = pipeline.image_processor.postprocess(decoded, output_type="pt", do_denormalize=[True])
    progress.step(1)
    return image.permute(0, 2, 3, 1).float().cpu().contiguous()
