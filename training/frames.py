"""Train the Wan Video model: `python -m training.frames --runs runs --out builtin_models/wan_video`.

It is built as Wan2.2-TI2V is: text to video, and image to video where the first frame stands in the latents with a
timestep of 0. It begins with the main blocks of the built-in Wan VACE model, whose text encoder and VAE it shares.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import WanPipeline, WanVACEPipeline

from . import architectures
from .loop import Options, Run, common_arguments, options_from
from .text_padding import WanPaddedText
from .video import PLACE_WEIGHT, encode_texts, noise_levels
from .video_batches import Batch, draw_batch

GIVEN = 0.5  # share of the groups of scenes whose first frame is given
NOISY, HIDDEN = 0.25, 0.3


def flow_loss(pipeline: WanPipeline, processor: WanPaddedText, batch: Batch) -> torch.Tensor:
    """Return how far the predicted flow, from the clip to what is shown of it, is off, given frames left out."""
    states, processor.scores = encode_texts(pipeline, batch.captions)
    rows, count = batch.groups.rows, batch.groups.count
    noise = batch.groups.noise_like(batch.latents)
    level = noise_levels(count, NOISY)[rows]
    mix = level.view(-1, 1, 1, 1, 1)
    hide = batch.groups.hidden(HIDDEN, level).view(-1, 1, 1, 1, 1)
    shown = (1 - mix) * torch.where(hide, batch.neutral, batch.latents) + mix * noise
    flow = torch.where(hide, (shown - batch.latents) / mix, noise - batch.latents)
    given = (torch.rand(count) < GIVEN)[rows].view(-1, 1, 1, 1, 1)
    first = given & (torch.arange(shown.shape[2]) == 0).view(1, 1, -1, 1, 1)
    shown = torch.where(first, batch.latents, shown)
    times = torch.where(first, 0.0, mix * 1000)[..., :1, :1].expand(
        -1, -1, -1, shown.shape[3] // 2, shown.shape[4] // 2
    )
    predicted = pipeline.transformer(
        hidden_states=shown,
        timestep=times.flatten(1),
        encoder_hidden_states=states,
        return_dict=False,
    )[0]
    error = torch.where(first, 0.0, (predicted - flow) ** 2)
    return (error[:, :6] * batch.weights).mean() + PLACE_WEIGHT * error[:, 6:].mean()


def train(pipeline: WanPipeline, options: Options) -> None:
    """Train the transformer, and leave the averaged weights in the pipeline."""
    pipeline.text_encoder.requires_grad_(False)
    run = Run({"transformer": pipeline.transformer}, options)
    usual, processor = pipeline.transformer.attn_processors, WanPaddedText()
    pipeline.transformer.set_attn_processor(processor)

    def loss_at(step: int) -> torch.Tensor:
        return flow_loss(pipeline, processor, draw_batch(random.Random(f"{options.seed} {step}"), 0.0))

    run.train(loss_at)
    run.use_average()
    pipeline.transformer.set_attn_processor(usual)


def start(folder: Path) -> WanPipeline:
    """Return a pipeline that begins with what the Wan VACE model in a folder has learnt."""
    trained = WanVACEPipeline.from_pretrained(folder, dtype=torch.float32)
    transformer = architectures.wan_video_transformer()
    own = transformer.state_dict().keys()
    transformer.load_state_dict({name: one for name, one in trained.transformer.state_dict().items() if name in own})
    return WanPipeline(
        trained.tokenizer,
        trained.text_encoder,
        trained.vae,
        trained.scheduler,
        transformer=transformer,
        expand_timesteps=True,
    )


def main() -> None:
    """Train the model, and write the whole pipeline where asked."""
    parser = argparse.ArgumentParser(description="Train the built-in Wan Video model.")
    common_arguments(parser, steps=3000)
    parser.add_argument("--from", type=Path, dest="folder", default=Path("builtin_models/wan_vace"))
    parser.add_argument("--muon", type=float, default=0.012, help="learning rate of the matrices")
    parser.add_argument("--adamw", type=float, default=1.2e-3, help="learning rate of the rest")
    arguments = parser.parse_args()
    architectures.seeded(arguments.seed)
    pipeline = start(arguments.folder)
    train(pipeline, options_from(arguments, "frames", muon=arguments.muon, adamw=arguments.adamw))
    if arguments.out:
        pipeline.to(torch.bfloat16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
