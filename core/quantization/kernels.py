"""Matmul kernels: products of inputs with weights as a format stores them, and what they need of card and packages.

comfy-kitchen comes with ComfyUI; its functions are those of Comfy-Org/comfy-kitchen 0.2, whose eager backend computes
the same on a CPU. Inputs are rounded to the format as they come: INT8 with a scale for each row, MXFP8 and NVFP4 in
blocks.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import clipped

if TYPE_CHECKING:
    import torch

    from .base import WeightFormat

log = logging.getLogger("piying")

KITCHEN = "comfy_kitchen"
HALF = ("bf16", "fp16")
BLOCK_SCALED_CORES = (10, 0)  # CUDA's compute capability of the first cards with MXFP8 and NVFP4: Blackwell
EAGER = "eager"  # comfy-kitchen's backend that computes with torch's operations: no faster than unpacking
ALIKE = 0.98  # cosine between a kernel's product and that of the unpacked weight; NVFP4 rounds both by 10 %
TESTED_SIZE = 256  # of the layer and the inputs with which a kernel is tried


@dataclass(frozen=True)
class MatmulKernel:
    """What multiplies in a format.

    Attributes:
        package: that has it; "torch" for torch itself.
        function: of comfy-kitchen, that is asked which backend computes it; "" for torch.
        computes: the number types of inputs that it takes.
        first: CUDA's compute capability of the first cards that multiply in the format.
        without: capabilities of later ones that do so no faster than in 16 bits.
        speedup: how many times as fast as in 16 bits a card multiplies, by its maker's data sheet.
    """

    package: str
    function: str
    computes: tuple[str, ...]
    first: tuple[int, int]
    speedup: float
    without: frozenset[tuple[int, int]] = frozenset()

    def why_not(self, capability: tuple[int, int] | None) -> str:
        """Return why a card cannot use it, in a few words; "" where it can, as far as package and card tell.

        Args:
            capability: CUDA's compute capability; None for other devices.
        """
        if capability is None or capability < self.first or capability in self.without:
            return "the card does not multiply in it"
        is_here = importlib.util.find_spec(self.package) is not None
        return "" if is_here else f"the package {self.package.replace('_', '-')} is not installed"


@lru_cache(maxsize=64)
def kernel_fault(name: str, device: str) -> str:
    """Return what goes wrong when a format's kernel multiplies on a device, and say it; "" where nothing does.

    A package may be installed and built for another card, torch or CUDA: only running it tells. What comes with torch
    is not tried.

    Args:
        name: of the format.
        device: "cpu", "cuda" or "cuda:N".
    """
    from .registry import FORMATS

    chosen = FORMATS[name]
    fault = _fault(chosen, device) if chosen.kernel is not None and chosen.kernel.function else ""
    if fault:
        log.warning("%s weights are unpacked for products instead of multiplied as they are: %s.", chosen.title, fault)
    return fault


def _fault(chosen: WeightFormat, device: str) -> str:
    import torch

    assert chosen.kernel is not None
    draw = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(TESTED_SIZE, TESTED_SIZE, generator=draw) for _ in range(2))
    layer: Any = chosen.layer(chosen.for_file(weight, chosen.targets[0]), None, None).to(device)
    rows = inputs.to(device, torch.bfloat16)
    try:
        if not device.startswith("cpu") and _backend(chosen.kernel.function) == EAGER:
            return f"{chosen.kernel.package.replace('_', '-')} has no compiled kernels for this card and driver"
        layer.native_matmul = True
        found = layer(rows)
    except (RuntimeError, ValueError, ImportError, OSError, TypeError, AttributeError, AssertionError) as error:
        return f"it fails here ({clipped(' '.join(str(error).split()), 160)})"
    layer.native_matmul = False
    pair = found.float().flatten(), layer(rows).float().flatten()
    alike = float(torch.nn.functional.cosine_similarity(*pair, dim=0))
    return "" if alike > ALIKE else f"its products here are not those of the weights (cosine {alike:.2f})"


def _backend(function: str) -> str:
    """Return which of comfy-kitchen's backends computes one of its functions on this machine."""
    from comfy_kitchen.registry import registry  # type: ignore[import-untyped,unused-ignore]

    return str(registry.get_capable_backend(function))


def int8_product(
    inputs: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, *, bias: torch.Tensor | None, group: int
) -> torch.Tensor:
    """Return inputs times an INT8 weight plus the bias, in the type of the inputs.

    Args:
        inputs: [..., in], bf16 or fp16, not yet rotated.
        values: int8 [out, in].
        scale: float32 [out, 1].
        bias: [out] in the type of the inputs, or None.
        group: of how many inputs each is rotated; 0 where none is.
    """
    import comfy_kitchen  # type: ignore[import-untyped,unused-ignore]

    rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
    found: torch.Tensor = comfy_kitchen.int8_linear(
        inputs, values, scale, bias=bias, out_dtype=inputs.dtype, **rotation
    )
    return found


def block_product(
    inputs: torch.Tensor, packed: dict[str, torch.Tensor], *, bias: torch.Tensor | None, is_nvfp4: bool
) -> torch.Tensor:
    """Return inputs times a weight in NVFP4 or MXFP8 plus the bias, in the type of the inputs.

    Args:
        inputs: [..., in], bf16 or fp16.
        packed: see `block_scaled_linear.BlockScaledTensor.packed`; rows and columns are multiples of 32.
        bias: [out] in the type of the inputs, or None.
        is_nvfp4: else MXFP8.
    """
    import comfy_kitchen
    import torch

    from .block_scaled_linear import E2M1, LARGEST_E4M3
    from .scaled_tensor import TILE_ROWS

    values = packed["values"]
    rows = inputs.reshape(-1, inputs.shape[-1])
    tiles = packed["scale"].view(-(-len(values) // TILE_ROWS) * TILE_ROWS, -1)
    if is_nvfp4:
        # The largest input of all takes the blocks' scales to the top of their range.
        scale = rows.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny) / (LARGEST_E4M3 * E2M1[7])
        small, blocks = comfy_kitchen.quantize_nvfp4(rows, scale, pad_16x=len(rows) % 16 != 0)
        product = comfy_kitchen.scaled_mm_nvfp4(
            small,
            values,
            tensor_scale_a=scale,
            tensor_scale_b=packed["tensor_scale"],
            block_scale_a=blocks,
            block_scale_b=tiles.view(torch.float8_e4m3fn),
            bias=bias,
            out_dtype=inputs.dtype,
        )
    else:
        small, blocks = comfy_kitchen.quantize_mxfp8(rows, pad_32x=len(rows) % 32 != 0)
        product = comfy_kitchen.scaled_mm_mxfp8(
            small,
            values.view(torch.float8_e4m3fn),
            block_scale_a=blocks,
            block_scale_b=tiles.view(torch.float8_e8m0fnu),
            bias=bias,
            out_dtype=inputs.dtype,
        )
    found: torch.Tensor = product[: len(rows)].reshape(*inputs.shape[:-1], len(values))
    return found
