"""Codebook layers: Linear layers of 4-bit weights that stand for levels of a table, unpacked in pieces.

The arithmetic is that of comfy-kitchen's eager backend and of bitsandbytes' `dequantize_4bit`, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ..files.gguf_blocks import DEVICE_PIECE
from ..files.stored_tensor import PIECE, StoredTensor, TransformedTensor
from .int8_linear import LARGEST, rotated
from .stored_linear import StoredLinear

# What four bits are without a table: two's complement for INT4, and for W4A8 that much above -8.
SIGNED = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0)
SHIFTED = (-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)


def scale_numbers(scale: torch.Tensor) -> torch.Tensor:
    """Return scales as float32; bytes are E4M3."""
    numbers: torch.Tensor = (scale.view(torch.float8_e4m3fn) if scale.dtype == torch.uint8 else scale).float()
    return numbers


def nf4_scales(weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]) -> StoredTensor:
    """Return the scales [out, blocks] of a weight of bitsandbytes, which packs them in bytes where they are nested."""
    nested = beside.get("weight_nested_absmax")

    def unpacked(absmax: torch.Tensor) -> torch.Tensor:
        if nested is None:
            return absmax.reshape(shape)
        scales = nested.read().repeat_interleave(declared["nested_blocksize"])[: absmax.numel()]
        levels = beside["weight_nested_quant_map"].read()
        numbers: torch.Tensor = levels[absmax.flatten().int()] * scales + declared["nested_offset"]
        return numbers.reshape(shape)

    shape = (weight.shape[0], weight.shape[1] * 2 // declared["blocksize"])
    return TransformedTensor(beside["weight_absmax"], shape, unpacked)


def unpacked_pieces(packed: Mapping[str, torch.Tensor], *, first_high: bool) -> Iterator[torch.Tensor]:
    """Yield the weights of some rows at a time, float32 [rows, columns], as they are stored: not rotated back.

    Args:
        packed: see `CodebookTensor.packed`.
        first_high: whether the first of a byte's two weights is in the high bits.
    """
    values, levels = packed["values"], packed["levels"]
    at_once = max(1, (PIECE if values.device.type == "cpu" else DEVICE_PIECE) // max(1, 2 * values.shape[1]))
    channels = packed["channel"].split(at_once) if packed["channel"].numel() else None
    for place, (rows, scale) in enumerate(zip(values.split(at_once), packed["scale"].split(at_once), strict=True)):
        halves = (rows >> 4, rows & 15) if first_high else (rows & 15, rows >> 4)
        codes = torch.stack(halves, dim=-1).flatten().int()
        numbers = levels.index_select(0, codes).view(len(rows), -1)
        numbers.view(len(rows), scale.shape[1], -1).mul_(scale_numbers(scale).unsqueeze(-1))
        if channels is not None:
            numbers.round_().clamp_(-LARGEST, LARGEST).mul_(channels[place])
        yield numbers


class CodebookTensor(StoredTensor):
    """A weight [out, in] of a file in one of these formats."""

    def __init__(
        self,
        name: str,
        values: StoredTensor,
        scale: StoredTensor,
        *,
        levels: StoredTensor | None = None,
        channel: StoredTensor | None = None,
        group: int = 0,
    ) -> None:
        """Join the tensors of a weight.

        Args:
            name: of the format.
            values: bytes [out, in / 2].
            scale: [out, blocks], or [out] for those of rows.
            levels: the 16 of them; None for whole numbers.
            channel: [out], where what the scales give is rounded to 8 bits first.
            group: of how many inputs each is rotated; 0 where none is.
        """
        self.format, self.values, self.scale = name, values, scale
        self.levels, self.channel, self.group = levels, channel, group
        # Bytes, whatever they stand for: nothing else takes them for its own.
        self.shape, self.dtype = (values.shape[0], values.shape[1] * 2), torch.uint8

    @property
    def read_dtype(self) -> torch.dtype:
        """The type of the true values."""
        return torch.float32

    def packed(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a layer; values and scales of one byte as uint8, the latter [out, blocks]."""
        scale = self.scale.read()
        scale = (scale.view(torch.uint8) if scale.itemsize == 1 else scale.float()).reshape(self.shape[0], -1)
        whole = SIGNED if self.channel is None else SHIFTED
        levels = torch.tensor(whole) if self.levels is None else self.levels.read().float().flatten()
        channel = torch.empty(0, 1) if self.channel is None else self.channel.read().float().reshape(-1, 1)
        values = self.values.read().view(torch.uint8)
        return {
            "values": values,
            "levels": levels,
            "scale": scale,
            "channel": channel,
            "group": torch.tensor(self.group),
        }

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts, each with its rows of the scales."""
        scales, values = self.scale.split(parts), self.values.split(parts)
        channels = [None] * parts if self.channel is None else self.channel.split(parts)
        return [
            CodebookTensor(self.format, one, scale, levels=self.levels, channel=channel, group=self.group)
            for one, scale, channel in zip(values, scales, channels, strict=True)
        ]

    def read(self) -> torch.Tensor:
        """Return the true values as float32."""
        return torch.cat(list(self.pieces())).view(self.shape)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield the true values of some rows at a time."""
        for piece in unpacked_pieces(self.packed(), first_high=LAYERS[self.format].first_high):
            yield (rotated(piece, self.group) if self.group else piece).view(-1)
        self.release()

    def release(self) -> None:
        """Give the pages of the values back."""
        self.values.release()


class CodebookLinear(StoredLinear):
    """A Linear layer of such weights.

    Attributes:
        values: uint8 buffer [out, in / 2].
        levels: float32 buffer [16].
        scale: buffer [out, blocks], float32 or the bytes of E4M3.
        channel: float32 buffer [out, 1], or [0, 1] where numbers are not rounded.
        group: of how many inputs each is rotated; 0 where none is.
    """

    first_high: ClassVar[bool] = False

    def __init__(
        self,
        packed: Mapping[str, torch.Tensor],
        *,
        bias: torch.Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        values = packed["values"]
        super().__init__((values.shape[0], values.shape[1] * 2), bias, compute)
        for name in ("values", "levels", "scale", "channel"):
            self.register_buffer(name, packed[name])
        self.group = int(packed["group"])

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly unpacked and rotated back."""
        return self._unpacked(dtype, self.group)

    def _unpacked(self, dtype: torch.dtype, group: int) -> torch.Tensor:
        packed = {name: cast(torch.Tensor, getattr(self, name)) for name in ("values", "levels", "scale", "channel")}
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=packed["values"].device)
        done = 0
        for piece in unpacked_pieces(packed, first_high=self.first_high):
            weight[done : done + len(piece)] = rotated(piece, group) if group else piece
            done += len(piece)
        return weight

    def product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the layer's output; inputs are rotated rather than weights, which takes less memory."""
        inputs = rotated(inputs, self.group) if self.group else inputs
        return nn.functional.linear(inputs, self._unpacked(inputs.dtype, 0), bias)


class Int4Linear(CodebookLinear):
    """A Linear layer in INT4."""


class W4a8Linear(CodebookLinear):
    """A Linear layer in W4A8."""


class Nf4Linear(CodebookLinear):
    """A Linear layer in NF4."""

    first_high = True


LAYERS: dict[str, type[CodebookLinear]] = {"int4": Int4Linear, "w4a8": W4a8Linear, "nf4": Nf4Linear}
