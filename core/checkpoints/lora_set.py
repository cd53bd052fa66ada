"""The LoRAs that one run wants on a model that is kept between runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..memory.devices import named_dtype
from .lora import AppliedLora, apply_lora
from .loras import LoraFile

Key = tuple[str, str]
ON = "_piying_loras"


def set_loras(model: nn.Module, wanted: Sequence[LoraFile], compute: str) -> None:
    """Have exactly `wanted` on a model, in that order: sums of the same files are then the same to the bit.

    Args:
        model: in host memory.
        wanted: may be empty.
        compute: the number type of the arithmetic, which their factors are brought to.

    Raises:
        PiyingError: a file is damaged, or made for another model.
    """
    on: list[tuple[Key, AppliedLora]] = model.__dict__.setdefault(ON, [])
    keys = [(lora.identity, compute) for lora in wanted]
    if [key for key, _ in on] == keys:
        return
    while on:
        on.pop()[1].remove()
    for key, lora in zip(keys, wanted, strict=True):
        on.append((key, apply_lora(model, lora.path, lora.strength, named_dtype(compute))))
