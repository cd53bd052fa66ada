"""How LoRA files end their tensors' names, and what they hold, by their headers alone. Needs no torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .header import Entry

ENDINGS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "alpha": "alpha",
    "diff": "weight",
    "diff_b": "bias",
}
TEXT_ENCODER = re.compile(r"lora_te\d?_|text_encoder")
BLOCK = re.compile(r"((?:vace_)?blocks)[._](\d+)[._]")
# Widths of the models we know; those of Wan2.2 are built as those of Wan2.1 are.
WIDTHS = {1536: "Wan 1.3B", 5120: "Wan 14B", 1408: "Hunyuan-DiT"}


@dataclass(frozen=True)
class LoraShape:
    """What a LoRA file holds.

    Attributes:
        rank: of most of its layers; 0 where it holds whole differences alone.
        widths: numbers of inputs and outputs of its layers, the most common first.
        blocks: {block: numbers kept beside its weights}.
        outside: such numbers outside the blocks.
    """

    rank: int
    widths: tuple[int, ...]
    blocks: Mapping[str, int]
    outside: int

    @property
    def title(self) -> str:
        """Return "a LoRA for Wan 14B, rank 32"; without the model where its width is none we know."""
        model = WIDTHS.get(self.widths[0], "") if self.blocks and self.widths else ""
        return "a LoRA" + (f" for {model}, rank {self.rank}" if model and self.rank else "")


def role(name: str) -> str:
    """Return what a tensor is by its name: "down", "up", "alpha", "weight", "bias", or "" for none of a LoRA."""
    return next((role for ending, role in ENDINGS.items() if name.endswith(f".{ending}")), "")


def lora_shape(entries: Mapping[str, Entry]) -> LoraShape:
    """Return what a file holds for a transformer; what it has for text encoders is not counted."""
    ranks: Counter[int] = Counter()
    widths: Counter[int] = Counter()
    numbers: Counter[str] = Counter()
    for name, entry in entries.items():
        kind = role(name)
        if kind not in ("down", "up", "weight") or len(entry.shape) < 2 or TEXT_ENCODER.match(name):
            continue
        numbers[_block(name)] += entry.count
        if kind == "down":
            ranks[entry.shape[0]] += 1
        widths.update(_widths(kind, entry.shape))
    outside = numbers.pop("", 0)
    return LoraShape(_first(ranks), tuple(width for width, _ in widths.most_common()), dict(numbers), outside)


def _block(name: str) -> str:
    found = BLOCK.search(name)
    return "" if found is None else f"{found[1]}.{found[2]}"


def _widths(kind: str, shape: tuple[int, ...]) -> Iterable[int]:
    inputs, outputs = math.prod(shape[1:]), shape[0]
    return {"down": (inputs,), "up": (outputs,)}.get(kind, (inputs, outputs))


def _first(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0] if counts else 0
