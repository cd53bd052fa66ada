"""Muon for the matrices inside blocks, AdamW for everything else, and the learning rate over time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# A quintic iteration that drives the singular values of a matrix towards 1 (Keller Jordan's Muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
INSIDE_BLOCKS = ("blocks.", "layers.", "block.", "layer.")
READS_TEXT = "text_embedder."
NOT_MATRICES = ("embed", "relative_attention_bias", "scale_shift_table")
WARM_UP = 100
DECAY = 0.3  # the last part of training, in which the rate falls to nothing


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal: every direction of a weight matrix learns at the same pace."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Change every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                state.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(state, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * 0.01).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the orthogonal matrix nearest to `matrix`."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def is_matrix(name: str, weight: nn.Parameter) -> bool:
    """Tell whether a weight is one Muon suits: two-dimensional, inside a block, no table.

    The layers that take in the text are among them. Under AdamW they let through what moves many
    pixels and held back what tells a circle from a square.
    """
    if READS_TEXT in name:
        return weight.ndim == 2
    inside = any(part in name for part in INSIDE_BLOCKS)
    return weight.ndim == 2 and inside and not any(part in name for part in NOT_MATRICES)


def optimizers(modules: Iterable[nn.Module], muon: float, adamw: float) -> list[torch.optim.Optimizer]:
    """Return the optimizers for the trainable weights of some modules; rates as at full height."""
    named = [(n, p) for module in modules for n, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if is_matrix(n, p)]
    rest = [p for n, p in named if not is_matrix(n, p)]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=adamw, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        made.append(Muon(matrices, lr=muon))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["full"] = group["lr"]
    return made


def set_rate(made: list[torch.optim.Optimizer], step: int, steps: int) -> None:
    """Set the rates for a step: up within `WARM_UP` steps, level, then down to nothing at the end."""
    height = min(1.0, (step + 1) / WARM_UP, max(0.0, (steps - step) / max(1.0, steps * DECAY)))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * height
