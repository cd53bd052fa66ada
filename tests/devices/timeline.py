"""Timeline of a pretend machine: queues of work, what is ordered before what, and the races between accesses.

Work is put into queues (streams) by the host and done later, in any order that the queues, their events and the
host's waits allow. Every access to memory is compared with the earlier ones: two of which one writes, and which
nothing orders, are a race, whatever order they happened to be done in (vector clocks, as in Fidge 1988).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

HOST = -1
Seen = dict[int, int]  # of each queue, and of the host, how much is known to be done


@dataclass(frozen=True)
class Marker:
    """A point in a queue: behind all that was in it when the marker was made."""

    queue: Queue
    position: int
    seen: Seen
    seconds: float

    @property
    def passed(self) -> bool:
        return self.queue.done >= self.position


class Queue:
    """Work in order: a stream of a device."""

    def __init__(self, timeline: Timeline, number: int, name: str) -> None:
        self.timeline, self.number, self.name = timeline, number, name
        self.tasks: list[Callable[[], None] | Marker] = []
        self.done = 0
        self.seen: Seen = {number: 0}
        self.seconds = 0.0  # when all that is in it will be done, in pretend time
        self.busy = 0.0  # of that, at work
        self.waited = 0.0  # of that, waiting for other queues

    def put(self, task: Callable[[], None] | Marker, seconds: float = 0.0) -> None:
        """Queue a task; it begins when the host has put it and all before it is done."""
        self.seconds = max(self.seconds, self.timeline.seconds) + seconds
        self.busy += seconds
        self.tasks.append(task)
        self.timeline.schedule(self)

    def wait(self, marker: Marker | None) -> None:
        """Let what is queued from here on wait for a marker of another queue."""
        if marker is not None:
            merge(self.seen, marker.seen)
            begin = max(self.seconds, self.timeline.seconds)
            self.seconds = max(begin, marker.seconds)
            self.waited += self.seconds - begin
            self.put(marker)

    def mark(self) -> Marker:
        return Marker(self, len(self.tasks), dict(self.seen), max(self.seconds, self.timeline.seconds))

    def run(self, position: int) -> None:
        """Do all work up to a position, and what it waits for elsewhere, but nothing else."""
        while self.done < position:
            task = self.tasks[self.done]
            if isinstance(task, Marker):
                task.queue.run(task.position)
            else:
                task()
            # What a task held lives no longer than until it is done.
            self.tasks[self.done] = _nothing
            self.done += 1


def _nothing() -> None:
    """Stand for work that is done."""


def merge(seen: Seen, other: Seen) -> None:
    for number, count in other.items():
        seen[number] = max(seen.get(number, 0), count)


@dataclass(frozen=True)
class Access:
    """Bytes [low, high) of a memory, read or written by a piece of work."""

    low: int
    high: int
    writes: bool
    queue: int
    count: int
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} {'writes' if self.writes else 'reads'} bytes {self.low}–{self.high} ({self.where})"


@dataclass(eq=False)
class Memory:
    """A piece of memory, and the accesses to it that a later one could race with."""

    name: str
    accesses: list[Access] = field(default_factory=list)


@dataclass
class Timeline:
    """The host, the queues, and the order between them.

    Attributes:
        faults: what went wrong, as sentences: pairs of accesses that nothing orders.
        seconds: pretend time on the host; it passes where the host waits or writes page-locked memory.
        chance: None does work as late as is allowed. A random generator does some of it earlier.
    """

    queues: list[Queue] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    chance: random.Random | None = None
    seen: Seen = field(default_factory=dict)
    _count: int = 0
    _known: set[tuple[str, str, str]] = field(default_factory=set)

    def queue(self, name: str) -> Queue:
        self.queues.append(Queue(self, len(self.queues), name))
        return self.queues[-1]

    def schedule(self, queue: Queue) -> None:
        """Do some of the work, or none: called whenever work was put into a queue."""
        if self.chance is not None and self.chance.random() < 0.5:
            some = self.chance.choice(self.queues)
            some.run(self.chance.randint(some.done, len(some.tasks)))

    def wait(self, marker: Marker | None) -> None:
        """Have the host wait until a marker is passed."""
        if marker is not None:
            marker.queue.run(marker.position)
            merge(self.seen, marker.seen)
            self.seconds = max(self.seconds, marker.seconds)

    def begin(self, queue: Queue) -> int:
        """Return the number of a piece of work that is about to be queued."""
        self._count += 1
        merge(queue.seen, self.seen)
        queue.seen[queue.number] = self._count
        return self._count

    def access(self, memory: Memory, part: tuple[int, int], *, queue: Queue | None, writes: bool, what: str) -> None:
        """Note an access by the work begun last in a queue, or by the host, and compare it with earlier ones."""
        low, high = part
        if low >= high:
            return
        seen = self.seen if queue is None else queue.seen
        number = HOST if queue is None else queue.number
        name = "the host" if queue is None else queue.name
        now = Access(low, high, writes, number, seen.get(number, 0), f"{what} on {name}", _caller())
        kept = []
        for before in memory.accesses:
            apart = before.high <= low or high <= before.low
            ordered = before.queue in (number, HOST) or before.count <= seen.get(before.queue, 0)
            if not apart and not ordered and (writes or before.writes):
                fault = f"{memory.name}: {now}, and nothing orders it behind this: {before}."
                if (now.what, now.where, before.what) not in self._known:
                    self.faults.append(fault)
                self._known.add((now.what, now.where, before.what))
            covered = low <= before.low and before.high <= high and (writes or not before.writes)
            if not (covered and ordered and (writes or before.queue == number)):
                kept.append(before)
        memory.accesses = [*kept, now]


OWN = (__file__, str(Path(__file__).with_name("pretend.py")))


def _caller() -> str:
    """Return the innermost line of the pack or its tests that led here."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "site-packages" not in name and name not in OWN:
            return f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "nowhere"
