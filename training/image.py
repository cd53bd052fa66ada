"""Train the Hunyuan-DiT model: `python -m training.image --runs runs --out builtin_models/hunyuan_dit`.

Decoder and transformer are trained apart (`--part`), in either order, since the encoder is set by
hand. Both text encoders learn to read first (see `text_encoders`) and then stay as they are.
Hunyuan-DiT's positions are relative in self-attention, but queries alone are rotated in attention to
text: that tells it where it is.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import HunyuanDiT2DModel, HunyuanDiTPipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import nn
from torch.nn import functional

from . import architectures
from .data import CAPTION_SPREAD, block_weights, colours, coverage, paint
from .groups import Groups, draw_groups
from .image_autoencoder import SCALE, picture_latents
from .language import LANGUAGES, Scene, caption, scenes
from .loop import Options, Run, common_arguments, load_average, options_from
from .text_encoders import teach
from .text_padding import HunyuanPaddedText, padding_scores

SIZES = {(64, 64): 4, (96, 64): 2, (64, 96): 2, (128, 128): 4}
TOKENS = 1200  # per batch, about
TEXT_LENGTH = 77 + 256  # what the pipeline pads captions to, for both encoders
DROPPED = 0.12
BASE_GRID = 512 // 8 // 2  # the grid HunyuanDiTPipeline scales positions to
NOISE = 0.04  # added to latents the decoder learns from: sampled ones are never exact
READING = 1000  # steps in which each text encoder learns to read
TRAINED_ON = [scene for scene in scenes(moving=False) if not scene.held_out]


def draw_pictures(groups: Groups, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pictures [B, 3, H, W] in -1..1 of some scenes, the same without a shape, and the coverage [B, H, W]."""
    paths = groups.paths(1, width, height, CAPTION_SPREAD)
    covered = coverage([s.shape for s in groups.scenes], paths, width, height)
    palette = [colours([getattr(scene, name) for scene in groups.scenes]) for name in ("colour", "background")]
    neutral = paint(groups.neutral(paths, width, height), *palette)
    return paint(covered, *palette)[:, 0], neutral[:, 0], covered[:, 0]


def draw_size(draw: random.Random) -> tuple[int, int]:
    """Return a width and height."""
    return draw.choices(list(SIZES), SIZES.values())[0]


def encode_texts(pipeline: HunyuanDiTPipeline, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the transformer's text arguments, with one place of padding, and the padding's attention scores."""
    bert = pipeline.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    t5 = pipeline.tokenizer_2(list(texts), padding=True, truncation=True, return_tensors="pt")
    states = pipeline.text_encoder(bert.input_ids, bert.attention_mask).last_hidden_state
    states_t5 = pipeline.text_encoder_2(t5.input_ids, t5.attention_mask).last_hidden_state
    one_more = torch.zeros(len(texts), 1, dtype=torch.long)
    mask_t5 = torch.cat([t5.attention_mask, one_more], dim=1)
    first = padding_scores(bert.attention_mask.sum(1), bert.attention_mask.shape[1], 0)[..., :-1]
    # The padding behind the second text stands for that of both.
    lengths = t5.attention_mask.sum(1)
    second = padding_scores(lengths, t5.attention_mask.shape[1], TEXT_LENGTH)
    second[:, 0, 0, -1] = (TEXT_LENGTH - lengths - bert.attention_mask.sum(1)).float().log()
    return {
        "encoder_hidden_states": states,
        "text_embedding_mask": bert.attention_mask,
        "encoder_hidden_states_t5": functional.pad(states_t5, (0, 0, 0, 1)),
        "text_embedding_mask_t5": mask_t5,
    }, torch.cat([first, second], dim=-1)


def rotary(width: int, height: int, head_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rotary embedding HunyuanDiTPipeline gives a picture of some size."""
    grid = (height // 16, width // 16)
    region = get_resize_crop_region_for_grid(grid, BASE_GRID)
    cos, sin = get_2d_rotary_pos_embed(head_width, region, grid, output_type="pt")
    return cos, sin


def velocity_loss(
    pipeline: HunyuanDiTPipeline, processor: HunyuanPaddedText, draw: random.Random, hidden: float = 0.0
) -> torch.Tensor:
    """Return how far the predicted velocity is off on one batch; a share of the groups is `hidden`, see `groups`."""
    width, height = draw_size(draw)
    groups = draw_groups(max(16, min(64, TOKENS * 256 // (width * height))), TRAINED_ON, draw)
    pictures, neutral, covered = draw_pictures(groups, width, height)
    arguments, processor.scores = encode_texts(pipeline, texts_for(groups, draw))
    latents, scheduler = picture_latents(pictures), pipeline.scheduler
    noise, times = groups.noise_like(latents), drawn_times(groups.count)[groups.rows]
    signal = scheduler.alphas_cumprod[times].sqrt().view(-1, 1, 1, 1)
    spread = (1 - signal**2).sqrt()
    hide = groups.hidden(hidden, spread.flatten()).view(-1, 1, 1, 1)
    shown = signal * torch.where(hide, picture_latents(neutral), latents) + spread * noise
    predicted = pipeline.transformer(
        shown,
        times.float(),
        **arguments,
        image_rotary_emb=rotary(width, height, pipeline.transformer.config.attention_head_dim),
        return_dict=False,
    )[0][:, :4]
    # The velocity, and where the shape is hidden, the one that leads to the picture all the same.
    velocity = torch.where(
        hide, (signal * shown - latents) / spread.clamp(min=1e-3), signal * noise - spread * latents
    )
    error = (predicted - velocity) ** 2
    return (error[:, :3] * block_weights(covered[:, None])).mean() + 0.1 * error[:, 3:].mean()


def drawn_times(count: int) -> torch.Tensor:
    """Return time steps in 0..999, more of the noisy ones: layout is decided there."""
    even = torch.rand(count)
    return (torch.where(torch.rand(count) < 0.4, 1 - (1 - even) ** 2, even) * 1000).long().clamp(max=999)


def texts_for(groups: Groups, draw: random.Random) -> list[str]:
    """Return a caption for each picture, worded alike within a group; for some groups none."""
    keys = [draw.random() for _ in range(groups.count)]
    return [
        text_for(scene, random.Random(keys[row]))
        for scene, row in zip(groups.scenes, groups.rows.tolist(), strict=True)
    ]


def text_for(scene: Scene, draw: random.Random) -> str:
    """Return a caption for a picture, now and then none."""
    return "" if draw.random() < DROPPED else caption(scene, draw.choice(LANGUAGES), draw)


class NoPooledText(nn.Module):
    """Stands in for the pooler, whose output is switched off, since it wants all 256 places filled."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the pooler gives: nothing."""
        return torch.zeros_like(states[:, 0])


@contextmanager
def short_texts(transformer: HunyuanDiT2DModel) -> Iterator[HunyuanPaddedText]:
    """Let a transformer take texts with one place of padding for as long as this lasts."""
    processor, usual = HunyuanPaddedText(), transformer.attn_processors
    padding, pooler = transformer.text_embedding_padding, transformer.time_extra_emb.pooler
    transformer.text_embedding_padding = nn.Parameter(padding[:1].clone(), requires_grad=False)
    transformer.time_extra_emb.pooler = NoPooledText()
    transformer.set_attn_processor(processor)
    try:
        yield processor
    finally:
        transformer.set_attn_processor(usual)
        transformer.text_embedding_padding, transformer.time_extra_emb.pooler = padding, pooler


def train_transformer(pipeline: HunyuanDiTPipeline, options: Options, reading: int, hidden: float = 0.0) -> None:
    """Train the transformer behind text encoders that can read, and leave the averaged weights in the pipeline.

    Unless resumed, both text encoders first learn to read in `reading` steps.
    """
    readers = ((pipeline.text_encoder, pipeline.tokenizer), (pipeline.text_encoder_2, pipeline.tokenizer_2))
    for encoder, tokenizer in readers:
        if not (options.resume and options.checkpoint.exists()):
            teach(encoder, tokenizer, TRAINED_ON, reading, options.seed)
        encoder.requires_grad_(False)
    with short_texts(pipeline.transformer) as processor:
        run = Run(trained_parts(pipeline), options)
        seed = options.seed
        run.train(lambda step: velocity_loss(pipeline, processor, random.Random(f"{seed} {step}"), hidden))
        run.use_average()


def start_from(pipeline: HunyuanDiTPipeline, folder: Path) -> None:
    """Give a pipeline what was trained of the model in a folder; its encoder stays as set by hand."""
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    trained = HunyuanDiTPipeline.from_pretrained(folder, dtype=torch.float32, **without)
    for name, part in trained_parts(pipeline).items():
        part.load_state_dict(getattr(trained, name).state_dict())
    pipeline.vae.decoder.load_state_dict(trained.vae.decoder.state_dict())


def trained_parts(pipeline: HunyuanDiTPipeline) -> dict[str, nn.Module]:
    """Return the modules that learn, together or before."""
    return {
        "transformer": pipeline.transformer,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
    }


def train_decoder(pipeline: HunyuanDiTPipeline, options: Options) -> None:
    """Train the autoencoder's decoder and leave the averaged weights in it."""
    run = Run({"decoder": pipeline.vae.decoder}, options)
    run.train(lambda step: decoder_loss(pipeline, random.Random(f"{options.seed} {step}")))
    run.use_average()


def decoder_loss(pipeline: HunyuanDiTPipeline, draw: random.Random) -> torch.Tensor:
    """Return how far decoded pictures are from the drawn ones, edges weighing more."""
    width, height = draw_size(draw)
    count = max(4, 16 * 4096 // (width * height))
    pictures, _, covered = draw_pictures(draw_groups(count, TRAINED_ON, draw), width, height)
    latents = picture_latents(pictures)
    latents = latents + NOISE * draw.random() * torch.randn_like(latents)
    decoded = pipeline.vae.decode(latents / SCALE).sample
    grown, shrunk = functional.max_pool2d(covered, 5, 1, 2), -functional.max_pool2d(-covered, 5, 1, 2)
    return ((decoded - pictures).abs() * (1 + 4 * (grown - shrunk))[:, None]).mean()


def assemble(pipeline: HunyuanDiTPipeline, folder: Path) -> None:
    """Load the parts trained so far into a pipeline."""
    decoder, transformer = folder / "image_decoder.pt", folder / "image.pt"
    if decoder.exists():
        load_average(decoder, {"decoder": pipeline.vae.decoder})
    if transformer.exists():
        with short_texts(pipeline.transformer):
            load_average(transformer, trained_parts(pipeline))


def main() -> None:
    """Train a part, and write the whole pipeline where asked."""
    parser = argparse.ArgumentParser(description="Train the built-in Hunyuan-DiT model.")
    common_arguments(parser, steps=4000)
    parser.add_argument("--part", choices=("transformer", "decoder", "none"), default="transformer")
    parser.add_argument("--reading", type=int, help="steps in which each text encoder learns to read (1000 or none)")
    parser.add_argument("--hidden", type=float, default=0.3, help="share of groups that hide the shape in the noise")
    parser.add_argument("--from", type=Path, dest="folder", help="begin with a model folder, whose encoders can read")
    parser.add_argument("--muon", type=float, default=0.02, help="learning rate of the matrices")
    parser.add_argument("--adamw", type=float, default=2e-3, help="learning rate of the rest")
    arguments = parser.parse_args()
    architectures.seeded(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = architectures.hunyuan_dit(Path(scratch))
        if arguments.folder:
            start_from(pipeline, arguments.folder)
        if arguments.part == "decoder":
            train_decoder(pipeline, options_from(arguments, "image_decoder", adamw=1.5e-3, ema=0.99))
        elif arguments.part == "transformer":
            options = options_from(arguments, "image", muon=arguments.muon, adamw=arguments.adamw)
            usual = 0 if arguments.folder else READING
            reading = usual if arguments.reading is None else arguments.reading
            train_transformer(pipeline, options, reading, arguments.hidden)
        if arguments.out:
            assemble(pipeline, arguments.runs)
            pipeline.to(torch.bfloat16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
