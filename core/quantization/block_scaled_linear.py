"""Block-scaled layers: Linear layers in NVFP4 and MXFP8, unpacked where they are computed, in pieces.

The order of the scales is that of cuBLAS's block scaling factors (its manual, "1D Block Scaling Factors Layout"):
tiles of 128 rows and 4 columns, in each of them row r of group g = r // 32 lies at place (r % 32, g).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import nextafter
from typing import ClassVar, cast

import torch

from ..files.dtypes import all_finite, convert_into
from ..files.gguf_blocks import DEVICE_PIECE
from ..files.stored_tensor import PIECE, PLAIN_PIECE, RowsOf, StoredTensor
from .scaled_tensor import MXFP8_BLOCK, NVFP4_BLOCK, TILE_COLUMNS, TILE_ROWS
from .stored_linear import StoredLinear

# The numbers of E2M1, by their four bits.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# Between neighbours of its first half; a number in the middle goes to the one whose last bit is 0.
E2M1_MIDDLES = tuple(
    nextafter((low + high) / 2, 0) if place % 2 else (low + high) / 2
    for place, (low, high) in enumerate(pairwise(E2M1[:8]))
)
LARGEST_E4M3 = 448.0
GROUP = 32  # rows of a tile that lie one behind the other
MULTIPLE = 32  # that both sides of a weight are of, for the kernels
EXPONENT_BIAS = 127
EXPONENT_BITS = 23  # where a float32 has its exponent


def untiled(scale: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """Return scales [rows, blocks] from those in tiles, of any shape and of one byte each."""
    down, across = -(-rows // TILE_ROWS), -(-blocks // TILE_COLUMNS)
    tiles = scale.reshape(down, across, GROUP, TILE_ROWS // GROUP, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLUMNS)[:rows, :blocks]


def tiled(scale: torch.Tensor) -> torch.Tensor:
    """Return scales [rows, blocks] in tiles [n], filled up with zeros; `untiled` gives them back."""
    down, across = -(-scale.shape[0] // TILE_ROWS), -(-scale.shape[1] // TILE_COLUMNS)
    whole = scale.new_zeros(down * TILE_ROWS, across * TILE_COLUMNS)
    whole[: scale.shape[0], : scale.shape[1]] = scale
    return whole.view(down, TILE_ROWS // GROUP, GROUP, across, TILE_COLUMNS).permute(0, 3, 2, 1, 4).flatten()


def scale_numbers(scale: torch.Tensor, block: int) -> torch.Tensor:
    """Return what bytes of scales stand for, float32: E4M3 for blocks of 16 weights, powers of 2 for those of 32."""
    if block == NVFP4_BLOCK:
        return scale.view(torch.float8_e4m3fn).float()
    # The bits of a float32's exponent; comfy-kitchen too has 0 for the least of them.
    return scale.to(torch.int32).bitwise_left_shift_(EXPONENT_BITS).view(torch.float32)


def value_numbers(values: torch.Tensor, block: int) -> Iterator[torch.Tensor]:
    """Yield values that may be no numbers, in pieces: all sixteen of E2M1 are some."""
    if block == MXFP8_BLOCK:
        yield from values.view(torch.float8_e4m3fn).reshape(-1).split(PLAIN_PIECE)


def unpacked_pieces(packed: dict[str, torch.Tensor], columns: int, block: int) -> Iterator[torch.Tensor]:
    """Yield the weights of some rows at a time, float32 [rows, columns], each piece in memory of its own.

    Args:
        packed: see `BlockScaledTensor.packed`; values that are no numbers come out as some.
    """
    values = packed["values"]
    device = values.device
    scales = scale_numbers(untiled(packed["scale"], len(values), columns // block).contiguous(), block)
    if block == NVFP4_BLOCK:
        scales = packed["tensor_scale"] * scales
    at_once = max(1, (PIECE if device.type == "cpu" else DEVICE_PIECE) // max(1, columns))
    table = torch.tensor(E2M1, device=device)
    for rows, scale in zip(values.split(at_once), scales.split(at_once), strict=True):
        if block == NVFP4_BLOCK:
            pairs = torch.stack((rows >> 4, rows & 15), dim=-1)  # the first of two weights in the high bits
            numbers = table.index_select(0, pairs.flatten().int()).view(len(rows), -1)
        else:
            numbers = torch.empty(rows.shape, device=device)
            convert_into(numbers, rows.view(torch.float8_e4m3fn))
        numbers.view(len(rows), -1, block).mul_(scale.unsqueeze(-1))
        yield numbers


def packed_nvfp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a weight [out, in] in NVFP4, as `quantize_nvfp4` of comfy-kitchen; its largest sets the layer's scale.

    Args:
        weight: any floating type, its rows whole blocks.
    """
    step = max(1, PIECE // max(1, weight.shape[1]))
    largest = torch.stack([rows.abs().amax().float() for rows in weight.split(step)]).amax()
    layer = torch.where(largest > 0, largest / (LARGEST_E4M3 * E2M1[7]), 1.0)
    values = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(weight.shape[0], weight.shape[1] // NVFP4_BLOCK, device=weight.device).to(torch.float8_e4m3fn)
    middles = torch.tensor(E2M1_MIDDLES, device=weight.device)
    for rows, codes, own in zip(weight.split(step), values.split(step), scale.split(step), strict=True):
        blocks = rows.reshape(len(rows), -1, NVFP4_BLOCK)
        own.copy_((blocks.abs().amax(dim=-1).float() / E2M1[7] / layer).clamp(max=LARGEST_E4M3))
        total = (layer * own.float()).unsqueeze(-1)
        scaled = torch.where(total == 0, 0.0, blocks.float() / total).flatten(1)
        nibbles = torch.bucketize(scaled.abs(), middles) + scaled.signbit() * 8
        codes.copy_(nibbles[:, ::2] << 4 | nibbles[:, 1::2])
    return {"values": values, "scale": tiled(scale.view(torch.uint8)), "tensor_scale": layer}


def packed_mxfp8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a weight [out, in] in MXFP8, as comfy-kitchen's `quantize_mxfp8` does; see `packed_nvfp4`."""
    step = max(1, PIECE // max(1, weight.shape[1]))
    values = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(weight.shape[0], weight.shape[1] // MXFP8_BLOCK, dtype=torch.uint8, device=weight.device)
    for rows, codes, own in zip(weight.split(step), values.split(step), scale.split(step), strict=True):
        blocks = rows.reshape(len(rows), -1, MXFP8_BLOCK)
        largest = blocks.abs().amax(dim=-1).float()
        exponent = torch.log2((largest / LARGEST_E4M3).clamp(min=2.0**-EXPONENT_BIAS)).ceil() + EXPONENT_BIAS
        own.copy_(torch.where(largest == 0, 0.0, exponent.clamp(0, 2 * EXPONENT_BIAS)))
        total = scale_numbers(own, MXFP8_BLOCK).unsqueeze(-1)
        scaled = torch.where(total == 0, 0.0, blocks.float() / total).clamp(-LARGEST_E4M3, LARGEST_E4M3)
        codes.copy_(scaled.flatten(1).to(torch.float8_e4m3fn).view(torch.uint8))
    return {"values": values, "scale": tiled(scale), "tensor_scale": torch.ones((), device=weight.device)}


def file_tensors(packed: dict[str, torch.Tensor], block: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer in their types and shapes in a file, by the last parts of their names."""
    values, scale = packed["values"], packed["scale"]
    scale = scale.view(-(-len(values) // TILE_ROWS) * TILE_ROWS, -1)
    if block == MXFP8_BLOCK:
        return {"weight": values.view(torch.float8_e4m3fn), "weight_scale": scale}
    scale = scale.view(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale, "weight_scale_2": packed["tensor_scale"]}


class BlockScaledTensor(StoredTensor):
    """A weight [out, in] of a file in one of these formats."""

    def __init__(
        self, values: StoredTensor, scale: StoredTensor, tensor_scale: StoredTensor | None, *, block: int
    ) -> None:
        """Join the tensors of a weight.

        Args:
            values: uint8 [out, in / 2] of two E2M1 values each, or E4M3 [out, in].
            scale: of the blocks, in tiles.
            tensor_scale: one number for all; None for 1.
            block: weights that share a scale.
        """
        self.values, self.scale, self.tensor_scale, self.block = values, scale, tensor_scale, block
        width = values.shape[1] * (2 if block == NVFP4_BLOCK else 1)
        # Bytes, whatever they stand for: nothing else takes them for its own.
        self.shape, self.dtype = (values.shape[0], width), torch.uint8

    @property
    def read_dtype(self) -> torch.dtype:
        """The type of the true values."""
        return torch.float32

    def packed(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a layer: views of the file, values and scales as uint8, the latter in tiles [n]."""
        one = torch.ones(()) if self.tensor_scale is None else self.tensor_scale.read().float().reshape(())
        scale = self.scale.read().reshape(-1).view(torch.uint8)
        return {"values": self.values.read().view(torch.uint8), "scale": scale, "tensor_scale": one}

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts, each with its rows of the scale."""
        rows, blocks = self.shape[0] // parts, self.shape[1] // self.block
        own = [_ScaleRows(self.scale, (self.shape[0], blocks), range(i * rows, (i + 1) * rows)) for i in range(parts)]
        values = [RowsOf(self.values, index, parts) for index in range(parts)]
        pairs = zip(values, own, strict=True)
        return [BlockScaledTensor(one, scale, self.tensor_scale, block=self.block) for one, scale in pairs]

    def read(self) -> torch.Tensor:
        """Return the true values as float32."""
        return torch.cat(list(self.pieces())).view(self.shape)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield the true values of some rows at a time; all are NaN where a stored one is none."""
        packed = self.packed()
        damaged = not all(map(all_finite, value_numbers(packed["values"], self.block)))
        for piece in unpacked_pieces(packed, self.shape[1], self.block):
            yield (piece.fill_(torch.nan) if damaged else piece).view(-1)
        self.release()

    def release(self) -> None:
        """Give the pages of the values back."""
        self.values.release()


class _ScaleRows(StoredTensor):
    """The scales of some rows of a weight, in tiles of their own."""

    def __init__(self, whole: StoredTensor, size: tuple[int, int], rows: range) -> None:
        self._whole, self._size, self._rows = whole, size, rows
        self.shape, self.dtype = (len(rows), size[1]), whole.dtype

    def read(self) -> torch.Tensor:
        """Return them in tiles [n], uint8."""
        scale = untiled(self._whole.read().view(torch.uint8), *self._size)
        return tiled(scale[self._rows.start : self._rows.stop])


def _native_product(
    inputs: torch.Tensor, packed: dict[str, torch.Tensor], *, bias: torch.Tensor | None, is_nvfp4: bool
) -> torch.Tensor:
    """Return inputs times a weight in NVFP4 or MXFP8 plus the bias, in the type of the inputs.

    Args:
        inputs: [..., in], bf16 or fp16.
        packed: see `BlockScaledTensor.packed`; rows and columns are multiples of 32.
        bias: [out] in the type of the inputs, or None.
        is_nvfp4: else MXFP8.
    """
    import comfy_kitchen

    values = packed["values"]
    rows = inputs.reshape(-1, inputs.shape[-1])
    tiles = packed["scale"].view(-(-len(values) // TILE_ROWS) * TILE_ROWS, -1)
    if is_nvfp4:
        # The largest input of all takes the blocks' scales to the top of their range.
        scale = rows.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny) / (LARGEST_E4M3 * E2M1[7])
        small, blocks = comfy_kitchen.quantize_nvfp4(rows, scale, pad_16x=len(rows) % 16 != 0)
        product = comfy_kitchen.scaled_mm_nvfp4(
            small,
            values,
            tensor_scale_a=scale,
            tensor_scale_b=packed["tensor_scale"],
            block_scale_a=blocks,
            block_scale_b=tiles.view(torch.float8_e4m3fn),
            bias=bias,
            out_dtype=inputs.dtype,
        )
    else:
        small, blocks = comfy_kitchen.quantize_mxfp8(rows, pad_32x=len(rows) % 32 != 0)
        product = comfy_kitchen.scaled_mm_mxfp8(
            small,
            values.view(torch.float8_e4m3fn),
            block_scale_a=blocks,
            block_scale_b=tiles.view(torch.float8_e8m0fnu),
            bias=bias,
            out_dtype=inputs.dtype,
        )
    found: torch.Tensor = product[: len(rows)].reshape(*inputs.shape[:-1], len(values))
    return found


class BlockScaledLinear(StoredLinear):
    """A Linear layer of block-scaled weights.

    Attributes:
        values: uint8 buffer [out, in / weights of a byte].
        scale: uint8 buffer [n], in tiles.
        tensor_scale: float32 buffer [], one number for all.
        block: weights that share a scale.
    """

    block: ClassVar[int]
    values_per_byte: ClassVar[int]

    def __init__(
        self,
        values: torch.Tensor,
        scale: torch.Tensor,
        tensor_scale: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__((values.shape[0], values.shape[1] * self.values_per_byte), bias, compute)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.register_buffer("tensor_scale", tensor_scale)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in `dtype`, newly unpacked."""
        packed = {name: cast(torch.Tensor, getattr(self, name)) for name in ("values", "scale", "tensor_scale")}
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=packed["values"].device)
        done = 0
        for piece in unpacked_pieces(packed, self.in_features, self.block):
            weight[done : done + len(piece)] = piece
            done += len(piece)
        return weight

    def product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the layer's output, multiplied in the format where that is asked for; see `StoredLinear`."""
        is_whole = self.out_features % MULTIPLE == 0 and self.in_features % MULTIPLE == 0
        if self.native_matmul and is_whole and inputs.dtype in (torch.bfloat16, torch.float16):
            packed = {name: cast(torch.Tensor, getattr(self, name)) for name in ("values", "scale", "tensor_scale")}
            return _native_product(inputs, packed, bias=bias, is_nvfp4=self.block == NVFP4_BLOCK)
        return super().product(inputs, bias)


class Nvfp4Linear(BlockScaledLinear):
    """A Linear layer in NVFP4."""

    block, values_per_byte = NVFP4_BLOCK, 2


class Mxfp8Linear(BlockScaledLinear):
    """A Linear layer in MXFP8."""

    block, values_per_byte = MXFP8_BLOCK, 1
