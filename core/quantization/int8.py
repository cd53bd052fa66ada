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
    from .kernels import MatmulKernel

SCALE_BYTES = 4  # float32
GROUP = 256  # of inputs that are rotated together, where a file does not say how many


def _group_of(columns: int) -> int:
    """Return the most inputs up to `GROUP` that rows are whole groups of; 0 where there are none."""
    return next((size for size in (GROUP, GROUP // 4, GROUP // 16) if columns % size == 0), 0)


def why_not_rotated(group: object, shape: Sequence[int]) -> str:
    """Return why weights of a shape cannot be rotated in groups of so many inputs; "" where they can."""
    # A regular Hadamard matrix is made of those of 4 × 4.
    size = group if type(group) is int else 0
    is_power_of_4 = size >= 4 and size.bit_count() == 1 and size.bit_length() % 2 == 1
    if is_power_of_4 and len(shape) == 2 and shape[1] % size == 0:
        return ""
    inputs = clipped(str(group), 20)
    return f"rotated in groups of {inputs} inputs; groups are a power of 4 that divides {list(shape)[1:]}"


class Int8(WeightFormat):
    """Whole numbers from -127 to 127; ComfyUI's int8_tensorwise files may hold them rotated (ConvRot)."""

    name = "int8"
    title = "INT8"
    readable = "int8 (scaled, convrot)"
    number_types = ("I8",)
    declarations = {"int8_tensorwise": "I8"}
    scales = ("weight_scale",)
    file_names = {"values": "weight", "scale": "weight_scale"}
    targets = ("int8", "int8_convrot")
    declared_as = "int8_tensorwise"
    errors = {"I8": 0.0081}
    rounding_error = 0.0081  # measured on 1536 × 1536 weights; tests/core/test_weight_formats.py holds it to theory

    @property
    def kernel(self) -> MatmulKernel:
        """Those of Turing and later: data sheets have twice the operations of 16 bits, but of B300."""
        from .kernels import HALF, KITCHEN, MatmulKernel

        return MatmulKernel(
            KITCHEN, "int8_linear", computes=HALF, first=(7, 5), speedup=2.0, without=frozenset({(10, 3)})
        )

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor is int8 with a scale beside it."""
        return types[name] == "I8" and f"{name}_scale" in types

    def bytes(self, weights: int, rows: int) -> int:
        """Return a byte for each weight, and its scale for each row."""
        return weights + rows * SCALE_BYTES

    def why_unreadable(self, declared: Mapping[str, Any], shape: Sequence[int]) -> str:
        """Return why a weight's groups cannot be rotated back."""
        return why_not_rotated(declared.get("convrot_groupsize", GROUP), shape) if declared.get("convrot") else ""

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

    def for_file(self, weight: torch.Tensor, target: str) -> Packed:
        """Return the same, of rotated weights where the target says so."""
        import torch

        from .int8_linear import quantize_rotated

        if target != "int8_convrot":
            return self.to_stored(weight)
        group = _group_of(weight.shape[1])
        values, scale = quantize_rotated(weight, group)
        return {"values": values, "scale": scale, "group": torch.tensor(group)}

    def declaration(self, packed: Packed) -> dict[str, Any]:
        """Return the format, and of how many inputs each group is rotated."""
        group = int(packed["group"])
        rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
        return super().declaration(packed) | rotation

    def why_dense(self, shape: Sequence[int], target: str) -> str:
        """Return that rows which are no whole groups are not rotated."""
        needed = target == "int8_convrot" and not _group_of(shape[-1])
        return "its rows are no whole groups to rotate" if needed else ""

    def layer_class(self) -> type[Int8Linear]:
        """Return `Int8Linear`."""
        from .int8_linear import Int8Linear

        return Int8Linear

    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return an `Int8Linear`."""
        return self.layer_class()(packed["values"], packed["scale"], int(packed["group"]), bias=bias, compute=compute)
