"""A request → an image."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..executor.execute_plan import execute_plan
from ..host.base import Host
from ..lora.catalog import record_of
from .estimate import what_fits
from .model import load
from .phases import work
from .request import SIZES, TOY_SIZES, ImageRequest, check_size
from .run import ImageRun

if TYPE_CHECKING:
    import torch


def sample(handle: ModelHandle, request: ImageRequest, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one image.

    The result equals `HunyuanDiTPipeline.__call__` on the same weights with
    `use_resolution_binning=False` and a CPU generator seeded with `seed`.

    Returns:
        A float32 CPU tensor [1, height, width, 3] in 0..1, and a record of what ran, fit for JSON.

    Raises:
        PiyingError: the request, the model or the device cannot be used, or no plan fits the machine;
            the text says why.
    """
    import torch

    model = load(handle, host)
    check_size(request.width, request.height, SIZES + TOY_SIZES if model.found.is_built_in else SIZES)
    components = model.components()
    phases = work(components, request.width, request.height, request.cfg, request.steps)
    with torch.no_grad():
        image, ran = execute_plan(
            phases,
            handle,
            host,
            lambda device, meter: ImageRun(model, request, host, device, meter),
            lambda machine: what_fits(components, machine, handle, request.cfg),
        )
    return image, {"model": model.found.name, **record_of(model.parts.loras), **ran, **asdict(request)}
