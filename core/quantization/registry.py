"""Weight formats by name: the one place that lists them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..files.dtypes import held_as
from .base import WeightFormat
from .block_scaled import Mxfp8, Nvfp4
from .codebook import Int4, Nf4, W4a8
from .fp8 import Fp8
from .gguf import Gguf
from .int8 import Int8

# In the order in which a plan considers them.
FORMATS: dict[str, WeightFormat] = {
    one.name: one for one in (Fp8(), Int8(), Gguf(), Mxfp8(), Nvfp4(), Int4(), W4a8(), Nf4())
}


def weight_format(name: str | None) -> WeightFormat | None:
    """Return the format of that name; None for a plain number type such as "bf16"."""
    return None if name is None else FORMATS.get(name)


def recognised_format(name: str, types: Mapping[str, str]) -> WeightFormat | None:
    """Return the format of one tensor of a file, see `WeightFormat.recognises`; None for a plain one."""
    return next((one for one in FORMATS.values() if one.recognises(name, types)), None)


def stored_type(number_type: str) -> str:
    """Return what weights of a type in a file count as: the name of a format, or "bf16", "fp16", "fp32".

    Args:
        number_type: a safetensors or GGUF name.
    """
    found = next((one.name for one in FORMATS.values() if number_type in one.number_types), None)
    return found or held_as(number_type)


def scale_names() -> tuple[str, ...]:
    """Return the last parts of the names of tensors that scale a weight, in any format."""
    return tuple(dict.fromkeys(name for one in FORMATS.values() for name in one.scales))


def storable_on(device: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of those formats, and all of those plain types, that a device can hold."""
    kind = device.partition(":")[0]
    found = ((name, weight_format(name)) for name in names)
    return tuple(name for name, one in found if one is None or kind not in one.unsupported_devices)
