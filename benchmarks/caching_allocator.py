"""Caching allocator: a model of how torch's native CUDA allocator places tensors, for replays without a card.

The rules are those of c10/cuda/CUDACachingAllocator.cpp in torch 2.11 to 2.13, for one stream: sizes rounded to 512
bytes; a pool of small blocks and one of large ones; best fit; blocks split and merged with free neighbours; on a
failed allocation whole free segments (of expandable segments: whole free pages) are given back, and it is tried again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MIB = 2**20
ROUNDING = 512
SMALL = MIB  # the largest block of the small pool
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
UNLIMITED = 2**60
OWN_SEGMENT = 10 * MIB  # from here on a block gets a segment of its own size, rounded to
SEGMENT_ROUNDING = 2 * MIB


class OutOfMemoryError(Exception):
    """A tensor fits nowhere within the limit."""


@dataclass(eq=False)
class Block:
    """Neighbouring bytes of a segment with one use.

    Attributes:
        address: in a space that all segments share.
        size: bytes.
        pool: the pool it belongs to.
        free: whether no tensor is in it.
        mapped: whether there is memory behind it; always so outside expandable segments.
        before, after: its neighbours in the segment.
    """

    address: int
    size: int
    pool: Pool
    free: bool = True
    mapped: bool = True
    before: Block | None = None
    after: Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Its place among the free blocks: of equal ones the lowest address comes first."""
        return self.size, self.address


@dataclass(eq=False)
class Pool:
    """The blocks of one kind.

    Attributes:
        page: bytes mapped at a time in expandable segments.
        blocks: free, mapped blocks by address; `order` has their keys in ascending order.
        unmapped: blocks without memory by address.
    """

    page: int
    blocks: dict[int, Block] = field(default_factory=dict)
    order: list[tuple[int, int]] = field(default_factory=list)
    unmapped: dict[int, Block] = field(default_factory=dict)

    def insert(self, block: Block) -> None:
        """Take a free block."""
        if block.mapped:
            self.blocks[block.address] = block
            insort(self.order, block.key)
        else:
            self.unmapped[block.address] = block

    def remove(self, block: Block) -> None:
        """Give a free block up."""
        if block.mapped:
            del self.blocks[block.address]
            del self.order[bisect_left(self.order, block.key)]
        else:
            del self.unmapped[block.address]


class CachingAllocator:
    """The allocator of one card.

    Attributes:
        limit: bytes it may reserve.
        expandable: whether segments are ranges of addresses that memory is mapped into page by page.
        max_split_size: blocks of at least so many bytes are never split, and are given back one by one.
        reserved, peak: bytes it has of the card, now and at most.
    """

    def __init__(self, limit: int, *, expandable: bool, max_split_size: int = UNLIMITED) -> None:
        self.limit, self.expandable, self.max_split_size = limit, expandable, max_split_size
        self.reserved = self.peak = 0
        self._small, self._large = Pool(SMALL_SEGMENT), Pool(LARGE_SEGMENT)
        self._next_address = 0

    def malloc(self, size: int) -> Block:
        """Return a block for a tensor of `size` bytes.

        Raises:
            OutOfMemoryError: there is none within the limit.
        """
        size = max(ROUNDING, -(-size // ROUNDING) * ROUNDING)
        pool = self._small if size <= SMALL else self._large
        block = self._cached(pool, size) or self._reserve(pool, size)
        if block is None and self._release_large(size):
            block = self._reserve(pool, size)
        if block is None:
            self.empty_cache()
            block = self._reserve(pool, size)
        if block is None:
            raise OutOfMemoryError(f"{size} bytes at {self.reserved} of {self.limit} reserved")
        block.free = False
        rest = block.size - size
        splits = size < self.max_split_size and rest > SMALL
        if rest >= ROUNDING and (pool is self._small or self.expandable or splits):
            pool.insert(self._split(block, size))
        return block

    def free(self, block: Block) -> None:
        """Take a block back, merged with its free neighbours."""
        block.free = True
        block.pool.insert(self._merged(block))

    def empty_cache(self) -> None:
        """Give back what no tensor is in: segments that are free as a whole, or whole free pages."""
        for pool in (self._large, self._small):
            for block in list(pool.blocks.values()):
                if self.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved -= block.size

    def _cached(self, pool: Pool, size: int) -> Block | None:
        """Return the free block that fits best, taken out of the pool."""
        place = bisect_left(pool.order, (size, 0))
        if place == len(pool.order):
            return None
        block = pool.blocks[pool.order[place][1]]
        if self.expandable:
            # A block that can grow counts with what it can grow to.
            for _, address in pool.order[place + 1 :]:
                if _growable(pool.blocks[address]) >= _growable(block):
                    break
                block = pool.blocks[address]
        if size < self.max_split_size <= block.size:
            return None
        if size >= self.max_split_size and block.size >= size + LARGE_SEGMENT:
            return None
        pool.remove(block)
        return block

    def _release_large(self, size: int) -> bool:
        """Give back enough of the free blocks that are never split; return whether that was possible."""
        pool, wanted = self._large, max(size, self.max_split_size)
        place = bisect_left(pool.order, (wanted, 0))
        found = pool.order[place : place + 1]
        released = sum(length for length, _ in found)
        for length, address in reversed(pool.order[:place]):
            if released >= wanted or length < self.max_split_size:
                break
            found.append((length, address))
            released += length
        for _, address in found:
            block = pool.blocks[address]
            pool.remove(block)
            self.reserved -= block.size
        return released >= wanted

    def _reserve(self, pool: Pool, size: int) -> Block | None:
        """Return a block of new memory; None beyond the limit."""
        if pool is self._small:
            segment = SMALL_SEGMENT
        else:
            segment = LARGE_SEGMENT if size < OWN_SEGMENT else -(-size // SEGMENT_ROUNDING) * SEGMENT_ROUNDING
        if self.reserved + segment > self.limit:
            return None
        if self.expandable:
            return self._grown(pool, size)
        block = Block(self._next_address, segment, pool)
        self._next_address += segment
        self._count(segment)
        return block

    def _count(self, size: int) -> None:
        self.reserved += size
        self.peak = max(self.peak, self.reserved)

    def _split(self, block: Block, size: int) -> Block:
        """Cut a block to `size`, and return the rest."""
        rest = Block(block.address + size, block.size - size, block.pool, True, block.mapped, block, block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        return rest

    def _merged(self, block: Block) -> Block:
        """Return a free block that is in no pool together with the free neighbours of its kind."""
        before, after = block.before, block.after
        if after is not None and after.free and after.mapped == block.mapped:
            block.pool.remove(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block
        if before is not None and before.free and before.mapped == block.mapped:
            block.pool.remove(before)
            before.size, before.after = before.size + block.size, block.after
            if before.after is not None:
                before.after.before = before
            return before
        return block

    def _grown(self, pool: Pool, size: int) -> Block | None:
        """Return a block of at least `size` whose missing pages are mapped, at the lowest address there is one."""
        block = self._expandable_block(pool, size)
        while not block.mapped or block.size < size:
            target = block if not block.mapped else block.after
            assert target is not None
            wanted = min(target.size, size if target is block else size - block.size)
            mapped = min(target.size, -(-wanted // pool.page) * pool.page)
            if self.reserved + mapped > self.limit:
                return None
            pool.remove(target)
            if mapped < target.size:
                pool.insert(self._split(target, mapped))
            target.mapped = True
            self._count(mapped)
            block = self._merged(target)
            pool.insert(block)
        pool.remove(block)
        return block

    def _expandable_block(self, pool: Pool, size: int) -> Block:
        """Return the first of neighbouring free blocks, at least one of them unmapped, of `size` bytes together."""
        for address in sorted(pool.unmapped):
            first = pool.unmapped[address]
            if first.before is not None and first.before.free:
                first = first.before
            room, block = 0, first
            while room < size and block is not None and block.free:
                room, block = room + block.size, block.after  # type: ignore[assignment]
            if room >= size:
                return first
        # Addresses are plenty: a segment has more of them than the card has memory.
        length = max(pool.page, -(-max(self.limit, size) * 9 // 8 // pool.page) * pool.page)
        segment = Block(self._next_address, length, pool, True, False)
        self._next_address += -(-length // LARGE_SEGMENT) * LARGE_SEGMENT  # segments begin with a page of any pool
        pool.insert(segment)
        return segment

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages of a free block."""
        page = block.pool.page
        start = -(-block.address // page) * page
        size = (block.address + block.size) // page * page - start
        if size <= 0:
            return
        block.pool.remove(block)
        middle = block
        if start > block.address:
            middle = self._split(block, start - block.address)
            block.pool.insert(block)
        if middle.size > size:
            block.pool.insert(self._split(middle, size))
        middle.mapped = False
        self.reserved -= size
        middle.pool.insert(self._merged(middle))


def _growable(block: Block) -> int:
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


class Event(NamedTuple):
    """What happens to one tensor of a card, or to the allocator.

    Attributes:
        kind: a tensor begins, ends, or the cache is emptied.
        tensor: its number; 0 for the cache.
        size: its bytes.
    """

    kind: Literal["malloc", "free", "empty_cache"]
    tensor: int = 0
    size: int = 0


def replay(trace: Iterable[Event], limit: int, *, expandable: bool, max_split_size: int = UNLIMITED) -> int:
    """Return the most that is reserved while a trace runs within a limit.

    Raises:
        OutOfMemoryError: it does not.
    """
    allocator = CachingAllocator(limit, expandable=expandable, max_split_size=max_split_size)
    blocks: dict[int, Block] = {}
    for event in trace:
        if event.kind == "malloc":
            blocks[event.tensor] = allocator.malloc(event.size)
        elif event.kind == "free":
            allocator.free(blocks.pop(event.tensor))
        else:
            allocator.empty_cache()
    return allocator.peak


def live_peak(trace: Iterable[Event]) -> int:
    """Return the most bytes of tensors that are there at once."""
    now = peak = 0
    sizes: dict[int, int] = {}
    for event in trace:
        if event.kind == "malloc":
            sizes[event.tensor] = event.size
            now += event.size
            peak = max(peak, now)
        elif event.kind == "free":
            now -= sizes.pop(event.tensor)
    return peak


def least_reserved(
    trace: list[Event], *, expandable: bool, max_split_size: int = UNLIMITED, step: int = 16 * MIB
) -> int:
    """Return the smallest limit, to `step` bytes, under which a trace runs: what it needs of a card."""

    def reserved(limit: int) -> int:
        return replay(trace, limit, expandable=expandable, max_split_size=max_split_size)

    above, below = reserved(UNLIMITED), live_peak(trace) - step
    while above - below > step:
        middle = (below + above) // 2
        try:
            above = min(middle, reserved(middle))
        except OutOfMemoryError:
            below = middle
    return above
