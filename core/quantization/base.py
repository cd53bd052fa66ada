"""Weight formats: the class with which one way of storing Linear layers in fewer bits describes itself.

What recognises, sizes, plans, reads, casts, runs or caches such layers asks this class, through
`registry.py`. A format is one file with such a class, one with the layer that computes with it, and one
line in the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import PiyingError
from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..files.stored_tensor import PLAIN_PIECE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.stored_tensor import StoredTensor
    from .kernels import MatmulKernel

    # The tensors of one layer, by the names of the attributes that its module has for them.
    Packed = dict[str, torch.Tensor]


# CUDA's compute capability of the first cards that multiply in a number type: Ada. Older ones only store it.
FP8_TENSOR_CORES = (8, 9)
ROWS_TOGETHER = 128  # of a layer, that no format parts
IDENTITY_ROWS = 1024  # of an identity matrix at a time: a whole one of a wide layer is most of a gigabyte


class WeightFormat(ABC):
    """One format of the weights of Linear layers.

    A LoRA on such a layer goes beside it: its factors are added to the layer's output (`core.lora.additions`), the
    stored weights stay as they are. The module of `layer_class` therefore has `in_features` and `out_features`.

    Attributes:
        name: in plans, widgets, records and the catalog: "fp8".
        title: in sentences: "FP8".
        readable: the forms of it that are read, for the error about those that are not.
        number_types: the safetensors names of its values' types.
        declarations: {name that files declare it by, for each layer or for all: safetensors name of its values' type}.
        scales: the last parts of the names of tensors beside a weight that scale it.
        file_names: {attribute of the layer's module: last part of its tensor's name in a file}.
        errors: {number type that files for people's cards have: the root mean square of what rounding Gaussian weights
            to it loses, relative to them}, as measured; tables of sizes list them.
        rounding_error: the root mean square of what is lost, relative to that of Gaussian weights.
        unsupported_devices: kinds of devices that cannot hold it.
        can_cast: whether weights are cast to it; else it is held where a file has it alone.
        targets: the names by which a person asks for a file in it, or in one of its forms; none where none is written.
        marker: the name of an empty tensor beside the layers of a component of such a file; "" for none.
        declared_as: which of the `declarations` such a file has for each layer; "" for none.
        declared_only: whether it is read only where a file declares it: others lay out the same tensors otherwise.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    readable: ClassVar[str]
    number_types: ClassVar[tuple[str, ...]]
    declarations: ClassVar[Mapping[str, str]] = {}
    scales: ClassVar[tuple[str, ...]] = ()
    file_names: ClassVar[Mapping[str, str]]
    errors: ClassVar[Mapping[str, float]]
    rounding_error: ClassVar[float]
    unsupported_devices: ClassVar[frozenset[str]] = frozenset()
    can_cast: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ()
    declared_as: ClassVar[str] = ""
    marker: ClassVar[str] = ""
    declared_only: ClassVar[bool] = False

    @property
    def kernel(self) -> MatmulKernel | None:
        """What multiplies with it as it is stored; None for nothing."""
        return None

    def recognises(self, name: str, types: Mapping[str, str]) -> bool:
        """Return whether a tensor of a file is a weight in this format.

        Args:
            name: of the tensor.
            types: the safetensors names of the types of all tensors of the file.
        """
        return types[name] in self.number_types

    def meaning(self, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return type and shape of the weights that a tensor of a file which it `recognises` stands for.

        Args:
            dtype, shape: as the header has them.
        """
        return dtype, shape

    @abstractmethod
    def bytes(self, weights: int, rows: int) -> int:
        """Return the bytes of layers of that many weights and output channels together, scales included."""

    def stored_bytes(self, number_type: str, weights: int, rows: int) -> int:
        """Return what `bytes` does, of layers that a file has in one of the `number_types`."""
        return self.bytes(weights, rows)

    def divides(self, number_type: str, width: int) -> bool:
        """Return whether layers of so many inputs can be in one of the `number_types`."""
        return True

    def unpacked_bytes(self, weights: int, compute: str) -> int:
        """Return the peak that unpacking a layer of that many weights adds; one layer is unpacked at a time."""
        return weights * BYTES_BY_SHORT_NAME[compute]

    def unpacking_traffic(self, weights: int, compute: str) -> int:
        """Return the bytes moved to and from the device's memory, beside the stored ones, to unpack weights once."""
        return 2 * weights * BYTES_BY_SHORT_NAME[compute]  # written, and read by the matrix product

    def matmul_speedup(self, capability: tuple[int, int] | None) -> float | None:
        """Return how many times as fast as in 16 bits a card multiplies in this format; None where it cannot.

        Args:
            capability: CUDA's compute capability; None for other devices.
        """
        kernel = self.kernel
        return kernel.speedup if kernel is not None and not kernel.why_not(capability) else None

    def joined(
        self, weight: StoredTensor, beside: Mapping[str, StoredTensor], declared: Mapping[str, Any]
    ) -> StoredTensor:
        """Return a weight of a file together with the tensors beside it that describe it.

        Args:
            beside: by the last parts of their names; others than this format's are passed over.
            declared: what the file says of the layer; empty where it says nothing.
        """
        from .scaled_tensor import ScaledTensor

        scale = next((beside[name] for name in self.scales if name in beside), None)
        return weight if scale is None else ScaledTensor(weight, scale)

    def takes_scale(self, name: str, weight: Sequence[int], scale: Sequence[int]) -> bool:
        """Return whether a weight of one shape can have a scale of another; see `ScaledTensor` for those there are.

        Args:
            name: which one of `scales`.
            weight, scale: shapes as the header has them.
        """
        from .scaled_tensor import takes_scale

        return takes_scale(weight, scale)

    def why_unreadable(self, declared: Mapping[str, Any], shape: Sequence[int]) -> str:
        """Return why a weight cannot be read as its file declares it, as what it is; "" where it can.

        Args:
            declared: what the file says of the layer, its `format` among it.
            shape: of the weight.
        """
        return ""

    @abstractmethod
    def holds(self, stored: StoredTensor) -> bool:
        """Return whether a joined tensor of a file is in this format."""

    @abstractmethod
    def from_stored(self, stored: StoredTensor) -> Packed:
        """Return the tensors of a layer from a joined tensor that it `holds`; nothing is rounded."""

    def numbers(self, packed: Packed) -> Iterator[torch.Tensor]:
        """Yield all numbers of a layer that may be infinite or none, in pieces."""
        for tensor in packed.values():
            yield from tensor.view(-1).split(PLAIN_PIECE) if tensor.is_contiguous() else [tensor]

    def sample(self, weight: torch.Tensor) -> Packed:
        """Return the tensors of a layer of that size, to measure how fast it is unpacked."""
        return self.to_stored(weight)

    def to_stored(self, weight: torch.Tensor) -> Packed:
        """Return the tensors of a layer from its weight [out, in], of any floating type; rounds it.

        Raises:
            PiyingError: weights are not cast to the format; see `can_cast`.
        """
        raise PiyingError(f"weights are not cast to {self.title}. Choose a file that has them so, or another format.")

    def for_file(self, weight: torch.Tensor, target: str) -> Packed:
        """Return what `to_stored` does, as files of one of the `targets` have it; of weights without numbers too."""
        return self.to_stored(weight)

    def declaration(self, packed: Packed) -> dict[str, Any]:
        """Return what a file says of such a layer."""
        return {"format": self.declared_as}

    def rows(self, packed: Packed, part: slice) -> Packed:
        """Return the tensors of some rows of a layer, whose numbers are a multiple of `ROWS_TOGETHER`."""
        # What all rows share has none of its own.
        return {name: tensor[part] if tensor.ndim > 1 else tensor for name, tensor in packed.items()}

    def file_tensors(self, packed: Packed) -> Packed:
        """Return the tensors that a file has of such a layer, by the last parts of their names."""
        return {name: packed[attribute] for attribute, name in self.file_names.items()}

    def why_dense(self, shape: Sequence[int], target: str) -> str:
        """Return why a weight of that shape cannot be written in the form of a target; "" where it can."""
        return ""

    @abstractmethod
    def layer_class(self) -> type[nn.Module]:
        """Return the class of the module that computes with such a layer.

        Its `native_matmul` says whether to multiply in this format where the device and the sizes allow that.
        """

    def dense(self, layer: nn.Module) -> torch.Tensor:
        """Return the weight of such a layer, float32 [out, in]; of a class of another kind by an identity matrix."""
        import torch

        from .stored_linear import StoredLinear

        made: Any = layer
        if isinstance(made, StoredLinear):
            return made.dense(torch.float32)
        columns = []
        for start in range(0, made.in_features, IDENTITY_ROWS):
            rows = torch.zeros(min(IDENTITY_ROWS, made.in_features - start), made.in_features)
            rows[:, start:].fill_diagonal_(1.0)
            # Not through the call, which adds what a LoRA has beside the weight.
            columns.append(made.forward(rows).float() - (0.0 if made.bias is None else made.bias.float()))
        return torch.cat(columns).t()

    @abstractmethod
    def layer(self, packed: Packed, bias: torch.Tensor | None, compute: torch.dtype | None) -> nn.Module:
        """Return such a module.

        Args:
            compute: the type to compute in; None for that of the input.
        """
