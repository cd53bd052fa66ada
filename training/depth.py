"""Train the built-in depth model: `python -m training.depth --runs runs --out builtin_models/depth`.

Depth Anything at toy size. In the language of the built-in models the shape is near and its background
is far, so that the depth to learn is how much of a pixel the shape covers, lifted off the floor of the last ReLU.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessorPil

from . import architectures
from .data import colours, coverage, draw_paths, paint
from .language import Scene, scenes
from .loop import Run, common_arguments, options_from
from .reading import overlap

SIZES = ((64, 64), (96, 64), (64, 96))
PATCH, WIDTH = 8, 48
BATCH = 24
HALF = [0.5, 0.5, 0.5]  # pixel values of -1..1
FAR, NEAR = 0.2, 1.0  # a background at 0 would be learned by an output that is 0 everywhere, and stay there


def depth_model() -> DepthAnythingForDepthEstimation:
    """Return an untrained Depth Anything of about 0.2 M parameters."""
    backbone = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=64,
        patch_size=PATCH,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH,
        reassemble_hidden_size=WIDTH,
        neck_hidden_sizes=[16, 24, 32, WIDTH],
        fusion_hidden_size=24,
        head_hidden_size=16,
    )
    model = DepthAnythingForDepthEstimation(config)
    torch.nn.init.constant_(model.head.conv3.bias, (FAR + NEAR) / 2)
    return model


def depth_processor() -> DPTImageProcessorPil:
    """Return what resizes pictures for the model: aspect kept, whole patches, -1..1."""
    size = {"height": 64, "width": 64}
    return DPTImageProcessorPil(
        size=size, keep_aspect_ratio=True, ensure_multiple_of=PATCH, image_mean=HALF, image_std=HALF
    )


def pictures(drawn: Sequence[Scene], width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one picture per scene [B, 3, H, W] in -1..1 and how much of each pixel its shape covers [B, H, W]."""
    covered = coverage([scene.shape for scene in drawn], draw_paths(drawn, 1, width, height), width, height)
    painted = paint(covered, colours([s.colour for s in drawn]), colours([s.background for s in drawn]))
    return painted[:, 0], covered[:, 0]


def worn(clean: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Return pictures as an autoencoder or a codec leaves them: softer, noisier, a little off in colour."""
    soft = functional.avg_pool2d(functional.pad(clean, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = clean.lerp(soft, draw.random())
    tint = 0.1 * torch.randn(len(clean), 3, 1, 1)
    return blurred + tint + draw.uniform(0, 0.08) * torch.randn_like(clean)


def known_scenes(held_out: bool = False) -> list[Scene]:
    """Return the scenes of single pictures that are trained on, or those that never are."""
    return [scene for scene in scenes(moving=False) if scene.held_out == held_out]


def train(arguments: argparse.Namespace) -> DepthAnythingForDepthEstimation:
    """Train as the command line says and return the averaged model."""
    options = options_from(arguments, "depth", ema=0.99)
    architectures.seeded(arguments.seed)
    model, pool = depth_model(), known_scenes()
    run = Run({"model": model}, options)

    def loss_at(step: int) -> torch.Tensor:
        draw = random.Random(f"{arguments.seed} {step}")
        clean, covered = pictures(draw.choices(pool, k=BATCH), *draw.choice(SIZES))
        return functional.mse_loss(model(worn(clean, draw)).predicted_depth, FAR + (NEAR - FAR) * covered)

    run.train(loss_at)
    run.use_average()
    return model.eval()


def score(folder: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Return the overlap (IoU of the near half) and the error 0..1 on pictures of scenes never trained on."""
    torch.manual_seed(seed)
    model = DepthAnythingForDepthEstimation.from_pretrained(folder, dtype=torch.float32)
    clean, covered = pictures(random.Random(seed).choices(known_scenes(held_out=True), k=count), *SIZES[0])
    with torch.no_grad():
        near = (model(clean).predicted_depth - FAR) / (NEAR - FAR)
    overlaps = [overlap((a > 0.5).numpy(), (b > 0.5).numpy()) for a, b in zip(near, covered, strict=True)]
    return {"overlap": sum(overlaps) / count, "error": float((near - covered).abs().mean())}


def main() -> None:
    """Train, write the model where asked, and say how good it is."""
    parser = argparse.ArgumentParser(description="Train the built-in depth model.")
    common_arguments(parser, steps=1500)
    arguments = parser.parse_args()
    model = train(arguments)
    if arguments.out:
        model.to(torch.bfloat16).save_pretrained(arguments.out)
        depth_processor().save_pretrained(arguments.out)
        print(score(Path(arguments.out), count=200))


if __name__ == "__main__":
    main()
