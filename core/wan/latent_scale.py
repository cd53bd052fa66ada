"""Scale of a VAE's latents, and that of the transformer, which knows them normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def vae_config(places: Sequence[Path]) -> dict[str, Any]:
    """Return the configuration of a VAE that is in files, its class's own values included; no weights are read.

    Raises:
        PiyingError: the files are damaged, or no VAE.
    """
    from diffusers import AutoencoderKLWan

    from ..checkpoints.components import find_component

    defaults = {name: one.default for name, one in signature(AutoencoderKLWan).parameters.items()}
    return {**defaults, **find_component("vae", places).config}


def normalised(config: Mapping[str, Any], latents: torch.Tensor) -> torch.Tensor:
    """Return latents [1, z, T, h, w] of a VAE's scale as the transformer takes them, in fp32.

    Args:
        config: of the VAE.
    """
    z = latents.float()
    mean, scale = _mean_and_scale(config, z)
    return (z - mean) * scale


def denormalised(config: Mapping[str, Any], latents: torch.Tensor) -> torch.Tensor:
    """Return latents [1, z, T, h, w] of the transformer in the scale of a VAE, in fp32.

    Args:
        config: of the VAE.
    """
    z = latents.float()
    mean, scale = _mean_and_scale(config, z)
    return z / scale + mean


def _mean_and_scale(config: Mapping[str, Any], latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return them [1, z, 1, 1, 1] beside latents; a reciprocal, as diffusers' pipelines have it to the last bit."""
    import torch

    shape = (1, config["z_dim"], 1, 1, 1)
    mean = torch.tensor(config["latents_mean"], device=latents.device).view(shape)
    return mean, 1.0 / torch.tensor(config["latents_std"], device=latents.device).view(shape)
