"""Placement: a phase's model where the plan wants it, for just as long as the phase lasts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..accelerator import empty_cache
from ..host.progress import LongProgress

if TYPE_CHECKING:
    import torch

    from ..host.base import DevicePolicy, Reporter
    from ..parallel.group import Group
    from ..planner.plan_types import PhasePlan


@contextmanager
def placed(
    module: torch.nn.Module,
    choice: PhasePlan,
    device: str,
    policy: DevicePolicy,
    *,
    blocks: Sequence[torch.nn.Module] = (),
    group: Group | None = None,
) -> Iterator[None]:
    """Hold `module` as `choice` says: whole on its device, its blocks streamed through that or sharded, or as it is.

    Args:
        module: a model in host memory.
        blocks: its blocks in the order in which they run; needed where they are streamed or sharded.
        choice: the plan of the phase.
        device: that of the run; a phase on the second card names its own.
        policy: asked to make room on the device.
        group: the ranks that compute together, needed where blocks are sharded between them.
    """
    device = choice.on(device)
    if choice.placement == "streamed":
        from .streaming import streamed

        policy.make_room(choice.room, choice.device)
        with streamed(module, blocks, device):
            yield
    elif choice.placement == "sharded" and group is not None:
        from ..parallel.shards import sharded

        policy.make_room(choice.room)
        with sharded(module, blocks, device, group):
            yield
    elif choice.placement == "resident":
        with resident([module], device, policy, room=choice.room, second=choice.device):
            yield
    else:
        yield


@contextmanager
def shown_blocks(blocks: Sequence[torch.nn.Module], reporter: Reporter, name: str, passes: int) -> Iterator[None]:
    """Show inside the block how many blocks of a text encoder have run, where that takes longer than a moment.

    Args:
        blocks: of the encoder.
        reporter: shows it.
        name: of the encoder, for people.
        passes: texts that go through them; one with weights goes through twice, and is counted once.
    """
    show, total = LongProgress(reporter, f"{name} (blocks)"), passes * len(blocks)
    done = itertools.count(1)

    def report(_block: torch.nn.Module, _args: object, _result: object) -> None:
        show(next(done), total)

    handles = [block.register_forward_hook(report) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def module_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def resident(
    modules: list[torch.nn.Module],
    device: str,
    policy: DevicePolicy,
    *,
    room: int | None = None,
    second: str = "",
) -> Iterator[None]:
    """Hold `modules` on `device` inside the block.

    The tensors in host memory stay what they are and come back after the block, on an error too:
    nothing is copied back, and weights mapped from a file stay mapped.

    Args:
        room: bytes to have free on the device for all that happens inside; None stands for those of the weights.
        second: the device, where it is the second card.
    """
    from .packed_tensors import ModuleTensors

    if device == "cpu":
        yield
        return
    policy.make_room(sum(module_bytes(module) for module in modules) if room is None else room, second)
    tensors = ModuleTensors(dict.fromkeys(part for module in modules for part in module.modules()))
    try:
        tensors.bind([tensor.detach().to(device) for tensor in tensors.originals])
        yield
    finally:
        tensors.restore()
        empty_cache(device)
