"""A phase's models on the card for just as long as the phase lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..host import Host


def module_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def resident(modules: list[torch.nn.Module], device: str, host: Host) -> Iterator[None]:
    """Hold `modules` on `device` inside the block.

    The tensors in host memory stay what they are and come back after the block, on an error too:
    nothing is copied back, and weights mapped from a file stay mapped.
    """
    import torch

    from .flat import Tensors

    if device == "cpu":
        yield
        return
    host.make_room(sum(module_bytes(module) for module in modules))
    tensors = Tensors(dict.fromkeys(part for module in modules for part in module.modules()))
    try:
        tensors.bind([tensor.detach().to(device) for tensor in tensors.originals])
        yield
    finally:
        tensors.restore()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
