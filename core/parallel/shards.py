"""Shards: a model whose blocks are shared between the cards of a group, and gathered one after the other.

Every rank holds an equal share of each block's bytes on its card. While a block computes in one slot of device memory,
the next is gathered from all ranks into another, as FSDP2's `fully_shard` does for a forward pass (Zhao et al. 2023,
arXiv 2304.11277). Other than there, the shares are of plain bytes, so that every weight format goes, packed ones too,
and the module is what it was afterwards.

All ranks must run the same blocks in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..executor.packed_tensors import ALIGNMENT, PackedTensors
from ..executor.streaming import HostToDeviceCopier, SideStreamCopier, Traffic, streamed

if TYPE_CHECKING:
    from .group import Group


class Shards:
    """This rank's shares of some blocks, on its device.

    Attributes:
        slot_bytes: that gathering any of them takes.
    """

    def __init__(self, blocks: Sequence[PackedTensors], group: Group, device: torch.device, traffic: Traffic) -> None:
        """Copy the shares to the device."""
        self._group = group
        self._shares = {packed: self._share(packed).to(device) for packed in blocks}
        self.slot_bytes = group.size * max(share.numel() for share in self._shares.values())
        traffic.device_bytes += sum(share.numel() for share in self._shares.values())

    def _share(self, packed: PackedTensors) -> torch.Tensor:
        size = -(-packed.size // (self._group.size * ALIGNMENT)) * ALIGNMENT
        share, start = torch.zeros(size, dtype=torch.uint8), self._group.rank * size
        packed.read(start, share[: max(0, min(size, packed.size - start))])
        return share

    def gather(self, packed: PackedTensors, slot: torch.Tensor) -> None:
        """Fill a slot with a block; all ranks call it for the same one."""
        share = self._shares[packed]
        self._group.gather_into(slot[: self._group.size * share.numel()], share)

    def clear(self) -> None:
        """Let the shares go."""
        self._shares.clear()


class ShardGatherer(HostToDeviceCopier):
    """Slots that are filled at once with blocks of which every rank has a share."""

    def __init__(self, device: torch.device, shards: Shards, slots: int, traffic: Traffic) -> None:
        """Allocate the slots."""
        super().__init__(device, shards.slot_bytes, slots, traffic)
        self._shards = shards

    def send(self, packed: PackedTensors, slot: int) -> None:
        """Gather a block into a slot."""
        self._shards.gather(packed, self.slots[slot])

    def close(self) -> None:
        """Let slots and shares go."""
        super().close()
        self._shards.clear()


class SideStreamGatherer(ShardGatherer, SideStreamCopier):
    """Slots that are filled on a side stream with blocks of which every rank has a share."""

    def send(self, packed: PackedTensors, slot: int) -> None:
        """Queue the gathering of a block; what NCCL does for it begins behind what the side stream waits for."""
        self._side.wait_event(self._free[slot])
        with self._card.stream(self._side):
            super().send(packed, slot)
        self._filled[slot].record(self._side)


def gatherer_for(
    device: torch.device, blocks: Sequence[PackedTensors], slots: int, traffic: Traffic, *, group: Group
) -> HostToDeviceCopier:
    """Return what gathers blocks into slots; see `CopierMaker`."""
    kind = SideStreamGatherer if group.is_on_streams else ShardGatherer
    return kind(device, Shards(blocks, group, device, traffic), slots, traffic)


def sharded(
    module: torch.nn.Module, order: Sequence[torch.nn.Module], device: str, group: Group
) -> AbstractContextManager[Traffic]:
    """Hold `module` ready to run on `device` inside the block, with this rank's share of its blocks on the device.

    Device memory: the share, two of the largest block, and what is outside the blocks. For arguments, results and
    errors see `streamed`; every rank calls this with the same module.
    """
    return streamed(module, order, device, copier_maker=partial(gatherer_for, group=group))
