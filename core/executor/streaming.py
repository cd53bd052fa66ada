"""Streaming: a model larger than the device, whose blocks are copied to the device one after the other.

While a block computes in one slot of device memory, the next is prefetched into another. The weights
stay where they are in host memory, mapped files included, and are never changed or pinned.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..accelerator import card_module
from .packed_tensors import ModuleTensors, PackedTensors

# A power of two, since torch's allocator of pinned memory rounds up to one. Big enough that the
# cost of starting a copy (about 10 µs) does not show, small enough that filling one chunk and
# sending another overlap within a block.
CHUNK = 32 * 1024**2
SPARE_CHUNKS = 2


@dataclass
class Traffic:
    """Statistics of streaming.

    Attributes:
        bytes: copied from host memory into slots.
        copies: blocks copied.
        late: blocks that ran out of turn, so that they could not be prefetched.
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


class HostToDeviceCopier:
    """Slots of device memory that are filled at once, on any device."""

    def __init__(self, device: torch.device, size: int, slots: int, traffic: Traffic) -> None:
        """Allocate `slots` slots of `size` bytes."""
        self.device = device
        self.traffic = traffic
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(slots)]
        traffic.device_bytes += size * slots

    def send(self, packed: PackedTensors, slot: int) -> None:
        """Begin to copy a block into a slot, when everything that used the slot so far is done."""
        begun = time.perf_counter()
        target = self.slots[slot][: packed.size]
        staged = target if self.device.type == "cpu" else torch.empty(packed.size, dtype=torch.uint8)
        packed.read(0, staged)
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


class SideStreamCopier(HostToDeviceCopier):
    """Slots filled on a side stream while the compute stream works.

    Two orders keep the bytes right. The compute stream waits for `_filled[slot]` before it reads a slot. The side
    stream waits for `_free[slot]`, recorded on the compute stream behind the last kernel that reads the slot, before
    it writes there.
    """

    def __init__(self, device: torch.device, size: int, slots: int, traffic: Traffic) -> None:
        """Allocate the slots."""
        super().__init__(device, size, slots, traffic)
        self._card = torch.get_device_module(device)
        self._side = self._card.Stream(device)
        # The allocator hands out memory in the order of the compute stream: kernels queued there may
        # still use what are slots now.
        self._side.wait_stream(self._card.current_stream(device))
        self._filled = [self._card.Event() for _ in range(slots)]
        self._free = [self._card.Event() for _ in range(slots)]
        self._waits: deque[tuple[Any, Any]] = deque()

    def arrive(self, slot: int) -> None:
        """Let the compute stream wait until the slot is filled, and note how long it did."""
        stream = self._card.current_stream(self.device)
        before, after = (self._card.Event(enable_timing=True) for _ in range(2))
        before.record(stream)
        stream.wait_event(self._filled[slot])
        after.record(stream)
        self._waits.append((before, after))
        self._count()

    def leave(self, slot: int) -> None:
        """Mark, on the compute stream, the end of the slot's use."""
        self._free[slot].record(self._card.current_stream(self.device))

    def close(self) -> None:
        """Wait for copies in flight into the slots, and release them."""
        try:
            self._card.current_stream(self.device).synchronize()
            self._side.synchronize()
            self._count()
        finally:
            super().close()

    def _count(self) -> None:
        """Add up the waits that are over."""
        while self._waits and self._waits[0][1].query():
            before, after = self._waits.popleft()
            self.traffic.stall_seconds += before.elapsed_time(after) / 1000


class StreamCopier(SideStreamCopier):
    """Slots filled from host memory by way of a ring of page-locked chunks.

    To the orders of a side stream comes a third: the host waits for a chunk's event, recorded on the side stream
    behind the copy out of the chunk, before it writes into the chunk.
    """

    def __init__(self, device: torch.device, size: int, slots: int, traffic: Traffic) -> None:
        """Allocate the slots and the pinned ring."""
        super().__init__(device, size, slots, traffic)
        self._chunk = min(CHUNK, 1 << (size - 1).bit_length())
        chunks = -(-size // self._chunk) + SPARE_CHUNKS
        ring = [torch.empty(self._chunk, dtype=torch.uint8, pin_memory=True) for _ in range(chunks)]
        self._ring = itertools.cycle([(chunk, self._sleeping_event()) for chunk in ring])
        traffic.pinned_bytes += chunks * self._chunk

    def send(self, packed: PackedTensors, slot: int) -> None:
        """Queue the copies of a block, chunk by chunk; returns when the last chunk is queued."""
        self._side.wait_event(self._free[slot])
        for start in range(0, packed.size, self._chunk):
            chunk, sent = next(self._ring)
            part = chunk[: min(self._chunk, packed.size - start)]
            sent.synchronize()
            packed.read(start, part)
            with self._card.stream(self._side):
                self.slots[slot][start : start + part.numel()].copy_(part, non_blocking=True)
            sent.record(self._side)
        self._filled[slot].record(self._side)

    def close(self) -> None:
        """Wait for copies in flight out of the ring, and release it with the slots."""
        try:
            super().close()
        finally:
            self._ring = itertools.cycle(())

    def _sleeping_event(self) -> Any:
        """Return an event for which the host sleeps instead of spinning, where the device has such."""
        try:
            return self._card.Event(blocking=True)
        except TypeError:
            return self._card.Event()


def copier_for(
    device: torch.device, blocks: Sequence[PackedTensors], slots: int, traffic: Traffic
) -> HostToDeviceCopier:
    """Return what copies blocks from host memory into slots, for a kind of device."""
    kind = StreamCopier if card_module(device) is not None else HostToDeviceCopier
    return kind(device, max(each.size for each in blocks), slots, traffic)


# Makes what fills slots: of a device, the blocks, how many slots, and where it counts.
CopierMaker = Callable[[torch.device, Sequence[PackedTensors], int, Traffic], HostToDeviceCopier]


@contextmanager
def streamed(
    module: torch.nn.Module,
    order: Sequence[torch.nn.Module],
    device: str | torch.device,
    *,
    slots: int = 2,
    copier_maker: CopierMaker | None = None,
) -> Iterator[Traffic]:
    """Hold `module` ready to run on `device` inside the block, with room for `slots` of its blocks.

    What is outside the blocks is on the device throughout. On the way out, after an error or a
    cancelled run too, the module holds the very parameters and buffers it held before. For
    inference: what a block writes into its own buffers is lost, and no gradients are made.

    Device memory: `slots` times the largest block, and what is outside the blocks. Page-locked host
    memory for a card: one largest block and two chunks of 32 MiB.

    Args:
        module: in host memory; run it on tensors that are on `device`.
        order: blocks of `module` in the order in which they run, once through; after the last comes
            the first. A block may be called several times in a row (for several prompts). One that
            runs out of turn is fetched then, at the cost of waiting for it.
        device: a torch device; on the CPU the slots are ordinary memory, so that everything but the
            overlap can be tried without a card.
        slots: blocks on the device at a time, 2 or more.
        copier_maker: makes what fills the slots, where that is not from host memory.

    Raises:
        ValueError: `slots` is below 2, `order` is empty, or a block is not inside `module`, is inside
            another block or not in host memory.
        TypeError: a block holds tensors of a class whose memory is not the numbers themselves.
    """
    device, traffic = torch.device(device), Traffic()
    card = card_module(device)
    if card is not None and device.index is None:
        # With its index, so that streams and tensors agree.
        device = torch.device(device.type, card.current_device())
    blocks = list(dict.fromkeys(order))
    _check(module, blocks, slots)
    outside = _modules_outside(module, set(blocks))
    with ExitStack() as undo:
        # What a block shares with the outside is on the device throughout, and is not copied with the block.
        packed = {block: PackedTensors(part for part in block.modules() if part not in outside) for block in blocks}
        root = ModuleTensors(outside)
        moved = [tensor.detach().to(device) for tensor in root.originals]
        traffic.device_bytes += sum(tensor.nbytes for tensor in moved)
        undo.callback(root.restore)
        root.bind(moved)
        copier = (copier_maker or copier_for)(device, list(packed.values()), min(slots, len(blocks)), traffic)
        undo.callback(copier.close)
        _Prefetcher([packed[block] for block in order], copier).attach(undo, list(order))
        restore = undo.pop_all()
    with restore:
        yield traffic


def _check(module: torch.nn.Module, blocks: list[torch.nn.Module], slots: int) -> None:
    if slots < 2:
        raise ValueError(f"slots is {slots}; one block computes while another arrives, so 2 is the least.")
    if not blocks:
        raise ValueError("order names no block.")
    if not set(blocks) <= set(module.modules()):
        raise ValueError("order names a block that is not inside the module.")
    inner = {child for block in blocks for child in block.modules() if child is not block}
    if inner & set(blocks):
        raise ValueError("order names a block that is inside another.")


def _modules_outside(module: torch.nn.Module, blocks: set[torch.nn.Module]) -> dict[torch.nn.Module, None]:
    """Return the modules that can be reached without entering a block, in a fixed order."""
    found: dict[torch.nn.Module, None] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each not in blocks and each not in found:
            found[each] = None
            waiting += each.children()
    return found


class _Prefetcher:
    """Which block is in which slot, and which comes next.

    At most one block's tensors are bound to its slot at a time: the running one's.
    """

    def __init__(self, order: list[PackedTensors], copier: HostToDeviceCopier) -> None:
        self._order = order
        self._copier = copier
        self._in_slot: list[PackedTensors | None] = [None] * len(copier.slots)
        self._views: dict[tuple[PackedTensors, int], list[torch.Tensor]] = {}
        self._position = -1  # of the running block in the order
        self._running: int | None = None  # its slot

    def attach(self, undo: ExitStack, order: list[torch.nn.Module]) -> None:
        """Hook into the blocks until `undo`, and prefetch the first ones."""
        undo.callback(self._detach)
        packed: dict[torch.nn.Module, PackedTensors] = dict(zip(order, self._order, strict=True))
        for block, tensors in packed.items():
            undo.callback(block.register_forward_pre_hook(self._before(tensors), prepend=True).remove)
            undo.callback(block.register_forward_hook(self._after).remove)
        self._prefetch()

    def _before(self, packed: PackedTensors) -> Callable[[torch.nn.Module, Any], None]:
        def hook(_block: torch.nn.Module, _args: Any) -> None:
            if self._running is None or self._in_slot[self._running] is not packed:
                self._release()
                self._enter(packed)

        return hook

    def _after(self, _block: torch.nn.Module, _args: Any, _result: Any) -> None:
        # Here, not before the block: its kernels are queued, so that the device has work while the
        # host fills the chunks for the next block.
        self._prefetch()

    def _enter(self, packed: PackedTensors) -> None:
        """Bind a block to its slot, where it is copied now unless it was prefetched."""
        turn = (self._position + 1) % len(self._order)
        # A block that runs out of turn counts as at its first place in the order.
        self._position = turn if self._order[turn] is packed else self._order.index(packed)
        if packed not in self._in_slot:
            self._copier.traffic.late += 1
            self._send(packed, self._upcoming())
        slot = self._in_slot.index(packed)
        self._copier.arrive(slot)
        # Views are made once per block and slot: there are dozens in each block.
        if (packed, slot) not in self._views:
            self._views[packed, slot] = packed.views(self._copier.slots[slot])
        packed.bind(self._views[packed, slot])
        self._running = slot

    def _upcoming(self) -> list[PackedTensors]:
        """Return the running block and the ones to come, as many as there are slots."""
        begin = max(self._position, 0)
        return [self._order[(begin + ahead) % len(self._order)] for ahead in range(len(self._in_slot))]

    def _prefetch(self) -> None:
        wanted = self._upcoming()
        for packed in wanted:
            if packed not in self._in_slot:
                self._send(packed, wanted)

    def _send(self, packed: PackedTensors, wanted: list[PackedTensors]) -> None:
        """Copy a block into a slot that holds none of the wanted ones."""
        slot = next(index for index, held in enumerate(self._in_slot) if held not in wanted)
        self._in_slot[slot] = None  # an error on the way leaves half a block there
        self._copier.send(packed, slot)
        self._in_slot[slot] = packed
        self._copier.traffic.copies += 1
        self._copier.traffic.bytes += packed.size

    def _release(self) -> None:
        """Give the running block its own tensors back; its slot is free once what is queued has run."""
        if self._running is not None:
            packed = self._in_slot[self._running]
            assert packed is not None
            packed.restore()
            self._copier.leave(self._running)
            self._running = None

    def _detach(self) -> None:
        self._release()
        self._views.clear()
