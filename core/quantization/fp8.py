"""Weight format FP8: one byte a weight and one float32 scale for each output channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .base import FP8_TENSOR_CORES, WeightFormat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.stored_tensor import StoredTensor
    from .base import Packed
    from .fp8_linear import Fp8Linear
    from .kernels import MatmulKernel

SCALE_BYTES = 4  # float32


class Fp8(WeightFormat):
    """float8_e4m3fn; files may also hold e5m2, and scales for a whole layer or for blocks of one."""

    name = "fp8"
    title = "FP8"
    readable = "fp8 (plain or scaled)"
    number_types = ("F8_E4M3", "F8_E5M2")
    declarations = {
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "float8_e4m3fn_rowwise": "F8_E4M3",
        "float8_e4m3fn_blockwise": "F8_E4M3",
    }
    # ComfyUI's until 2025 and since, and that of DeepSeek's and Qwen's releases; all are multiplied with.
    scales = ("scale_weight", "weight_scale", "weight_scale_inv")
    file_names = {"values": "weight", "scale": "weight_scale"}
    errors = {"F8_E4M3": 0.0265}
    rounding_error = 0.0265  # measured on 1536 × 1536 weights; tests/core/test_fp8.py holds it to theory
    unsupported_devices = frozenset({"mps"})
    targets = ("fp8",)
    declared_as = "float8_e4m3fn"
    marker = "scaled_fp8"  # looked for by ComfyUI until 2025

    @property
    def kernel(self) -> MatmulKernel:
        """Torch's product of e4m3 (torch._scaled_mm), of which rowwise scales give bf16 alone."""
        from .kernels import MatmulKernel

        return MatmulKernel("torch", "", computes=("bf16",), first=FP8_TENSOR_CORES, speedup=2.0)

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor is float8; bytes beside it are the scales of another format."""
        return super().recognises(name, types) and types.get(f"{name}_scale") != "U8"

    def bytes(self, weights: int, rows: int) -> int:
        """Return a byte for each weight, and its scale for each row."""
        return weights + rows * SCALE_BYTES

    def holds(self, stored: StoredTensor) -> bool:
        """Return whether a tensor's values are float8, scaled or not."""
        from .fp8_linear import FLOAT8

        return stored.dtype in FLOAT8

    def from_stored(self, stored: StoredTensor) -> Packed:
        """Return the values as they are in the file, with a scale of 1 where there is none."""
        import torch

        from .scaled_tensor import ScaledTensor

        if isinstance(stored, ScaledTensor):
            return {"values": stored.values.read(), "scale": stored.scale_blocks()}
        values = stored.read()
        return {"values": values, "scale": torch.ones(values.shape[0], 1)}

    def to_stored(self, weight: torch.Tensor) -> Packed:
        """Return e4m3 values, the largest of each row 448, and the rows' scales."""
        from .fp8_linear import quantize

        values, scale = quantize(weight)
        return {"values": values, "scale": scale}

    def for_file(self, weight: torch.Tensor, target: str) -> Packed:
        """Return e4m3 values with one scale: ComfyUI's layers of this format have no more."""
        from .fp8_linear import LARGEST, VALUES
        from .scaled_tensor import quantize

        values, scale = quantize(weight, VALUES, LARGEST, of_layer=True)
        return {"values": values, "scale": scale}

    def file_tensors(self, packed: Packed) -> Packed:
        """Return the values, and the scale under the names that ComfyUI has had for it until 2025 and since."""
        scale = packed["scale"][0, 0]
        return {"weight": packed["values"], "weight_scale": scale, "scale_weight": scale}

    def layer_class(self) -> type[Fp8Linear]:
        """Return `Fp8Linear`."""
        from .fp8_linear import Fp8Linear

        return Fp8Linear

    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return an `Fp8Linear`."""
        return self.layer_class()(packed["values"], packed["scale"], bias, compute)
