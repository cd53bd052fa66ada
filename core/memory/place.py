"""A phase's model where the plan wants it, for just as long as the phase lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .residency import resident

if TYPE_CHECKING:
    import torch

    from ..host import Host
    from .planned import PhasePlan


@contextmanager
def placed(
    module: torch.nn.Module, blocks: Sequence[torch.nn.Module], choice: PhasePlan, device: str, host: Host
) -> Iterator[None]:
    """Hold `module` as `choice` says: whole on the device, its blocks streamed through it, or where it is.

    Args:
        module: a model in host memory.
        blocks: its blocks in the order in which they run; needed where they are streamed.
        choice: the plan of the phase.
        device: a torch device name.
    """
    if choice.placement == "streamed":
        from .streaming import streamed

        host.make_room(choice.vram)
        with streamed(module, blocks, device):
            yield
    elif choice.placement == "resident":
        with resident([module], device, host):
            yield
    else:
        yield
