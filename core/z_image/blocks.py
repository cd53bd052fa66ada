"""Blocks of Z-Image's transformer, and what it keeps beside its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import ZImageTransformer2DModel


def block_order(transformer: ZImageTransformer2DModel) -> list[torch.nn.Module]:
    """Return the blocks in the order in which the model runs them."""
    return [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]


def forget_angles(transformer: ZImageTransformer2DModel) -> None:
    """Let tables of angles go that the model keeps beside its buffers, on the device it ran on."""
    transformer.rope_embedder.freqs_cis = None
