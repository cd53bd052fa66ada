"""Small matrices beside a layer's weights, as LoRA files have them: added to its output, taken off at will.

The weights themselves are not touched: they may be stored in a weight format, or views of a mapped file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CHILD = "additions"


class Addition(nn.Module):
    """One low-rank or full matrix.

    Attributes:
        down: Parameter [rank, in]; for a full matrix [out, in].
        up: Parameter [out, rank], or None for a full matrix.
        strength: what the product is multiplied by.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor | None, strength: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = None if up is None else nn.Parameter(up, requires_grad=False)
        self.strength = strength

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output [..., out] for inputs [..., in]."""
        if self.up is None:
            return nn.functional.linear(inputs, self.down.to(inputs.dtype)) * self.strength
        # The strength goes on between the factors, where there are few numbers.
        narrow = nn.functional.linear(inputs, self.down.to(inputs.dtype)) * self.strength
        return nn.functional.linear(narrow, self.up.to(inputs.dtype))

    def add_to(self, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output with what is added to it, in its own memory: a block's peak stays what it was."""
        return output.add_(self(inputs).to(output.dtype))


def _additions(layer: nn.Module) -> Any:
    """Return the `ModuleList` of additions on a layer; for torch's types any module could stand there."""
    return layer.get_submodule(CHILD)


def add(layer: nn.Module, addition: Addition) -> None:
    """Have a Linear layer of any kind add `addition` to its output from now on.

    It becomes a part of the layer, so that it goes where the layer's weights go.
    """
    if not hasattr(layer, CHILD):
        layer.add_module(CHILD, nn.ModuleList())
        layer.register_forward_hook(_add_all)
    _additions(layer).append(addition)


def take_off(layer: nn.Module, addition: Addition) -> None:
    """Undo `add`."""
    left = [other for other in _additions(layer) if other is not addition]
    if left:
        layer.add_module(CHILD, nn.ModuleList(left))
        return
    delattr(layer, CHILD)
    for key, hook in list(layer._forward_hooks.items()):
        if hook is _add_all:
            del layer._forward_hooks[key]


def move_additions(old: nn.Module, new: nn.Module) -> None:
    """Give what was added to one layer to the one that takes its place."""
    if hasattr(old, CHILD):
        for addition in _additions(old):
            add(new, addition)


def _add_all(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    for addition in _additions(layer):
        output = addition.add_to(output, inputs[0])
    return output
