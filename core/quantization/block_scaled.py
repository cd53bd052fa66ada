"""Weight formats NVFP4 and MXFP8: neighbouring weights of a row share a scale of one byte, as ComfyUI writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..files.gguf_blocks import DEVICE_PIECE
from ..files.stored_tensor import PLAIN_PIECE
from .base import WeightFormat
from .scaled_tensor import MXFP8_BLOCK, NVFP4_BLOCK, TILE_ROWS, tiled_size

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.stored_tensor import StoredTensor
    from .base import Packed
    from .block_scaled_linear import BlockScaledLinear
    from .kernels import MatmulKernel

TENSOR_SCALE_BYTES = 4
# Bytes for each weight of a piece while it is unpacked: indices, the numbers in fp32, and those before scaling.
UNPACKING_BYTES = 12
UNPACKING_TRAFFIC = 20  # bytes for each weight that the operations of unpacking read and write, counted


class BlockScaled(WeightFormat):
    """Values with a scale for each block of neighbouring inputs, in the order of cuBLAS's tiles.

    Others keep the scales row by row, or the values in another order: only what a file declares is read.

    Attributes:
        block: weights that share a scale.
        values_per_byte: of the stored values.
        value_type: the safetensors name of the stored values' type; `number_types` has a name for them with their
            scales, which no header has.
        scale_type: the same of the blocks' scales.
    """

    block: ClassVar[int]
    values_per_byte: ClassVar[int]
    value_type: ClassVar[str]
    scale_type: ClassVar[str]
    file_names = {"values": "weight", "scale": "weight_scale", "tensor_scale": "weight_scale_2"}
    rounding_error = 0.0  # what the file has is computed with
    can_cast = False
    declared_only = True

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor has values of the type, with all scales beside it."""
        layer = name.rpartition(".")[0]
        has_scales = all(f"{layer}.{scale}" in types for scale in self.scales)
        return types[name] == self.value_type and has_scales and types[f"{layer}.weight_scale"] == self.scale_type

    def meaning(self, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return the name of values with their scales, and the shape of the weights."""
        return self.number_types[0], (*shape[:-1], shape[-1] * self.values_per_byte) if shape else shape

    def takes_scale(self, name: str, weight: Sequence[int], scale: Sequence[int]) -> bool:
        """Return whether a scale is one number, or those of all blocks in whole tiles."""
        if name != "weight_scale":
            return prod(scale) == 1
        if len(weight) != 2:
            return False
        columns = weight[1] * self.values_per_byte
        return columns % self.block == 0 and prod(scale) == tiled_size(weight[0], columns // self.block)

    def bytes(self, weights: int, rows: int) -> int:
        """Return the bytes of the values and of the scales in whole tiles."""
        blocks = weights // max(1, rows) // self.block
        return weights // self.values_per_byte + tiled_size(rows, blocks) + TENSOR_SCALE_BYTES

    def divides(self, number_type: str, width: int) -> bool:
        """Return whether rows are whole blocks."""
        return width % self.block == 0

    def unpacked_bytes(self, weights: int, compute: str) -> int:
        """Return the bytes of the whole weight, of its scales in fp32, and of what one piece takes on the way."""
        scales = weights // self.block * (BYTES_BY_SHORT_NAME["fp32"] + 1)
        return weights * BYTES_BY_SHORT_NAME[compute] + scales + min(weights, DEVICE_PIECE) * UNPACKING_BYTES

    def unpacking_traffic(self, weights: int, compute: str) -> int:
        """Return the bytes of the weights in the type computed in, twice, and of the numbers in between."""
        return super().unpacking_traffic(weights, compute) + weights * UNPACKING_TRAFFIC

    def holds(self, stored: StoredTensor) -> bool:
        """Return whether a tensor is one of these blocks."""
        from .block_scaled_linear import BlockScaledTensor

        return isinstance(stored, BlockScaledTensor) and stored.block == self.block

    def from_stored(self, stored: StoredTensor) -> Packed:
        """Return values and scales as they are in the file."""
        from .block_scaled_linear import BlockScaledTensor

        assert isinstance(stored, BlockScaledTensor)
        return stored.packed()

    def numbers(self, packed: Packed) -> Iterator[torch.Tensor]:
        """Yield the scales, and the values where some stand for no number."""
        from .block_scaled_linear import scale_numbers, value_numbers

        for scales in packed["scale"].view(-1).split(PLAIN_PIECE):
            yield scale_numbers(scales, self.block)
        yield packed["tensor_scale"]
        yield from value_numbers(packed["values"], self.block)

    def why_dense(self, shape: Sequence[int], target: str) -> str:
        """Return that rows which are no whole blocks are not written in them."""
        return f"its rows are no whole blocks of {self.block}" if shape[-1] % self.block else ""

    def file_tensors(self, packed: Packed) -> Packed:
        """Return the tensors in their types and shapes in a file."""
        from .block_scaled_linear import file_tensors

        return file_tensors(packed, self.block)

    def rows(self, packed: Packed, part: slice) -> Packed:
        """Return some rows, with the tiles that have their scales."""
        values = packed["values"][part]
        tiles = packed["scale"].view(-(-len(packed["values"]) // TILE_ROWS), -1)
        scale = tiles[part.start // TILE_ROWS : -(-(part.start + len(values)) // TILE_ROWS)].flatten()
        return {"values": values, "scale": scale, "tensor_scale": packed["tensor_scale"]}

    def joined(
        self, weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]
    ) -> StoredTensor:
        """Return a weight with its scales: those of the blocks and, where the format has one, the layer's."""
        from .block_scaled_linear import BlockScaledTensor

        blocks, *layer = (beside[name] for name in self.scales)
        return BlockScaledTensor(weight, blocks, layer[0] if layer else None, block=self.block)

    def sample(self, weight: torch.Tensor) -> Packed:
        """Return a layer of zeros of that size."""
        import torch

        rows, columns = weight.shape
        values = torch.zeros(rows, columns // self.values_per_byte, dtype=torch.uint8)
        scale = torch.zeros(tiled_size(rows, columns // self.block), dtype=torch.uint8)
        return {"values": values, "scale": scale, "tensor_scale": torch.ones(())}

    def layer_class(self) -> type[BlockScaledLinear]:
        """Return the class of the layer."""
        from .block_scaled_linear import Mxfp8Linear, Nvfp4Linear

        return Nvfp4Linear if self.values_per_byte == 2 else Mxfp8Linear

    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return a layer of `layer_class`."""
        return self.layer_class()(
            packed["values"], packed["scale"], packed["tensor_scale"], bias=bias, compute=compute
        )


class Nvfp4(BlockScaled):
    """Two E2M1 values a byte, E4M3 scales of 16 weights, and one float32 scale for the layer."""

    name = "nvfp4"
    title = "NVFP4"
    readable = "nvfp4 (ComfyUI's)"
    number_types = ("NVFP4",)
    declarations = {"nvfp4": "U8"}
    targets = ("nvfp4",)
    declared_as = "nvfp4"
    scales = ("weight_scale", "weight_scale_2")
    errors = {"NVFP4": 0.0951}
    block, values_per_byte, value_type, scale_type = NVFP4_BLOCK, 2, "U8", "F8_E4M3"

    @property
    def kernel(self) -> MatmulKernel:
        """That of Blackwell."""
        from .kernels import BLOCK_SCALED_CORES, HALF, KITCHEN, MatmulKernel

        return MatmulKernel(KITCHEN, "scaled_mm_nvfp4", computes=HALF, first=BLOCK_SCALED_CORES, speedup=4.0)

    def for_file(self, weight: torch.Tensor, target: str) -> Packed:
        """Return what comfy-kitchen makes of a weight."""
        from .block_scaled_linear import packed_nvfp4

        return packed_nvfp4(weight.detach())


class Mxfp8(BlockScaled):
    """E4M3 values and scales of 32 weights that are powers of 2 (E8M0, in a file bytes)."""

    name = "mxfp8"
    title = "MXFP8"
    readable = "mxfp8 (ComfyUI's)"
    number_types = ("MXFP8",)
    declarations = {"mxfp8": "F8_E4M3"}
    targets = ("mxfp8",)
    declared_as = "mxfp8"
    scales = ("weight_scale",)
    errors = {"MXFP8": 0.0266}
    block, values_per_byte, value_type, scale_type = MXFP8_BLOCK, 1, "F8_E4M3", "U8"

    @property
    def kernel(self) -> MatmulKernel:
        """That of Blackwell."""
        from .kernels import BLOCK_SCALED_CORES, HALF, KITCHEN, MatmulKernel

        return MatmulKernel(KITCHEN, "scaled_mm_mxfp8", computes=HALF, first=BLOCK_SCALED_CORES, speedup=2.0)

    def for_file(self, weight: torch.Tensor, target: str) -> Packed:
        """Return what comfy-kitchen makes of a weight."""
        from .block_scaled_linear import packed_mxfp8

        return packed_mxfp8(weight.detach())
