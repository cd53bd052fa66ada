"""Casting in memory: the Linear layers of a module replaced by those of a weight format, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..lora.additions import move_additions
from .base import WeightFormat
from .policy import WEIGHT, CastRules
from .registry import FORMATS


def format_of(layer: nn.Module) -> WeightFormat | None:
    """Return the format whose layer a module is, or None."""
    return next((one for one in FORMATS.values() if isinstance(layer, one.layer_class())), None)


def is_linear(layer: nn.Module) -> bool:
    """Return whether a module is a Linear layer, however its weights are stored."""
    return isinstance(layer, nn.Linear) or format_of(layer) is not None


def dense_weight(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a Linear layer, however it is stored: float32 [out, in]."""
    stored = format_of(layer)
    plain: Any = layer
    return plain.weight.float() if stored is None else stored.dense(layer)


def complete_rules(module: nn.Module, rules: CastRules) -> CastRules:
    """Return rules that name lists of blocks: where none is named, every outermost list of modules."""
    if rules.block_lists:
        return rules
    found: list[str] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return replace(rules, block_lists=tuple(found))


def castable_layers(module: nn.Module, rules: CastRules) -> Iterator[tuple[str, nn.Linear]]:
    """Yield (name, layer) of the Linear layers that may be stored in fewer bits.

    Args:
        module: the whole model.
        rules: see `complete_rules`.
    """
    rules = complete_rules(module, rules)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not rules.why_dense(name + WEIGHT, tuple(layer.weight.shape)):
            yield name, layer


def cast_module(module: nn.Module, storage: str, rules: CastRules | None = None) -> int:
    """Replace the layers of `castable_layers` by those of a format, and return how many there were.

    Args:
        storage: the name of the format.
    """
    layers = list(castable_layers(module, rules or CastRules()))  # before the module changes
    chosen = FORMATS[storage]
    for name, layer in layers:
        replace_layer(module, name, chosen.layer(chosen.to_stored(layer.weight), layer.bias, None))
    return len(layers)


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the one of that dotted name; the LoRAs beside that one go with it."""
    # A LoRA may be on the model before its layers are cast.
    parent, _, own = name.rpartition(".")
    move_additions(getattr(module.get_submodule(parent), own), layer)
    setattr(module.get_submodule(parent), own, layer)


def use_native_matmul(module: nn.Module, on: bool) -> None:
    """Have the layers of formats multiply in them, or in the type of their input."""
    layers: Iterator[Any] = module.modules()
    for layer in layers:
        if format_of(layer) is not None:
            layer.native_matmul = on
