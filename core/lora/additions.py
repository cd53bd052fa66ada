"""Small matrices beside a layer's weights, as LoRA files have them: added to its output, taken off at will.

The weights themselves are not touched: they may be stored in a weight format, or views of a mapped file.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

CHILD = "additions"
Axis = Literal["out", "in"]


class Addition(nn.Module):
    """What one file adds to one layer, times a strength.

    A DoRA scales the changed weight W + ΔW by a gain for each of its outputs or inputs. What is added then is
    gain · (W + ΔW) - W.

    Attributes:
        strength: what it is multiplied by.
        gain: Parameter [out] or [in] of a DoRA, else None.
        axis: which of the two.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.axis: Axis = "out"
        self.gain: nn.Parameter | None = None

    def set_gain(self, gain: torch.Tensor, axis: Axis) -> None:
        """Make it that of a DoRA."""
        self.gain, self.axis = nn.Parameter(gain, requires_grad=False), axis

    @property
    def size(self) -> tuple[int, int]:
        """The outputs and inputs of the layer it is for."""
        raise NotImplementedError

    def is_anything(self) -> bool:
        """Return whether ΔW is not zero."""
        raise NotImplementedError

    def change(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ΔW times inputs [..., in], times the strength: [..., out]."""
        raise NotImplementedError

    def weight(self) -> torch.Tensor:
        """Return ΔW, float32 [out, in]."""
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output [..., out] for inputs [..., in], beside a DoRA's scaling of W."""
        if self.gain is None:
            return self.change(inputs)
        gain = self.gain.to(inputs.dtype)
        return self.change(inputs * gain) if self.axis == "in" else self.change(inputs) * gain

    def add_to(self, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output with what is added to it, in its own memory: a block's peak stays what it was."""
        return output.add_(self(inputs).to(output.dtype))


class LowRank(Addition):
    """The product of two factors, or one whole matrix.

    Attributes:
        down: Parameter [rank, in]; for a whole matrix [out, in].
        up: Parameter [out, rank], or None for a whole matrix.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor | None, strength: float) -> None:
        super().__init__(strength)
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = None if up is None else nn.Parameter(up, requires_grad=False)

    @property
    def size(self) -> tuple[int, int]:
        """The outputs and inputs of the layer it is for."""
        return (self.down if self.up is None else self.up).shape[0], self.down.shape[1]

    def is_anything(self) -> bool:
        """Return whether ΔW is not zero."""
        return bool(torch.any(self.down if self.up is None else self.up))

    def change(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the product, see `Addition.change`."""
        # The strength goes on between the factors, where there are few numbers.
        narrow = nn.functional.linear(inputs, self.down.to(inputs.dtype)) * self.strength
        return narrow if self.up is None else nn.functional.linear(narrow, self.up.to(inputs.dtype))

    def weight(self) -> torch.Tensor:
        """Return the product of the factors, see `Addition.weight`."""
        return self.down.float() if self.up is None else self.up.float() @ self.down.float()


class Kronecker(Addition):
    """The Kronecker product of two matrices, as LoKr has it; it is never put together.

    Attributes:
        left: Parameter [a, b].
        right: Parameter [c, d], for a layer of a · c outputs and b · d inputs.
    """

    def __init__(self, left: torch.Tensor, right: torch.Tensor, strength: float) -> None:
        super().__init__(strength)
        self.left = nn.Parameter(left, requires_grad=False)
        self.right = nn.Parameter(right, requires_grad=False)

    @property
    def size(self) -> tuple[int, int]:
        """The outputs and inputs of the layer it is for."""
        (a, b), (c, d) = self.left.shape, self.right.shape
        return a * c, b * d

    def is_anything(self) -> bool:
        """Return whether ΔW is not zero."""
        return bool(torch.any(self.left)) and bool(torch.any(self.right))

    def change(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the product, see `Addition.change`."""
        # (left ⊗ right) vec(X) is vec(left X rightᵀ), with X [b, d] in rows.
        matrix = inputs.unflatten(-1, (self.left.shape[1], self.right.shape[1]))
        narrow = nn.functional.linear(matrix, self.right.to(inputs.dtype)) * self.strength
        return torch.matmul(self.left.to(inputs.dtype), narrow).flatten(-2)

    def weight(self) -> torch.Tensor:
        """Return the whole matrix, see `Addition.weight`."""
        return torch.kron(self.left.float(), self.right.float())


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
    # First what DoRAs make of the layer's own product, which is nowhere once something was added to it.
    output = _scaled(layer, inputs[0], output)
    for addition in _additions(layer):
        output = addition.add_to(output, inputs[0])
    return output


def _scaled(layer: Any, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return Wx + b plus all (gain - 1) · Wx, in the memory of the output."""
    factors: dict[Axis, torch.Tensor] = {}
    for one in _additions(layer):
        if one.gain is not None:
            factors[one.axis] = factors.get(one.axis, 0.0) + one.strength * (one.gain.float() - 1)
    if not factors:
        return output
    bias = 0.0 if layer.bias is None else layer.bias.float()
    # The inputs' part is another product with the weight: a gain of inputs cannot be had from the output.
    columns = layer.forward(inputs * factors["in"].to(inputs.dtype)) - bias if "in" in factors else None
    if "out" in factors:
        # Gains of nearly 1 would be lost in 16 bits; in place into 16 bits, torch multiplies in float32.
        output.mul_(1 + factors["out"]).sub_(factors["out"] * bias)
    return output if columns is None else output.add_(columns)
