"""Weight format GGUF: the packed blocks of GGUF files, as they are in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..files.gguf_blocks import BY_NAME, DEVICE_PIECE, HALVES, TYPES, UNPACKERS, half, stored_bytes
from ..files.stored_tensor import PIECE
from .base import WeightFormat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.stored_tensor import StoredTensor
    from .base import Packed
    from .gguf_linear import GgufLinear

# Bytes for each weight of a piece while it is unpacked, from live tensors of Q5_K, which takes most.
UNPACKING_BYTES = 12
# Bytes for each weight that the operations of Q4_K read and write, counted: pieces of many fit no cache of a card.
UNPACKING_TRAFFIC = 40
SAMPLED = "Q4_K"  # the type that most files for small cards have
NUMBERS = {one.name: number for number, one in TYPES.items()}


class Gguf(WeightFormat):
    """Blocks of 32 or 256 weights in 2 to 8 bits with scales of their own; a file mixes several types of them."""

    name = "gguf"
    title = "GGUF"
    readable = "GGUF"
    number_types = tuple(UNPACKERS)
    file_names = {"blocks": "weight"}
    # Of the types with 256 weights a block with the best scales that a search of ours finds for each 32, or 16.
    errors = {"Q8_0": 0.0054, "Q6_K": 0.0173, "Q5_K": 0.0356, "Q4_K": 0.0711, "Q4_0": 0.086}
    rounding_error = 0.0  # what the file has is computed with
    can_cast = False
    targets = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0")

    def bytes(self, weights: int, rows: int) -> int:
        """Return the bytes of weights in the type `SAMPLED`, where no file says which."""
        return stored_bytes(SAMPLED, weights)

    def stored_bytes(self, number_type: str, weights: int, rows: int) -> int:
        """Return the bytes of the blocks."""
        return stored_bytes(number_type, weights)

    def divides(self, number_type: str, width: int) -> bool:
        """Return whether rows are whole blocks."""
        return width % BY_NAME[number_type].weights == 0

    def unpacked_bytes(self, weights: int, compute: str) -> int:
        """Return the bytes of the whole weight, and of what one piece takes on the way."""
        return weights * BYTES_BY_SHORT_NAME[compute] + min(weights, DEVICE_PIECE) * UNPACKING_BYTES

    def unpacking_traffic(self, weights: int, compute: str) -> int:
        """Return the bytes of the weights in the type computed in, twice, and of the numbers in between."""
        return super().unpacking_traffic(weights, compute) + weights * UNPACKING_TRAFFIC

    def holds(self, stored: StoredTensor) -> bool:
        """Return whether a tensor is a packed matrix of a GGUF file."""
        from ..files.gguf_file import GgufTensor

        return isinstance(stored, GgufTensor) and stored.is_packed_matrix

    def from_stored(self, stored: StoredTensor) -> Packed:
        """Return the blocks, a view of the file, and the number of their type."""
        import torch

        from ..files.gguf_file import GgufTensor

        assert isinstance(stored, GgufTensor)
        return {"blocks": stored.packed(), "kind": torch.tensor(NUMBERS[stored.kind])}

    def numbers(self, packed: Packed) -> Iterator[torch.Tensor]:
        """Yield the fp16 scales of the blocks."""
        kind = TYPES[int(packed["kind"])]
        for blocks in packed["blocks"].view(-1, kind.bytes).split(PIECE // kind.weights):
            yield from (half(blocks, start) for start in HALVES[kind.name])

    def for_file(self, weight: torch.Tensor, target: str) -> Packed:
        """Return blocks of the type of that name."""
        import torch

        from ..files.gguf_packing import packed

        kind = target.upper()
        return {"blocks": packed(weight.detach(), kind), "kind": torch.tensor(NUMBERS[kind])}

    def why_dense(self, shape: Sequence[int], target: str) -> str:
        """Return that rows which are no whole blocks are not written in them."""
        size = BY_NAME[target.upper()].weights
        return f"its rows are no whole blocks of {size}" if shape[-1] % size else ""

    def sample(self, weight: torch.Tensor) -> Packed:
        """Return blocks of that many weights whose scales are 1."""
        import torch

        kind = BY_NAME[SAMPLED]
        blocks = torch.zeros(weight.shape[0], weight.shape[1] // kind.weights, kind.bytes, dtype=torch.uint8)
        blocks[..., HALVES[SAMPLED][0] : HALVES[SAMPLED][0] + 2] = torch.ones(1, dtype=torch.half).view(torch.uint8)
        return {"blocks": blocks.flatten(1), "kind": torch.tensor(NUMBERS[SAMPLED])}

    def layer_class(self) -> type[GgufLinear]:
        """Return `GgufLinear`."""
        from .gguf_linear import GgufLinear

        return GgufLinear

    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return a `GgufLinear`."""
        return self.layer_class()(packed["blocks"], TYPES[int(packed["kind"])].name, bias, compute)
