"""Kernel fault: whether a format's kernel multiplies right on a device, which only running it tells."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from ..errors import clipped
from .base import WeightFormat
from .registry import FORMATS

log = logging.getLogger("piying")

EAGER = "eager"  # comfy-kitchen's backend that computes with torch's operations: no faster than unpacking
ALIKE = 0.98  # cosine between a kernel's product and that of the unpacked weight; NVFP4 rounds both by 10 %
TESTED_SIZE = 256  # of the layer and the inputs with which a kernel is tried


@lru_cache(maxsize=64)
def kernel_fault(name: str, device: str) -> str:
    """Return what goes wrong when a format's kernel multiplies on a device, and say it; "" where nothing does.

    A package may be installed and built for another card, torch or CUDA: only running it tells. What comes with torch
    is not tried.

    Args:
        name: of the format.
        device: "cpu", "cuda" or "cuda:N".
    """
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
    from comfy_kitchen.registry import registry

    return str(registry.get_capable_backend(function))
