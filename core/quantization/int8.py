"""Weight format INT8: one byte a weight and one float32 scale for each output channel, rotated in groups or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import clipped
from .base import WeightFormat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.stored_tensor import StoredTensor
    from .base import Packed
    from .int8_linear import Int8Linear

SCALE_BYTES = 4  # float32
GROUP = 256  # of inputs that are rotated together, where a file does not say how many


class Int8(WeightFormat):
    """Whole numbers from -127 to 127; ComfyUI's int8_tensorwise files may hold them rotated (ConvRot)."""

    name = "int8"
    title = "INT8"
    readable = "int8 (scaled, convrot)"
    number_types = ("I8",)
    declarations = {"int8_tensorwise": "I8"}
    scales = ("weight_scale",)
    file_names = {"values": "weight", "scale": "weight_scale"}
    target = "int8"
    declared_as = "int8_tensorwise"
    errors = {"I8": 0.0081}
    rounding_error = 0.0081  # measured on 1536 × 1536 weights; tests/core/test_weight_formats.py holds it to theory

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor is int8 with a scale beside it."""
        return types[name] == "I8" and f"{name}_scale" in types

    def bytes(self, weights: int, rows: int) -> int:
        """Return a byte for each weight, and its scale for each row."""
        return weights + rows * SCALE_BYTES

    def why_unreadable(self, declared: Mapping[str, Any], shape: Sequence[int]) -> str:
        """Return why a weight's groups cannot be rotated back."""
        if not declared.get("convrot"):
            return ""
        group = declared.get("convrot_groupsize", GROUP)
        # A regular Hadamard matrix made of those of 4 × 4.
        is_size = type(group) is int and group >= 4 and group.bit_count() == 1 and group.bit_length() % 2 == 1
        if is_size and len(shape) == 2 and shape[1] % group == 0:
            return ""
        inputs = clipped(str(group), 20)
        return f"rotated in groups of {inputs} inputs; groups are a power of 4 that divides {list(shape)[1:]}"

    def joined(
        self, weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]
    ) -> StoredTensor:
        """Return a weight with its scale and the size of its rotated groups."""
        from .int8_linear import RotatedTensor
        from .scaled_tensor import ScaledTensor

        found = super().joined(weight, beside, declared)
        if isinstance(found, ScaledTensor) and declared.get("convrot"):
            return RotatedTensor(found.values, found.scale, declared.get("convrot_groupsize", GROUP))
        return found

    def holds(self, stored: StoredTensor) -> bool:
        """Return whether a tensor's values are int8 with a scale for each row."""
        import torch

        from .scaled_tensor import ScaledTensor

        return isinstance(stored, ScaledTensor) and stored.dtype == torch.int8

    def from_stored(self, stored: StoredTensor) -> Packed:
        """Return values and scales as they are in the file, and the size of the groups, 0 for none."""
        import torch

        from .int8_linear import RotatedTensor
        from .scaled_tensor import ScaledTensor

        assert isinstance(stored, ScaledTensor)
        group = stored.group if isinstance(stored, RotatedTensor) else 0
        return {"values": stored.values.read(), "scale": stored.scale_blocks(), "group": torch.tensor(group)}

    def to_stored(self, weight: torch.Tensor) -> Packed:
        """Return whole numbers, the largest of each row 127, and the rows' scales."""
        import torch

        from .int8_linear import quantize

        values, scale = quantize(weight)
        return {"values": values, "scale": scale, "group": torch.tensor(0)}

    def layer_class(self) -> type[Int8Linear]:
        """Return `Int8Linear`."""
        from .int8_linear import Int8Linear

        return Int8Linear

    def dense(self, layer: nn.Module) -> torch.Tensor:
        """Return the values times their scales, rotated back."""
        import torch

        assert isinstance(layer, self.layer_class())
        return layer.dense(torch.float32)

    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return an `Int8Linear`."""
        return self.layer_class()(packed["values"], packed["scale"], int(packed["group"]), bias=bias, compute=compute)
