"""Number types: their names in files, in torch and for people, and their sizes. One table for all of the pack."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class NumberType(NamedTuple):
    """One number type.

    Attributes:
        name: in the safetensors format.
        bytes: of one number.
        torch_name: its attribute of torch; "" for types that are not read here.
        short: for people, on widgets and in plans; "" where it is none of weights.
        held_as: the short name of the type that weights of this type are unpacked to.
    """

    name: str
    bytes: int
    torch_name: str = ""
    short: str = ""
    held_as: str = "fp32"


NUMBER_TYPES = {
    one.name: one
    for one in (
        NumberType("BOOL", 1, "bool"),
        NumberType("U8", 1, "uint8"),
        NumberType("I8", 1, "int8"),
        NumberType("F8_E5M2", 1, "float8_e5m2", "fp8 e5m2"),
        NumberType("F8_E4M3", 1, "float8_e4m3fn", "fp8"),
        NumberType("F8_E8M0", 1),
        NumberType("I16", 2, "int16"),
        NumberType("U16", 2),
        NumberType("F16", 2, "float16", "fp16", "fp16"),
        NumberType("BF16", 2, "bfloat16", "bf16", "bf16"),
        NumberType("I32", 4, "int32"),
        NumberType("U32", 4),
        NumberType("F32", 4, "float32", "fp32", "fp32"),
        NumberType("I64", 8, "int64"),
        NumberType("U64", 8),
        NumberType("F64", 8, "float64"),
        NumberType("C64", 8),
    )
}
WHOLE_NUMBERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # by their names in a file
BYTES_BY_SHORT_NAME = {one.short: one.bytes for one in NUMBER_TYPES.values() if one.short}


def is_readable(name: str) -> bool:
    """Return whether torch has the type of this safetensors name, and tensors of it are read."""
    return name in NUMBER_TYPES and bool(NUMBER_TYPES[name].torch_name)


def short_name(name: str) -> str:
    """Return what people call a type by its name in a file: "bf16"; the name itself where they call it so."""
    known = NUMBER_TYPES.get(name)
    return known.short if known is not None and known.short else name


def held_as(name: str) -> str:
    """Return the short name of what weights of a type are held as: fp32 for all that is unpacked or unusual."""
    return NUMBER_TYPES[name].held_as if name in NUMBER_TYPES else "fp32"


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type of a safetensors name that `is_readable`, or of a short name such as "bf16"."""
    import torch

    by_short_name = next((one for one in NUMBER_TYPES.values() if one.short == name), None)
    dtype: torch.dtype = getattr(torch, (by_short_name or NUMBER_TYPES[name]).torch_name)
    return dtype


@cache
def safetensors_names() -> dict[torch.dtype, str]:
    """Return the safetensors names of the torch types that are read."""
    return {torch_dtype(name): name for name in NUMBER_TYPES if is_readable(name)}


def convert_into(target: torch.Tensor, numbers: torch.Tensor) -> None:
    """Copy finite numbers into a tensor of the same shape and any floating type, as `target.copy_(numbers)` does.

    On a processor torch converts e4m3 one number at a time. Its bits, moved one place past the sign, are those of an
    fp16 number that is 256 times smaller, subnormal ones included: that is several times as fast. The two patterns
    that are no numbers come out as 480 and -480.
    """
    import torch

    if numbers.dtype != torch.float8_e4m3fn or numbers.device.type != "cpu":
        target.copy_(numbers)
        return
    bits = numbers.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)  # the sign is in bits 14 and 15 now
    target.copy_(bits.bitwise_and_(~(1 << 14)).view(torch.float16)).mul_(256)


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor of any number type is without infinities and NaN; no copy of it is made."""
    import torch

    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # its two NaNs are the bytes 0x7f and 0xff
        return bool(tensor.view(torch.int8).amax() < 0x7F and tensor.view(torch.uint8).amax() < 0xFF)
    # torch finds no extremes of float8; e5m2 is fp16 with fewer bits.
    least, most = torch.aminmax(tensor.to(torch.float16) if tensor.dtype == torch.float8_e5m2 else tensor)
    return bool(torch.isfinite(least) and torch.isfinite(most))


def largest_number(tensor: torch.Tensor) -> float:
    """Return the largest magnitude in a tensor of any number type; 0 for an empty one."""
    import torch

    if not tensor.numel():
        return 0.0
    # torch finds no extremes of float8, which fp16 holds exactly, but for e4m3's.
    least, most = torch.aminmax(tensor.to(torch.float16) if tensor.dtype.itemsize == 1 else tensor)
    return max(-float(least), float(most))
