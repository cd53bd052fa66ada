"""GGUF blocks: the packed types of GGUF files, and the weights they stand for, in torch.

The layouts: ggml-common.h and ggml-quants.c of ggml-org/ggml. Numbers in brackets are bytes of one block; `d` and
`m` are fp16, and weights are `d * q` or `d * q + m` unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .dtypes import NUMBER_TYPES
from .stored_tensor import PIECE

if TYPE_CHECKING:
    import torch


class BlockType(NamedTuple):
    """One type of a GGUF file.

    Attributes:
        name: as ggml has it.
        weights: in a block.
        bytes: of a block.
    """

    name: str
    weights: int
    bytes: int


# By the number in the file (enum ggml_type). Those that are not in UNPACKERS or PLAIN are known by name alone.
TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}
BY_NAME = {one.name: one for one in TYPES.values()}
PLAIN = ("F32", "F16", "BF16")  # of weights that are not packed


def stored_bytes(type_name: str, count: int) -> int:
    """Return the bytes of so many weights of a type, by its safetensors or GGUF name."""
    if type_name in NUMBER_TYPES:
        return count * NUMBER_TYPES[type_name].bytes
    kind = BY_NAME[type_name]
    return count // kind.weights * kind.bytes


# The sixteen values of IQ4, denser around zero.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Return the fp16 number at a place of each block, float32 [blocks, 1].

    Args:
        blocks: uint8 [blocks, bytes].
        start: see `HALVES`.
    """
    import torch

    # A copy: in a file without padding blocks begin at odd bytes, where no 16-bit number can be looked at.
    return blocks[:, start : start + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Return the lower halves of bytes, then the upper ones, along the last dimension."""
    import torch

    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _bits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """Return bits of bytes as 0 and 1: [blocks, bytes, count], the lowest first."""
    import torch

    return (packed.unsqueeze(-1) >> torch.arange(count, dtype=torch.uint8, device=packed.device)) & 1


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], 32 × 4 bits [16]: the lower halves of the bytes are the first 16 weights; q - 8."""
    return half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], m [2], 32 × 4 bits [16]."""
    return half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + half(blocks, 2)


def _five_bits(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    return (_nibbles(low) | (_bits(high, 8).flatten(1) << 4)).float()


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], the fifth bits [4], 32 × 4 bits [16]; q - 16."""
    return half(blocks, 0) * (_five_bits(blocks[:, 2:6], blocks[:, 6:]) - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], m [2], the fifth bits [4], 32 × 4 bits [16]."""
    return half(blocks, 0) * _five_bits(blocks[:, 4:8], blocks[:, 8:]) + half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], 32 × 8 bits [32]."""
    import torch

    return half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _two_bits(packed: torch.Tensor) -> torch.Tensor:
    """Return 4 weights of each of 64 bytes: [blocks, 2 halves, 4 places in a byte, 32]."""
    import torch

    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device).view(1, 1, 4, 1)
    return (packed.reshape(-1, 2, 1, 32) >> shifts) & 3


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 × (scale, minimum) of 4 bits [16], 256 × 2 bits [64], d [2], m [2]: d·scale·q - m·minimum."""
    scales = blocks[:, :16]
    d, m = half(blocks, 80), half(blocks, 82)
    factors, minima = (d * (scales & 15).float()).unsqueeze(2), (m * (scales >> 4).float()).unsqueeze(2)
    return (factors * _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16).float() - minima).flatten(1)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """The third bits [32], 256 × 2 bits [64], 16 scales of 6 bits [12], d [2]: d·(scale - 32)·(q - 4)."""
    import torch

    high = _bits(blocks[:, :32], 8).transpose(1, 2).reshape(-1, 2, 4, 32)
    values = (_two_bits(blocks[:, 32:96]) | (high << 2)).reshape(-1, 16, 16).float() - 4
    packed = blocks[:, 96:108]
    upper = torch.cat([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)
    scales = (_nibbles(packed[:, :8]) | (upper << 4)).float() - 32
    return ((half(blocks, 108) * scales).unsqueeze(2) * values).flatten(1)


def _scales_of_k(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 8 scales and 8 minima of 6 bits each, from 12 bytes."""
    import torch

    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales.float(), minima.float()


def _with_minima(blocks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """d [2], m [2], scales and minima [12]: d·scale·q - m·minimum, for 8 groups of 32."""
    scales, minima = _scales_of_k(blocks[:, 4:16])
    factors = (half(blocks, 0) * scales).unsqueeze(2)
    return (factors * values.float() - (half(blocks, 2) * minima).unsqueeze(2)).flatten(1)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """See `_with_minima`; 256 × 4 bits [128]: 32 bytes hold two groups, the first in their lower halves."""
    return _with_minima(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """See `_with_minima`; the fifth bits [32], one of each byte for a group; 256 × 4 bits [128]."""
    high = _bits(blocks[:, 16:48], 8).transpose(1, 2)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _with_minima(blocks, low | (high << 4))


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """256 × 4 bits [128], 256 × 2 bits [64], 16 scales of 8 bits [16], d [2]: d·scale·(q - 32)."""
    import torch

    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    values = (low | (_two_bits(blocks[:, 128:192]) << 4)).reshape(-1, 16, 16).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return ((half(blocks, 208) * scales).unsqueeze(2) * values).flatten(1)


def _iq4(packed: torch.Tensor) -> torch.Tensor:
    import torch

    values = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=packed.device)
    return values[_nibbles(packed).int()]


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], 32 places in IQ4_VALUES of 4 bits [16]."""
    return half(blocks, 0) * _iq4(blocks[:, 2:])


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    """d [2], upper bits of 8 scales [2], lower ones [4], 256 places in IQ4_VALUES [128]: d·(scale - 32)·value."""
    import torch

    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    upper = ((blocks[:, 2:4].unsqueeze(2) >> shifts) & 3).flatten(1)
    packed = blocks[:, 4:8]
    lower = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)
    factors = half(blocks, 0) * ((lower | (upper << 4)).float() - 32)
    return (factors.unsqueeze(2) * _iq4(blocks[:, 8:].reshape(-1, 8, 16))).flatten(1)


# Where the fp16 numbers of a block are: all that can be no number in it.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
# {type: from blocks, uint8 [blocks, bytes], to weights, float32 [blocks, weights]}
UNPACKERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


DEVICE_PIECE = 1 << 22  # weights that a card unpacks at a time: enough to keep it busy, and little beside a layer


def unpack_into(weight: torch.Tensor, packed: torch.Tensor, type_name: str) -> None:
    """Unpack blocks into a contiguous tensor of any floating type, on the device of both; each is rounded to it once.

    Args:
        weight: any shape.
        packed: uint8, the bytes of as many blocks as that takes.
        type_name: a key of `UNPACKERS`.
    """
    kind, unpack = BY_NAME[type_name], UNPACKERS[type_name]
    at_once = (PIECE if packed.device.type == "cpu" else DEVICE_PIECE) // kind.weights
    targets = weight.view(-1, kind.weights).split(at_once)
    for target, blocks in zip(targets, packed.view(-1, kind.bytes).split(at_once), strict=True):
        target.copy_(unpack(blocks))
