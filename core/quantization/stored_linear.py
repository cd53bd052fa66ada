"""Stored layers: Linear layers that hold their weight in a format and unpack it for each product."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn


class StoredLinear(nn.Module):  # type: ignore[misc]
    """A Linear layer whose weight is stored in fewer bits.

    Attributes:
        bias: Parameter [out] in the model's own type, or None.
        compute: the type to compute in; None for that of the input.
        native_matmul: whether to multiply in the format where the device and the sizes allow it.
    """

    def __init__(
        self, sizes: tuple[int, int], bias: torch.Tensor | None = None, compute: torch.dtype | None = None
    ) -> None:
        """Make a layer without its weight.

        Args:
            sizes: output and input channels.
        """
        super().__init__()
        self.out_features, self.in_features = sizes
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.compute = compute
        self.native_matmul = False

    @property
    def weight(self) -> None:
        """Nothing: there is no dense weight.

        It is here because T5 casts its activations to the type of a layer's `weight` where that is a
        tensor; they must not become float8.
        """
        return

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly computed."""

    def product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return inputs [..., in] times the weight plus the bias [out], all in the type of the inputs."""
        return nn.functional.linear(inputs, self.dense(inputs.dtype), bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs [..., in] times the weight plus the bias: [..., out] in the compute type."""
        inputs = inputs if self.compute is None else inputs.to(self.compute)
        bias: Any = self.bias
        return self.product(inputs, None if bias is None else bias.to(inputs.dtype))

    def extra_repr(self) -> str:
        """Describe the layer as nn.Linear does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
