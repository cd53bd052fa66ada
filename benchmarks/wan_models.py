"""Wan VACE transformers of the published shapes with random weights, and inputs for them.

A weight's numbers depend on its name alone, so that another process, or another program with names
that can be translated, has the very same model.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from published_models import sizes

# Of the published models, and one that a CPU runs in a moment; its head is 128 wide as theirs are.
CONFIGS: dict[str, dict[str, Any]] = {
    "toy": {"num_attention_heads": 2, "ffn_dim": 1024, "num_layers": 6, "vace_layers": [0, 2, 4]},
    "1.3B": sizes("wan-vace-1.3b"),
    "14B": sizes("wan-vace-14b"),
}
# Width, height, frames. The toy's: for steps, for the VAE (wider than one of its tiles), for whole runs.
SIZES = {
    "480p": (832, 480, 81),
    "480p, 49 frames": (832, 480, 49),
    "720p": (1280, 720, 81),
    "toy": (128, 128, 33),
    "toy vae": (272, 64, 5),
    "toy run": (64, 48, 9),
}
FP32 = ("time_embedder", "scale_shift_table", "norm2")  # what diffusers keeps in fp32


@dataclass(frozen=True)
class Shape:
    """Which model and which video: keys of `CONFIGS` and `SIZES`."""

    model: str
    size: str

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        width, height, frames = SIZES[self.size]
        return 1 + (frames - 1) // 4, height // 8, width // 8


def numbers(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return the weight of that name (diffusers' names): Gaussian, scaled so that activations stay near 1."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    kept = torch.float32 if any(part in name for part in FP32) else dtype
    drawn = torch.randn(shape, generator=generator, device=device, dtype=kept)
    if "norm" in name and name.endswith("weight"):
        return drawn.mul_(0.05).add_(1)
    fan_in = drawn[0].numel() if drawn.ndim > 1 else 0
    return drawn.mul_(fan_in**-0.5 if name.endswith("weight") and fan_in else 0.02)


def weights(model: str, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Return a model's weights in host memory, drawn on `device`."""
    return {
        name: numbers(name, tuple(parameter.shape), dtype, device).cpu()
        for name, parameter in empty(model).named_parameters()
    }


def empty(model: str) -> Any:
    """Return the model without weights."""
    from diffusers import WanVACETransformer3DModel

    with torch.device("meta"):
        made = WanVACETransformer3DModel(**CONFIGS[model])
    # its tables are computed, not stored
    made.rope = type(made.rope)(128, (1, 2, 2), 1024)
    return made.eval()


def built(model: str, state: dict[str, torch.Tensor]) -> Any:
    """Return the model on weights of `weights`, which it shares with the dictionary."""
    made = empty(model)
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False)


def inputs(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return latents, timestep, the embeddings of two prompts and the control, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        drawn = torch.empty(size, device="meta") if device == "meta" else torch.randn(size, generator=generator)
        return drawn.to(device, dtype)

    return {
        "latents": noise(1, 16, *shape.latent),
        "timestep": torch.tensor([500.0], device=device),
        "embeds": [noise(1, 512, 4096), noise(1, 512, 4096)],
        "control": noise(1, 96, *shape.latent),
    }
