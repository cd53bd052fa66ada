"""How the bytes of a block get from host memory into a slot on the device.

All that differs between a CUDA card and any other device is in this file.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from dataclasses import dataclass

import torch

from .flat import Flat

# A power of two, since torch's allocator of pinned memory rounds up to one. Big enough that the
# cost of starting a copy (about 10 µs) does not show, small enough that filling one chunk and
# sending another overlap within a block.
CHUNK = 32 * 1024**2
SPARE_CHUNKS = 2


@dataclass
class Traffic:
    """What streaming did.

    Attributes:
        bytes: copied from host memory into slots.
        copies: blocks copied.
        late: blocks that ran out of turn, so that nothing could be copied ahead.
        stall_seconds: time in which the device had nothing to do but wait for weights.
        device_bytes: held on the device throughout: the slots and what is outside the blocks.
        pinned_bytes: page-locked host memory.
    """

    bytes: int = 0
    copies: int = 0
    late: int = 0
    stall_seconds: float = 0.0
    device_bytes: int = 0
    pinned_bytes: int = 0


class Lane:
    """Slots that are filled at once, on any device."""

    def __init__(self, device: torch.device, size: int, slots: int, traffic: Traffic) -> None:
        """Allocate `slots` slots of `size` bytes."""
        self.device = device
        self.traffic = traffic
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(slots)]
        traffic.device_bytes += size * slots

    def send(self, flat: Flat, slot: int) -> None:
        """Begin to copy a block into a slot, when everything that used the slot so far is done."""
        begun = time.perf_counter()
        target = self.slots[slot][: flat.size]
        staged = target if self.device.type == "cpu" else torch.empty(flat.size, dtype=torch.uint8)
        flat.read(0, staged)
        if staged is not target:
            target.copy_(staged)
        self.traffic.stall_seconds += time.perf_counter() - begun

    def arrive(self, slot: int) -> None:
        """Let what is computed from here on wait until the slot is filled."""

    def leave(self, slot: int) -> None:
        """Say that everything which uses the slot has been queued."""

    def close(self) -> None:
        """Let the slots go."""
        self.slots.clear()


class CudaLane(Lane):
    """Slots filled on a side stream while the compute stream works.

    Three orders keep the bytes right. The compute stream waits for `_filled[slot]` before it reads a
    slot. The side stream waits for `_free[slot]`, recorded on the compute stream behind the last
    kernel that reads the slot, before it writes there. The host waits for a chunk's event, recorded
    on the side stream behind the copy out of the chunk, before it writes into the chunk.
    """

    def __init__(self, device: torch.device, size: int, slots: int, traffic: Traffic) -> None:
        """Allocate the slots and the pinned ring."""
        super().__init__(device, size, slots, traffic)
        self._side = torch.cuda.Stream(device)
        # The allocator hands out memory in the order of the compute stream: kernels queued there may
        # still use what are slots now.
        self._side.wait_stream(torch.cuda.current_stream(device))
        self._filled = [torch.cuda.Event() for _ in range(slots)]
        self._free = [torch.cuda.Event() for _ in range(slots)]
        self._waits: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._chunk = min(CHUNK, 1 << (size - 1).bit_length())
        chunks = -(-size // self._chunk) + SPARE_CHUNKS
        ring = [torch.empty(self._chunk, dtype=torch.uint8, pin_memory=True) for _ in range(chunks)]
        # blocking: the host sleeps instead of spinning while it waits for a chunk
        self._ring = itertools.cycle([(chunk, torch.cuda.Event(blocking=True)) for chunk in ring])
        traffic.pinned_bytes += chunks * self._chunk

    def send(self, flat: Flat, slot: int) -> None:
        """Queue the copies of a block, chunk by chunk; returns when the last chunk is queued."""
        self._side.wait_event(self._free[slot])
        for start in range(0, flat.size, self._chunk):
            chunk, sent = next(self._ring)
            part = chunk[: min(self._chunk, flat.size - start)]
            sent.synchronize()
            flat.read(start, part)
            with torch.cuda.stream(self._side):
                self.slots[slot][start : start + part.numel()].copy_(part, non_blocking=True)
            sent.record(self._side)
        self._filled[slot].record(self._side)

    def arrive(self, slot: int) -> None:
        """Let the compute stream wait until the slot is filled, and note how long it did."""
        stream = torch.cuda.current_stream(self.device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(stream)
        stream.wait_event(self._filled[slot])
        after.record(stream)
        self._waits.append((before, after))
        self._count()

    def leave(self, slot: int) -> None:
        """Mark, on the compute stream, the end of the slot's use."""
        self._free[slot].record(torch.cuda.current_stream(self.device))

    def close(self) -> None:
        """Wait until nothing is on its way into the slots, and let them go."""
        try:
            torch.cuda.current_stream(self.device).synchronize()
            self._side.synchronize()
            self._count()
        finally:
            self._ring = itertools.cycle(())
            super().close()

    def _count(self) -> None:
        """Add up the waits that are over."""
        while self._waits and self._waits[0][1].query():
            before, after = self._waits.popleft()
            self.traffic.stall_seconds += before.elapsed_time(after) / 1000


def lane(device: torch.device, size: int, slots: int, traffic: Traffic) -> Lane:
    """Return the lane for a device."""
    kind = CudaLane if device.type == "cuda" else Lane
    return kind(device, size, slots, traffic)
