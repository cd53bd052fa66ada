"""Scaled tensors of files: values in few bits whose true numbers are a scale times them.

Headers are judged here too, so that torch is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

from ..errors import PiyingError
from ..files.dtypes import all_finite, convert_into
from ..files.stored_tensor import PIECE, StoredTensor

if TYPE_CHECKING:
    import torch

SQUARE = 128  # side of the squares that share a scale in DeepSeek's layout (weight_block_size)
# cuBLAS keeps block scales in tiles of so many rows and columns, filled up with zeros at the borders.
TILE_ROWS, TILE_COLUMNS = 128, 4
NVFP4_BLOCK, MXFP8_BLOCK = 16, 32  # weights that share a scale


def tiled_size(rows: int, blocks: int) -> int:
    """Return how many scales a weight has in whole tiles."""
    return -(-rows // TILE_ROWS) * TILE_ROWS * (-(-blocks // TILE_COLUMNS) * TILE_COLUMNS)


def takes_scale(weight: Sequence[int], scale: Sequence[int]) -> bool:
    """Return whether a weight of one shape can have a scale of another; see `ScaledTensor`."""
    numbers = prod(scale)
    if len(weight) != 2 or not numbers:
        return False
    rows, columns = weight
    if numbers == 1:
        return True
    blocks = numbers // scale[0]
    if scale[0] in (1, rows) and columns % blocks == 0:
        return True
    # The width is in whole squares, or in one that is cut.
    return scale[0] == -(-rows // SQUARE) and blocks == -(-columns // SQUARE) and columns % blocks == 0


def quantize(
    weight: torch.Tensor, dtype: torch.dtype, largest: float, of_layer: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [out, in] and their float32 scale [out, 1]; `dequantize` gives the weights back.

    Args:
        weight: [out, in], any floating type, finite.
        dtype: of the values, float8 or a whole number.
        largest: what the largest weight of each output channel becomes.
        of_layer: whether all channels have the scale of the largest of them.
    """
    import torch

    values = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
    step = max(1, PIECE // max(1, weight.shape[1]))
    of_all = (
        torch.stack([rows.abs().amax().float() for rows in weight.detach().split(step)]).amax() if of_layer else None
    )
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        rows = weight.detach()[part].float()
        extremes = rows.abs().amax(dim=1, keepdim=True) if of_all is None else of_all
        scale[part] = torch.where(extremes > 0, extremes / largest, 1.0)
        rows = (rows / scale[part]).clamp_(-largest, largest)
        values[part] = rows if dtype.is_floating_point else rows.round_()  # a cast to whole numbers cuts
    return values, scale


def dequantize(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [out, in] in `dtype`; the products are rounded to it once.

    Args:
        values: [out, in], any float8 or integer type, finite.
        scale: float32 [out, blocks]; each covers in / blocks neighbouring weights of its row.
    """
    import torch

    if values.device.type != "cpu":
        return _scaled(values, scale, values.to(dtype))
    weight = torch.empty(values.shape, dtype=dtype)
    rows = max(1, PIECE // max(1, values.shape[1]))
    for part in zip(values.split(rows), scale.split(rows), weight.split(rows), strict=True):
        convert_into(part[2], part[0])
        _scaled(*part)
    return weight


def _scaled(values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    blocks = scale.shape[1]
    # In place into a 16-bit weight, torch still multiplies by the scale in float32: in fp16 many
    # scales lie among the subnormals.
    weight.view(rows, blocks, columns // blocks).mul_(scale.unsqueeze(-1))
    return weight


class ScaledTensor(StoredTensor):
    """A weight [out, in] whose true values are `values * scale`.

    The scale is one number, one per output channel [out] or [out, 1], or one per block of neighbouring
    inputs, [out, blocks] or [out, blocks, 1]. DeepSeek's layout of 128 × 128 squares is
    [out / 128, in / 128].
    """

    def __init__(self, values: StoredTensor, scale: StoredTensor) -> None:
        self.values, self.scale = values, scale
        self.shape, self.dtype = values.shape, values.dtype

    @property
    def read_dtype(self) -> torch.dtype:
        """The type of the true values."""
        import torch

        return torch.float32

    def scale_blocks(self) -> torch.Tensor:
        """Return the scale as float32 [out, blocks]."""
        rows = self.shape[0]
        scale = self.scale.read().float()
        scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(scale.shape[0], -1)
        repeat = 1 if scale.shape[0] == rows else rows if scale.shape[0] == 1 else SQUARE
        return scale.repeat_interleave(repeat, dim=0)[:rows].contiguous()

    def split(self, parts: int) -> list[StoredTensor]:
        """Return the rows in equal parts, each with its rows of the scale."""
        shape = self.scale.shape
        shared = prod(shape) == 1 or shape[0] == 1
        if not shared and shape[0] != self.shape[0] and self.shape[0] % (SQUARE * parts):
            raise PiyingError(f"its {self.shape[0]} rows have scales by {SQUARE}, which do not part into {parts}.")
        scales = [self.scale] * parts if shared else self.scale.split(parts)
        return [ScaledTensor(values, scale) for values, scale in zip(self.values.split(parts), scales, strict=True)]

    def read(self) -> torch.Tensor:
        """Return the true values as float32."""
        return self._true(self.values.read(), self.scale_blocks())

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield the true values of some rows at a time."""
        rows = max(1, PIECE // max(1, self.shape[1]))
        for values, scale in zip(self.values.read().split(rows), self.scale_blocks().split(rows), strict=True):
            yield self._true(values, scale).reshape(-1)
        self.release()

    def _true(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        import torch

        # What is no number has to come out as none, for those who look at the result.
        plain = values.is_floating_point() and not all_finite(values)
        return _scaled(values, scale, values.float()) if plain else dequantize(values, scale, torch.float32)

    def release(self) -> None:
        """Give the pages of the values back."""
        self.values.release()
