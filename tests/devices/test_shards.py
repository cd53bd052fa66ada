"""Sharded weights on a pretend device: what is gathered on a side stream is there when it is read, and not before."""

from __future__ import annotations

import inspect
import random

import pytest
import torch
from piying.core.parallel import shards

from .pretend import attached
from .test_streaming import DEVICE, GIVEN, MIB, Stack


class OneRank:
    """A group of one rank, which gathers its own share on the stream that is current, as NCCL does."""

    rank, size, is_on_streams = 0, 1, True

    def gather_into(self, into: torch.Tensor, own: torch.Tensor) -> None:
        into.copy_(own)


def run(seed: int) -> None:
    model = Stack()
    expected = model(GIVEN)
    with attached(MIB, chance=random.Random(seed)) as here:
        given = GIVEN.to(DEVICE)
        with shards.sharded(model, list(model.blocks), DEVICE, OneRank()) as traffic:
            found = [model(given) for _ in range(3)]
        assert all(torch.equal(each.cpu(), expected) for each in found) and not here.timeline.faults
        del given, found
        assert (here.devices[0].allocated, here.pinned) == (0, 0)
    assert traffic.pinned_bytes == 0 and traffic.device_bytes > 0


@pytest.mark.parametrize("seed", range(3))
def test_every_block_finds_its_weights(seed):
    run(seed)


@pytest.mark.parametrize("order", ["self._side.wait_event(self._free[slot])", "self._filled[slot].record(self._side)"])
def test_each_order_is_needed(monkeypatch, order):
    """The pretend device finds out when one is left out."""
    source = inspect.getsource(shards.SideStreamGatherer)
    assert source.count(order) == 1
    made = dict(vars(shards))
    exec(source.replace(order, "pass"), made)
    monkeypatch.setattr(shards, "SideStreamGatherer", made["SideStreamGatherer"])
    with pytest.raises((AssertionError, RuntimeError)):
        for seed in range(3):
            run(seed)
