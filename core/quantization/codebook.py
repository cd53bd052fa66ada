"""Weight formats of 4 bits, each one of 16 levels: ComfyUI's INT4 and W4A8, which are rotated, bitsandbytes' NF4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import clipped
from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..files.gguf_blocks import DEVICE_PIECE
from ..files.stored_tensor import PLAIN_PIECE
from .base import WeightFormat
from .int8 import GROUP, why_not_rotated

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.stored_tensor import StoredTensor
    from .base import Packed
    from .codebook_linear import CodebookLinear

# What files declare them as.
INT4, W4A8, NF4 = "convrot_w4a4", "asym_w4a8_int8", "bitsandbytes_nf4"
LEVELS = 16
LEVEL_BYTES = LEVELS * 4
# Bytes for each weight of a piece while it is unpacked: codes as bytes and as indices, and the numbers in fp32.
UNPACKING_BYTES = 12
UNPACKING_TRAFFIC = 20  # bytes for each weight that the operations of unpacking read and write, counted
W4A8_GROUP = 16  # weights that share a scale, where a file does not say how many
NF4_BLOCK = 64


class Codebook(WeightFormat):
    """Two weights a byte, each one of 16 levels times a scale.

    Attributes:
        block: weights that share a scale; 0 for those of a row.
        scale_bytes: of a scale.
        first_scale: the name of the scales that tell these weights from other bytes.
    """

    block: ClassVar[int] = 0
    scale_bytes: ClassVar[int] = 4
    first_scale: ClassVar[str]
    file_names = {"values": "weight"}
    rounding_error = 0.0  # what the file has is computed with
    can_cast = False
    declared_only = True

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor is bytes with the format's scales beside them."""
        return types[name] == "U8" and f"{name.rpartition('.')[0]}.{self.first_scale}" in types

    def meaning(self, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return the name of values with their scales, and the shape of the weights."""
        return self.number_types[0], (*shape[:-1], shape[-1] * 2) if shape else shape

    def why_unreadable(self, declared: Mapping[str, Any], shape: Sequence[int]) -> str:
        """Return why a weight's groups cannot be rotated back."""
        return why_not_rotated(declared.get("convrot_groupsize", GROUP), (*shape[:-1], shape[-1] * 2))

    def bytes(self, weights: int, rows: int) -> int:
        """Return the bytes of the values, the scales, and the levels of one layer."""
        scales = weights // self.block if self.block else rows
        return weights // 2 + scales * self.scale_bytes + LEVEL_BYTES

    def divides(self, number_type: str, width: int) -> bool:
        """Return whether rows are whole blocks."""
        return width % (self.block or 2) == 0

    def unpacked_bytes(self, weights: int, compute: str) -> int:
        """Return the bytes of the whole weight, and of what one piece takes on the way."""
        return weights * BYTES_BY_SHORT_NAME[compute] + min(weights, DEVICE_PIECE) * UNPACKING_BYTES

    def unpacking_traffic(self, weights: int, compute: str) -> int:
        """Return the bytes of the weights in the type computed in, twice, and of the numbers in between."""
        return super().unpacking_traffic(weights, compute) + weights * UNPACKING_TRAFFIC

    def holds(self, stored: StoredTensor) -> bool:
        """Return whether a tensor is in this format."""
        from .codebook_linear import CodebookTensor

        return isinstance(stored, CodebookTensor) and stored.format == self.name

    def from_stored(self, stored: StoredTensor) -> Packed:
        """Return values, levels and scales as they are in the file."""
        from .codebook_linear import CodebookTensor

        assert isinstance(stored, CodebookTensor)
        return stored.packed()

    def numbers(self, packed: Packed) -> Iterator[torch.Tensor]:
        """Yield levels and scales."""
        from .codebook_linear import scale_numbers

        yield packed["levels"]
        for scales in packed["scale"].reshape(-1).split(PLAIN_PIECE):
            yield scale_numbers(scales)
        if packed["channel"].numel():
            yield packed["channel"]

    def sample(self, weight: torch.Tensor) -> Packed:
        """Return a layer of zeros of that size."""
        import torch

        rows, columns = weight.shape
        scale = torch.zeros(rows, columns // self.block if self.block else 1)
        packed_scales = self.scale_bytes == 1
        return {
            "values": torch.zeros(rows, columns // 2, dtype=torch.uint8),
            "levels": torch.zeros(LEVELS),
            "scale": scale.to(torch.uint8) if packed_scales else scale,
            "channel": torch.ones(rows, 1) if packed_scales else torch.empty(0, 1),
            "group": torch.tensor(0),
        }

    def layer_class(self) -> type[CodebookLinear]:
        """Return the class of the layer."""
        from .codebook_linear import LAYERS

        return LAYERS[self.name]

    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return a layer of `layer_class`."""
        return self.layer_class()(packed, bias=bias, compute=compute)


class Int4(Codebook):
    """Whole numbers from -8 to 7 with a scale for each row, rotated (ComfyUI's int4-convrot)."""

    name = "int4"
    title = "INT4"
    readable = "int4 (convrot)"
    number_types = ("INT4",)
    declarations = {INT4: "U8"}
    scales = ("weight_row_scale",)
    first_scale = "weight_row_scale"
    errors = {"INT4": 0.1467}

    def takes_scale(self, name: str, weight: Sequence[int], scale: Sequence[int]) -> bool:
        """Return whether there is one for each row."""
        return len(weight) == 2 and prod(scale) == weight[0]

    def joined(
        self, weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]
    ) -> StoredTensor:
        """Return a weight with its scale and the size of its rotated groups."""
        from .codebook_linear import CodebookTensor

        group = declared.get("convrot_groupsize", GROUP)
        return CodebookTensor(self.name, weight, beside["weight_row_scale"], group=group)


class W4a8(Codebook):
    """Levels of a table times E4M3 scales of 16 weights, rounded to whole numbers of 8 bits, which each row scales."""

    name = "w4a8"
    title = "W4A8"
    readable = "w4a8 (4 bits)"
    number_types = ("W4A8",)
    declarations = {W4A8: "U8"}
    scales = ("weight_s_rel", "weight_s_channel", "weight_codebook")
    first_scale = "weight_s_rel"
    block, scale_bytes = W4A8_GROUP, 1
    errors = {"W4A8": 0.073}

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor is bytes with both kinds of scales beside them."""
        return super().recognises(name, types) and f"{name.rpartition('.')[0]}.weight_s_channel" in types

    def bytes(self, weights: int, rows: int) -> int:
        """Return the bytes of the values, of both kinds of scales, and of the levels of one layer."""
        return super().bytes(weights, rows) + rows * BYTES_BY_SHORT_NAME["fp32"]

    def takes_scale(self, name: str, weight: Sequence[int], scale: Sequence[int]) -> bool:
        """Return whether a scale is that of all groups, of all rows, or the table of levels."""
        if len(weight) != 2:
            return False
        if name == "weight_codebook":
            return prod(scale) == LEVELS
        if name == "weight_s_channel":
            return prod(scale) == weight[0]
        columns = weight[1] * 2
        return len(scale) == 2 and scale[0] == weight[0] and 0 < scale[1] <= columns and columns % scale[1] == 0

    def joined(
        self, weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]
    ) -> StoredTensor:
        """Return a weight with its scales, its levels, and the size of its rotated groups."""
        from .codebook_linear import CodebookTensor

        return CodebookTensor(
            self.name,
            weight,
            beside["weight_s_rel"],
            levels=beside.get("weight_codebook"),
            channel=beside["weight_s_channel"],
            group=declared.get("convrot_groupsize", GROUP),
        )


class Nf4(Codebook):
    """Levels of a table times a scale for 64 weights of a row, as bitsandbytes writes them, nested or not."""

    name = "nf4"
    title = "NF4"
    readable = "nf4 (bitsandbytes)"
    number_types = ("NF4",)
    declarations = {NF4: "U8"}
    scales = ("weight_absmax", "weight_quant_map", "weight_nested_absmax", "weight_nested_quant_map")
    first_scale = "weight_absmax"
    block = NF4_BLOCK
    errors = {"NF4": 0.092}

    def takes_scale(self, name: str, weight: Sequence[int], scale: Sequence[int]) -> bool:
        """Return True: `foreign_layouts` has judged them by what the file says of each weight."""
        return True

    def why_unreadable(self, declared: Mapping[str, Any], shape: Sequence[int]) -> str:
        """Return that a weight without its table of levels is not read."""
        return "" if len(shape) == 2 else f"of shape {clipped(str(list(shape)), 40)}"

    def joined(
        self, weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]
    ) -> StoredTensor:
        """Return a weight with its levels and the scales of its blocks, unpacked where they are packed themselves."""
        from .codebook_linear import CodebookTensor, nf4_scales

        scales = nf4_scales(weight, beside, declared)
        return CodebookTensor(self.name, weight, scales, levels=beside["weight_quant_map"])
