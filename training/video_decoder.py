"""The decoder of the Wan autoencoder learns to sharpen block colours into pictures."""

from __future__ import annotations

import random

import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from .data import colours, coverage, draw_paths, paint
from .language import scenes
from .loop import Options, Run
from .video_autoencoder import PICTURE_STD
from .video_batches import SIZES, picture_latents

NOISE = 0.04  # added to latents: sampled ones are never exact
TRAINED_ON = [scene for scene in scenes() if not scene.held_out]


def train_decoder(vae: AutoencoderKLWan, options: Options) -> None:
    """Train the decoder, single frames first, then clips, and leave the averaged weights in it."""
    run = Run({"decoder": vae.decoder}, options)

    def loss_at(step: int) -> torch.Tensor:
        frames, count = (1, 12) if step < options.steps // 4 else (9, 2)
        return decoder_loss(vae, random.Random(f"{options.seed} {step}"), frames, count)

    run.train(loss_at)
    run.use_average()


def decoder_loss(vae: AutoencoderKLWan, draw: random.Random, frames: int, count: int) -> torch.Tensor:
    """Return how far decoded clips are from the drawn ones, edges weighing more."""
    width, height = draw.choices(list(SIZES), SIZES.values())[0]
    chosen = [draw.choice(TRAINED_ON) for _ in range(count)]
    covered = coverage([s.shape for s in chosen], draw_paths(chosen, frames, width, height), width, height)
    video = paint(covered, *(colours([getattr(s, name) for s in chosen]) for name in ("colour", "background")))
    latents = picture_latents(video[:, ::2])
    latents = latents + NOISE * draw.random() * torch.randn_like(latents)
    latents[:, :6] *= PICTURE_STD
    decoded = decode(vae, latents).transpose(1, 2)
    grown, shrunk = functional.max_pool2d(covered, 5, 1, 2), -functional.max_pool2d(-covered, 5, 1, 2)
    return ((decoded - video).abs() * (1 + 4 * (grown - shrunk))[:, :, None]).mean()


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Return clips [B, 3, T, H, W]: AutoencoderKLWan's decoding without its final clamp, which has no slope."""
    vae.clear_cache()
    latents = vae.post_quant_conv(latents)
    parts = []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        part = latents[:, :, index : index + 1]
        parts.append(vae.decoder(part, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return torch.cat(parts, dim=2)
