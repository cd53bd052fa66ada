"""Text encoders learn to read before anything is drawn.

Every token of a caption has to tell the whole scene: its colour, shape, motion and background. That
takes a minute, and a transformer that may look at any token finds what it needs; learning to read
by drawing alone leaves motion and shape, which move few pixels, unread for thousands of steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .language import BACKGROUNDS, COLOURS, LANGUAGES, MOTIONS, SHAPES, Scene, caption

ANSWERS: dict[str, list[str | None]] = {
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "motion": [*MOTIONS, None],
    "background": list(BACKGROUNDS),
}
BATCH = 64
RATE = 3e-3


def teach(encoder: nn.Module, tokenizer: Any, pool: Sequence[Scene], steps: int, seed: int = 0) -> float:
    """Train an encoder to read captions of some scenes; return the share of tokens that read all right."""
    width = encoder.config.hidden_size
    torch.manual_seed(seed)
    heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ANSWERS.items()})
    weights = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    right = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50, 2 * (1 - step / steps))
        loss, right = reading_loss(encoder, tokenizer, heads, drawn(pool, random.Random(f"read {seed} {step}")))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"reading, step {step + 1}: loss {loss.item():.4f}, right {right:.3f}", flush=True)
    return right


def drawn(pool: Sequence[Scene], draw: random.Random) -> list[tuple[Scene, str]]:
    """Return scenes with captions."""
    chosen = [draw.choice(pool) for _ in range(BATCH)]
    return [(scene, caption(scene, draw.choice(LANGUAGES), draw)) for scene in chosen]


def reading_loss(
    encoder: nn.Module, tokenizer: Any, heads: nn.ModuleDict, items: Sequence[tuple[Scene, str]]
) -> tuple[torch.Tensor, float]:
    """Return the loss of reading captions off every token, and the share of tokens that read all right."""
    tokens = tokenizer([text for _, text in items], padding=True, return_tensors="pt")
    states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    real = tokens.attention_mask.bool()
    loss, right = torch.zeros(()), torch.ones(int(real.sum()), dtype=torch.bool)
    for name, values in ANSWERS.items():
        asked = torch.tensor([values.index(getattr(scene, name)) for scene, _ in items])
        expected = asked[:, None].expand_as(real)[real]
        told = heads[name](states)[real]
        loss = loss + functional.cross_entropy(told, expected)
        right &= told.argmax(1) == expected
    return loss, float(right.float().mean())
