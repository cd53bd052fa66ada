"""What LoRAs add to the weight of a model's parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import PiyingError
from ..memory.components import Block, Component
from .loras import LoraFile

PART = "transformer"


def with_loras(components: Mapping[str, Component], loras: Sequence[LoraFile]) -> Mapping[str, Component]:
    """Return the components with what the LoRAs keep beside the transformer's weights.

    Raises:
        PiyingError: a LoRA was made for a transformer of another width.
    """
    if not loras:
        return components
    transformer = components[PART]
    for lora in loras:
        _check_width(lora, transformer)
    blocks: Counter[str] = Counter()
    for lora in loras:
        blocks.update(lora.shape.blocks)
    changed = replace(
        transformer,
        root=_heavier(transformer.root, sum(lora.shape.outside for lora in loras)),
        blocks=_spread(transformer.blocks, list(blocks.values())),
    )
    return {**components, PART: changed}


def _spread(blocks: tuple[Block, ...], numbers: list[int]) -> tuple[Block, ...]:
    """Return heavier blocks, the most on the largest: a component's blocks have no names.

    Their sum is right, and the largest is no smaller than it will be.
    """
    largest = sorted(blocks, key=lambda block: block.parameters, reverse=True)
    most = sorted([*numbers, *[0] * len(largest)], reverse=True)
    return tuple(_heavier(block, number) for block, number in zip(largest, most, strict=False))


def _heavier(block: Block, numbers: int) -> Block:
    return replace(block, kept=block.kept + numbers)


def _check_width(lora: LoraFile, transformer: Component) -> None:
    if lora.shape.blocks and transformer.hidden and transformer.hidden not in lora.shape.widths:
        raise PiyingError(
            f"lora {lora.name!r} is {lora.shape.title} (layers of width {lora.shape.widths[0]}); the chosen model is "
            f"{transformer.hidden} wide. Choose a LoRA made for this model, or another model."
        )
