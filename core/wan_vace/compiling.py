"""The transformer's blocks compiled one by one: they are alike, so what is compiled once serves all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .forward import block_order

if TYPE_CHECKING:
    from diffusers import WanVACETransformer3DModel

    from ..memory.planned import PhasePlan


BACKEND = "inductor"  # torch's name of its compiler


def why_not(choice: PhasePlan, device: str) -> str:
    """Return why blocks are not compiled where that was asked for; "" where they are."""
    if not device.startswith("cuda"):
        return "the device is no card"
    if choice.placement != "resident":
        return "the weights are not all on the card, and streaming swaps them under the compiled code"
    return ""


@contextmanager
def compiled(transformer: WanVACETransformer3DModel) -> Iterator[None]:
    """Have `torch.compile` run the blocks inside the block; the model is as it was behind it.

    Args:
        transformer: on the device it computes on.
    """
    blocks = block_order(transformer)
    for block in blocks:
        block.compile(backend=BACKEND)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
