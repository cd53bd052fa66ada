"""Train the built-in segmentation model.

`python -m training.segmentation --runs runs --out builtin_models/segmentation`

SegFormer at toy size; it knows the three shapes of the built-in models' language by name.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from . import architectures
from .data import SHAPE_NAMES
from .depth import BATCH, HALF, SIZES, known_scenes, pictures, worn
from .language import Scene
from .loop import Run, common_arguments, options_from

NAMES = ["background", *SHAPE_NAMES]


def segmentation_model() -> SegformerForSemanticSegmentation:
    """Return an untrained SegFormer of about 0.2 M parameters."""
    config = SegformerConfig(
        depths=[1, 1, 2, 1],
        hidden_sizes=[16, 24, 40, 64],
        num_attention_heads=[1, 2, 2, 4],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=48,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    return SegformerForSemanticSegmentation(config)


def segmentation_processor() -> SegformerImageProcessorPil:
    """Return what resizes pictures for the model: 64×64, -1..1."""
    return SegformerImageProcessorPil(size={"height": 64, "width": 64}, image_mean=HALF, image_std=HALF)


def classes(drawn: list[Scene], covered: torch.Tensor) -> torch.Tensor:
    """Return the class of every pixel [B, H, W]: 0 for the background, else the shape's place in NAMES."""
    shapes = torch.tensor([NAMES.index(scene.shape) for scene in drawn])
    return (covered > 0.5) * shapes[:, None, None]


def train(arguments: argparse.Namespace) -> SegformerForSemanticSegmentation:
    """Train as the command line says and return the averaged model."""
    options = options_from(arguments, "segmentation", ema=0.99)
    architectures.seeded(arguments.seed)
    model, pool = segmentation_model(), known_scenes()
    run = Run({"model": model}, options)

    def loss_at(step: int) -> torch.Tensor:
        draw = random.Random(f"{arguments.seed} {step}")
        drawn = draw.choices(pool, k=BATCH)
        clean, covered = pictures(drawn, *draw.choice(SIZES))
        logits = model(worn(clean, draw)).logits
        full = functional.interpolate(logits, covered.shape[-2:], mode="bilinear", align_corners=False)
        return functional.cross_entropy(full, classes(drawn, covered))

    run.train(loss_at)
    run.use_average()
    return model.eval()


def score(folder: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Return how many pixels get the right class, and the mean overlap (IoU) of the right shape, on unseen scenes."""
    torch.manual_seed(seed)
    model = SegformerForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32)
    drawn = random.Random(seed).choices(known_scenes(held_out=True), k=count)
    clean, covered = pictures(drawn, *SIZES[0])
    with torch.no_grad():
        logits = model(clean).logits
    full = functional.interpolate(logits, covered.shape[-2:], mode="bilinear", align_corners=False)
    found, truth = full.argmax(1), classes(drawn, covered)
    both = ((found == truth) & (truth > 0)).flatten(1).sum(1)
    either = ((found > 0) | (truth > 0)).flatten(1).sum(1)
    return {"right": float((found == truth).float().mean()), "overlap": float((both / either).mean())}


def main() -> None:
    """Train, write the model where asked, and say how good it is."""
    parser = argparse.ArgumentParser(description="Train the built-in segmentation model.")
    common_arguments(parser, steps=1500)
    arguments = parser.parse_args()
    model = train(arguments)
    if arguments.out:
        model.to(torch.bfloat16).save_pretrained(arguments.out)
        segmentation_processor().save_pretrained(arguments.out)
        print(score(Path(arguments.out), count=200))


if __name__ == "__main__":
    main()
