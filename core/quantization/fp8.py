"""Weight format FP8: Linear layers of one byte a weight, computed in the type of the input or multiplied in FP8.

e4m3 has three mantissa bits: a weight is off by up to 1/16 of itself, and a layer of Gaussian
weights by 2.6 % in the root mean square. One scale per output channel takes every row to the top of
e4m3's range, so that no weight is lost to its smallest steps of 2**-9, as happens where weights are
cast as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from math import prod
from typing import cast

import torch
from torch import nn

from ..errors import PiyingError
from ..files.stored_tensor import StoredTensor
from ..lora.additions import move_additions

VALUES = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3fn; torch.finfo(torch.float8_e4m3fn).max
CHUNK = 1 << 18  # weights cast at a time: their float32 copies stay in the processor's cache
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e4m3 values [out, in] and their float32 scale [out, 1].

    The largest weight of each output channel becomes 448; `values * scale` gives the weights back.

    Args:
        weight: [out, in], any floating type, finite.
    """
    values = torch.empty(weight.shape, dtype=VALUES, device=weight.device)
    scale = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
    step = max(1, CHUNK // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        rows = weight.detach()[part].float()
        largest = rows.abs().amax(dim=1, keepdim=True)
        scale[part] = torch.where(largest > 0, largest / LARGEST, 1.0)
        values[part] = (rows / scale[part]).clamp_(-LARGEST, LARGEST)
    return values, scale


def dequantize(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [out, in] in `dtype`; the products are rounded to it once.

    Args:
        values: [out, in], any float8 type.
        scale: float32 [out, blocks]; each covers in / blocks neighbouring weights of its row.
    """
    rows, columns = values.shape
    blocks = scale.shape[1]
    weight = values.to(dtype)
    # In place into a 16-bit weight, torch still multiplies by the scale in float32: in fp16 many
    # scales lie among the subnormals.
    weight.view(rows, blocks, columns // blocks).mul_(scale.unsqueeze(-1))
    return weight


class Fp8Linear(nn.Module):  # type: ignore[misc]
    """A Linear layer with weights in float8.

    Attributes:
        values: float8 Parameter [out, in].
        scale: float32 buffer [out, blocks], see `dequantize`.
        bias: Parameter [out] in the model's own type, or None.
        compute: the type to compute in; None for that of the input.
        fp8_matmul: whether to multiply in FP8 where the device and the sizes allow it; adds the
            rounding of the input to e4m3.
    """

    def __init__(
        self,
        values: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = values.shape
        self.values = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.compute = compute
        self.fp8_matmul = False

    @property
    def weight(self) -> None:
        """Nothing: there is no dense weight.

        It is here because T5 casts its activations to the type of a layer's `weight` where that is a
        tensor; they must not become float8.
        """
        return

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly computed."""
        return dequantize(self.values, cast(torch.Tensor, self.scale), dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs [..., in] times the weight plus the bias: [..., out] in the compute type."""
        inputs = inputs if self.compute is None else inputs.to(self.compute)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        scale = cast(torch.Tensor, self.scale)
        if self.fp8_matmul and can_multiply(inputs, self.values, scale):
            return multiply(inputs, self.values, scale, bias)
        return nn.functional.linear(inputs, self.dense(inputs.dtype), bias)

    def extra_repr(self) -> str:
        """Describe the layer as nn.Linear does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def castable(
    module: nn.Module, block_lists: Collection[str] = (), keep: Collection[str] = ()
) -> Iterator[tuple[str, nn.Linear]]:
    """Yield (name, layer) of the Linear layers that FP8 may hold.

    Args:
        module: the whole model.
        block_lists: dotted names of its lists of blocks, such as ("blocks", "vace_blocks"); layers
            outside them stay as they are. None named: every outermost list of modules.
        keep: patterns (fnmatch) of layer names that stay as they are, such as "*.proj_in".
    """
    lists = tuple(f"{name}." for name in block_lists or _outermost_lists(module))
    for name, layer in module.named_modules():
        spared = any(fnmatchcase(name, pattern) for pattern in keep)
        if name.startswith(lists) and isinstance(layer, nn.Linear) and not spared:
            yield name, layer


def _outermost_lists(module: nn.Module) -> list[str]:
    found: list[str] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return found


def cast_linears(module: nn.Module, block_lists: Collection[str] = (), keep: Collection[str] = ()) -> int:
    """Replace the layers of `castable` by FP8 ones, one at a time, and return how many there were."""
    layers = list(castable(module, block_lists, keep))
    for name, layer in layers:
        replace(module, name, Fp8Linear(*quantize(layer.weight), layer.bias))
    return len(layers)


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the one of that dotted name; what was added to that one goes with it."""
    parent, _, own = name.rpartition(".")
    move_additions(getattr(module.get_submodule(parent), own), layer)
    setattr(module.get_submodule(parent), own, layer)


def use_fp8_matmul(module: nn.Module, on: bool) -> None:
    """Have every FP8 layer of a model multiply in FP8, or go back to the type of its input."""
    for layer in module.modules():
        if isinstance(layer, Fp8Linear):
            layer.fp8_matmul = on


MULTIPLE = 16  # torch._scaled_mm needs K and N divisible by it (torch/_meta_registrations.py)
FIRST_CAPABILITY = (8, 9)  # Ada; older cards store FP8 but cannot multiply it
SMALLEST = 1e-12  # keeps the scale of an all-zero row above 0


def can_multiply(inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> bool:
    """Return whether `multiply` works for these sizes on this device.

    Rowwise scaling gives bf16 alone on a card, and takes one scale per output channel.
    """
    rows, columns = values.shape
    sizes = rows % MULTIPLE == 0 and columns % MULTIPLE == 0 and scale.shape[1] == 1
    types = values.dtype == VALUES and inputs.dtype == torch.bfloat16
    return bool(sizes and types) and _has_fp8(inputs.device)


def _has_fp8(device: torch.device) -> bool:
    if device.type == "cpu":
        return True  # slow, and exact in what it computes: for tests
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY)


def multiply(
    inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return inputs times the weight plus the bias, multiplied in FP8.

    Each row of the input is brought to e4m3 by a scale of its own, found as it comes.

    Args:
        inputs: bf16 [..., in].
        values: e4m3 [out, in].
        scale: float32 [out, 1].
        bias: bf16 [out] or None.

    Returns:
        bf16 [..., out].
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    largest = rows.abs().amax(dim=1, keepdim=True).float()
    row_scale = (largest / LARGEST).clamp_(min=SMALLEST)
    small = (rows.float() / row_scale).clamp_(-LARGEST, LARGEST).to(VALUES)
    product = torch._scaled_mm(
        small, values.t(), scale_a=row_scale, scale_b=scale.t().contiguous(), bias=bias, out_dtype=inputs.dtype
    )
    return product.reshape(*inputs.shape[:-1], values.shape[0])


SQUARE = 128  # side of the squares that share a scale in DeepSeek's layout (weight_block_size)


class ScaledTensor(StoredTensor):
    """A float8 weight [out, in] whose true values are `values * scale`.

    The scale is one number, one per output channel [out] or [out, 1], or one per block of neighbouring
    inputs, [out, blocks] or [out, blocks, 1]. DeepSeek's layout of 128 × 128 squares is
    [out / 128, in / 128].
    """

    def __init__(self, values: StoredTensor, scale: StoredTensor) -> None:
        self.values, self.scale = values, scale
        self.shape, self.dtype = values.shape, values.dtype

    def scale_blocks(self) -> torch.Tensor:
        """Return the scale as float32 [out, blocks]."""
        rows, columns = self.shape
        scale = self.scale.read().float()
        scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(scale.shape[0], -1)
        repeat = 1 if scale.shape[0] == rows else rows if scale.shape[0] == 1 else SQUARE
        scale = scale.repeat_interleave(repeat, dim=0)[:rows].contiguous()
        if scale.shape[0] != rows or columns % scale.shape[1]:
            raise PiyingError(f"a scale of shape {list(self.scale.shape)} fits no weight of {list(self.shape)}.")
        return scale

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts, each with its rows of the scale."""
        shared = prod(self.scale.shape) == 1
        scales = [self.scale] * parts if shared else self.scale.split(parts)
        return [ScaledTensor(values, scale) for values, scale in zip(self.values.split(parts), scales, strict=True)]

    def read(self) -> torch.Tensor:
        """Return the true values as float32."""
        return dequantize(self.values.read(), self.scale_blocks(), torch.float32)

    def release(self) -> None:
        """Give the pages of the values back."""
        self.values.release()
