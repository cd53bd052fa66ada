"""Matmul kernels: what multiplies weights as a format stores them, and what it needs of card and packages.

comfy-kitchen comes with ComfyUI; its functions are those of Comfy-Org/comfy-kitchen 0.2, whose eager backend computes
on a CPU too. Inputs are rounded to the format as they come: INT8 with a scale for each row, MXFP8 and NVFP4 in blocks.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

KITCHEN = "comfy_kitchen"
HALF = ("bf16", "fp16")
BLOCK_SCALED_CORES = (10, 0)  # CUDA's compute capability of the first cards with MXFP8 and NVFP4: Blackwell


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
