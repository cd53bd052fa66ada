"""The orders that keep a CUDA card's slots right, played through without a card.

A stand-in for torch.cuda has streams whose work waits in queues and is done in random order, as far
as the events between them allow. "Kernels" compare what they find in a slot with what they should.
"""

from __future__ import annotations

import random
from collections import deque

import pytest
import torch
from piying.core.executor import streaming
from torch.utils._python_dispatch import TorchDispatchMode

EMPTY = torch.empty


class Stream:
    def __init__(self, card):
        self.card, self.queue = card, deque()

    def wait_event(self, event):
        turn = event.recorded
        self.queue.append((lambda: event.done >= turn, lambda: None))

    def wait_stream(self, other):
        event = Event(self.card)
        event.record(other)
        self.wait_event(event)

    def synchronize(self):
        self.card.work_until(lambda: not self.queue)


class Event:
    def __init__(self, card):
        self.card, self.recorded, self.done = card, 0, 0

    def record(self, stream):
        self.recorded += 1
        turn = self.recorded
        stream.queue.append((lambda: True, lambda: setattr(self, "done", turn)))

    def synchronize(self):
        turn = self.recorded
        self.card.work_until(lambda: self.done >= turn)

    def query(self):
        return self.done >= self.recorded

    def elapsed_time(self, other):
        assert self.done and other.done
        return 1.0


class Deferred(TorchDispatchMode):
    """Puts copies into a stream's queue instead of doing them."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.aten.copy_.default:
            return function(*args, **(kwargs or {}))
        target, source = args[:2]
        self.stream.queue.append((lambda: True, lambda: target.copy_(source)))
        return target


class Card:
    def __init__(self, seed, lazy):
        self.random, self.streams = random.Random(seed), []
        self.lazy = lazy  # the stream that is slow: "side", "compute" or neither
        self.compute = self.new_stream()

    def new_stream(self, _device=None):
        self.streams.append(Stream(self))
        return self.streams[-1]

    def work(self):
        """Do one thing that can be done; say whether there was one."""
        ready = [stream for stream in self.streams if stream.queue and stream.queue[0][0]()]
        slow = {"compute": self.streams[:1], "side": self.streams[1:]}.get(self.lazy, [])
        ready = [stream for stream in ready if stream not in slow] or ready
        if ready:
            self.random.choice(ready).queue.popleft()[1]()
        return bool(ready)

    def work_until(self, done):
        while not done():
            assert self.work(), "everything waits for something else"

    def work_a_little(self):
        for _ in range(self.random.randrange(12)):
            self.work()


def stand_in(monkeypatch, seed, lazy):
    """Put a card in the place of torch.cuda."""
    card = Card(seed, lazy)

    def allocate(*size, pin_memory=False, **options):
        tensor = EMPTY(*size, **options)
        if not pin_memory and tensor.dtype is torch.uint8:
            # kernels queued earlier may still use what the allocator hands out in their order
            card.compute.queue.append((lambda: True, lambda: tensor.fill_(255)))
        return tensor

    monkeypatch.setattr(torch.cuda, "Stream", card.new_stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(card))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: card.compute)
    monkeypatch.setattr(torch.cuda, "stream", Deferred)
    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(streaming, "copier_for", streaming.CudaCopier)
    monkeypatch.setattr(streaming, "CHUNK", 1024)
    monkeypatch.setattr(streaming, "SPARE_CHUNKS", card.random.randrange(3))
    return card


class Block(torch.nn.Module):
    def __init__(self, card, number, seen):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((100 + 150 * (number % 3), 4), float(number)))
        self.bias = torch.nn.Parameter(torch.full((7,), -float(number)))
        self.card, self.seen = card, seen
        self.expected = [self.weight.detach().clone(), self.bias.detach().clone()]

    def forward(self):
        found = [self.weight.detach(), self.bias.detach()]
        for _ in range(3):
            self.card.compute.queue.append((lambda: True, lambda: self.seen.append(self.right(found))))
        self.card.work_a_little()

    def right(self, found):
        return all(map(torch.equal, found, self.expected))


def run(card, slots, blocks, passes=4):
    """Return whether every kernel found its weights, and what streaming counted."""
    seen = []
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(Block(card, number, seen) for number in range(blocks))
    with streaming.streamed(model, list(model.blocks), "cpu", slots=slots) as traffic:
        for _ in range(passes):
            for block in model.blocks:
                block()
                block()
            if card.random.random() < 0.3:
                card.random.choice(model.blocks)()
    assert not any(stream.queue for stream in card.streams)
    assert len(seen) >= passes * blocks * 6
    return seen, traffic


SCHEDULES = [(seed, lazy) for lazy in (None, "side", "compute") for seed in range(12)]


@pytest.mark.parametrize(("slots", "blocks"), [(2, 2), (2, 5), (2, 6), (3, 7), (4, 5), (6, 3), (2, 1)])
def test_every_kernel_finds_its_weights(monkeypatch, slots, blocks):
    for seed, lazy in SCHEDULES:
        seen, traffic = run(stand_in(monkeypatch, seed, lazy), slots, blocks)
        assert all(seen), (seed, lazy)
        assert traffic.stall_seconds > 0


def neglect(monkeypatch, order):
    """Take one of the orders away."""
    if order == "compute waits for the copy":
        monkeypatch.setattr(streaming.CudaCopier, "arrive", lambda self, slot: None)
    elif order == "the copy waits for the last use":
        monkeypatch.setattr(streaming.CudaCopier, "leave", lambda self, slot: None)
    elif order == "the host waits for the chunk":
        monkeypatch.setattr(Event, "synchronize", lambda self: None)
    else:
        monkeypatch.setattr(Stream, "wait_stream", lambda self, other: None)


@pytest.mark.parametrize(
    "order",
    [
        "compute waits for the copy",
        "the copy waits for the last use",
        "the host waits for the chunk",
        "the first copy waits for the memory",
    ],
)
def test_each_order_is_needed(monkeypatch, order):
    """The stand-in finds out when one is missing."""
    neglect(monkeypatch, order)
    runs = [run(stand_in(monkeypatch, seed, lazy), 2, 5)[0] for seed, lazy in SCHEDULES]
    assert not all(all(seen) for seen in runs)


def test_the_pinned_ring_is_one_block_and_some_chunks(monkeypatch):
    card = stand_in(monkeypatch, 0, None)
    monkeypatch.setattr(streaming, "SPARE_CHUNKS", 2)
    _, traffic = run(card, 2, 5)
    largest = 6656 + 512  # a weight of 6,400 bytes and a bias, each to the next multiple of 512
    assert traffic.pinned_bytes == largest + 2 * 1024
    assert traffic.device_bytes == 2 * largest
