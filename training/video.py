"""Train the Wan VACE model: `python -m training.video --runs runs --out builtin_models/wan_vace`.

The decoder and the transformer are trained apart (`--part`), in either order, since the encoder is
set by hand. The text encoder learns to read first (see `text_encoders`) and then stays as it is.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import WanVACEPipeline

from . import architectures
from .loop import Options, Run, common_arguments, load_average, options_from
from .text_encoders import teach
from .text_padding import WanPaddedText, padding_scores
from .video_batches import FRAMES, SIZES, TRAINED_ON, Batch, draw_batch
from .video_decoder import train_decoder

TEXT_LENGTH = 512  # what the pipeline pads captions to
PLACE_WEIGHT = 0.2  # of the constant channels in the loss: they are easy
SHIFT = 3.0


def encode_texts(pipeline: WanVACEPipeline, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return text embeddings [B, L + 1, d], zero behind each text, and the padding's attention scores."""
    distinct = list(dict.fromkeys(texts))
    tokens = pipeline.tokenizer(distinct, padding=True, return_tensors="pt")
    mask = tokens.attention_mask
    states = pipeline.text_encoder(tokens.input_ids, mask).last_hidden_state * mask[..., None]
    states = torch.cat([states, torch.zeros_like(states[:, :1])], dim=1)
    rows = torch.tensor([distinct.index(text) for text in texts])
    return states[rows], padding_scores(mask.sum(1), mask.shape[1], TEXT_LENGTH)[rows]


def noise_levels(count: int, noisy: float) -> torch.Tensor:
    """Return noise levels in 0..1: a share `noisy` from the top quarter, the rest half logit-normal, half even."""
    normal, even = torch.sigmoid(torch.randn(count)), torch.rand(count)
    level = torch.where(torch.rand(count) < 0.5, normal, even)
    level = SHIFT * level / (1 + (SHIFT - 1) * level)
    return torch.where(torch.rand(count) < noisy, 0.75 + 0.25 * torch.rand(count), level)


def flow_loss(
    pipeline: WanVACEPipeline, processor: WanPaddedText, batch: Batch, noisy: float, hidden: float = 0.0
) -> torch.Tensor:
    """Return how far the predicted flow, from the clip to what is shown of it, is off."""
    states, processor.scores = encode_texts(pipeline, batch.captions)
    noise = batch.groups.noise_like(batch.latents)
    level = noise_levels(batch.groups.count, noisy)[batch.groups.rows]
    mix = level.view(-1, 1, 1, 1, 1)
    hide = batch.groups.hidden(hidden, level).view(-1, 1, 1, 1, 1)
    shown = (1 - mix) * torch.where(hide, batch.neutral, batch.latents) + mix * noise
    predicted = pipeline.transformer(
        hidden_states=shown,
        timestep=level * 1000,
        encoder_hidden_states=states,
        control_hidden_states=batch.control,
        return_dict=False,
    )[0]
    # Noise minus clip, and where the shape is hidden, what leads to the clip all the same.
    flow = torch.where(hide, (shown - batch.latents) / mix, noise - batch.latents)
    error = (predicted - flow) ** 2
    return (error[:, :6] * batch.weights).mean() + PLACE_WEIGHT * error[:, 6:].mean()


@dataclass(frozen=True)
class Mix:
    """What a stage of training is made of.

    Attributes:
        tasks: share of clips with a VACE task.
        noisy: share of steps at the noisiest quarter, where layout and motion are decided.
        frames: lengths of clips, drawn evenly from this list.
        reading: steps in which the text encoder learns to read, before anything else.
        sizes: how often each width and height is drawn.
        hidden: share of groups whose noisy clips hide the shape, see `groups`.
    """

    tasks: float
    noisy: float
    frames: Sequence[int] = FRAMES
    reading: int = 1200
    sizes: Mapping[tuple[int, int], int] = field(default_factory=lambda: SIZES)
    hidden: float = 0.3


def train_transformer(pipeline: WanVACEPipeline, options: Options, mix: Mix) -> None:
    """Train the transformer behind a text encoder that can read, and leave the averaged weights in the pipeline."""
    if not (options.resume and options.checkpoint.exists()):
        teach(pipeline.text_encoder, pipeline.tokenizer, TRAINED_ON, mix.reading, options.seed)
    pipeline.text_encoder.requires_grad_(False)
    run = Run({"transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}, options)
    usual, processor = pipeline.transformer.attn_processors, WanPaddedText()
    pipeline.transformer.set_attn_processor(processor)

    def loss_at(step: int) -> torch.Tensor:
        draw = random.Random(f"{options.seed} {step}")
        batch = draw_batch(draw, mix.tasks, mix.frames, mix.sizes)
        return flow_loss(pipeline, processor, batch, mix.noisy, mix.hidden)

    run.train(loss_at)
    run.use_average()
    pipeline.transformer.set_attn_processor(usual)


def assemble(pipeline: WanVACEPipeline, runs: Options) -> None:
    """Load the parts trained so far into a pipeline."""
    both = {"transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}
    for name, modules in (("video_decoder", {"decoder": pipeline.vae.decoder}), ("video", both)):
        path = runs.folder / f"{name}.pt"
        if path.exists():
            load_average(path, modules)


def start_from(pipeline: WanVACEPipeline, folder: Path) -> None:
    """Give a pipeline what was trained of the model in a folder; its encoder stays as set by hand."""
    trained = WanVACEPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.transformer.load_state_dict(trained.transformer.state_dict())
    pipeline.text_encoder.load_state_dict(trained.text_encoder.state_dict())
    pipeline.vae.decoder.load_state_dict(trained.vae.decoder.state_dict())


def size(text: str) -> tuple[int, int]:
    """Return the size written as WIDTHxHEIGHT."""
    width, height = text.split("x")
    return int(width), int(height)


def main() -> None:
    """Train a part, and write the whole pipeline where asked."""
    parser = argparse.ArgumentParser(description="Train the built-in Wan VACE model.")
    common_arguments(parser, steps=8000)
    parser.add_argument("--part", choices=("transformer", "decoder", "none"), default="transformer")
    parser.add_argument("--tasks", type=float, default=0.3, help="share of clips with a VACE task")
    parser.add_argument("--noisy", type=float, default=0.15, help="share of steps at the noisiest quarter")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES, help="lengths of clips, drawn evenly")
    parser.add_argument("--reading", type=int, default=1200, help="steps in which the text encoder learns to read")
    parser.add_argument("--sizes", type=size, nargs="+", help="sizes as 64x64, drawn evenly")
    parser.add_argument("--hidden", type=float, default=0.3, help="share of groups that hide the shape in the noise")
    parser.add_argument("--from", type=Path, dest="folder", help="begin with a model folder, whose encoder can read")
    parser.add_argument("--muon", type=float, default=0.008, help="learning rate of the matrices")
    parser.add_argument("--adamw", type=float, default=8e-4, help="learning rate of the rest")
    arguments = parser.parse_args()
    architectures.seeded(arguments.seed)
    pipeline = architectures.wan_vace()
    if arguments.folder:
        start_from(pipeline, arguments.folder)
    if arguments.part == "decoder":
        train_decoder(pipeline.vae, options_from(arguments, "video_decoder", adamw=1.5e-3, ema=0.99))
    elif arguments.part == "transformer":
        options = options_from(arguments, "video", muon=arguments.muon, adamw=arguments.adamw)
        reading = 0 if arguments.folder else arguments.reading
        sizes = dict.fromkeys(arguments.sizes, 1) if arguments.sizes else SIZES
        mix = Mix(arguments.tasks, arguments.noisy, arguments.frames, reading, sizes, arguments.hidden)
        train_transformer(pipeline, options, mix)
    if arguments.out:
        assemble(pipeline, options_from(arguments, "video"))
        pipeline.to(torch.bfloat16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
