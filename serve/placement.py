"""Placement of jobs: which waiting job starts on which free worker, from the memory plan's estimates alone.

List scheduling on unrelated machines with setup times, where the setup is the loading of weights:

- Order: earliest due date, with due dates by total work content (a job is due a multiple of its time on that worker
  after its submission), at most `OVERTAKING` after it. Short jobs, and jobs whose models the worker holds, go first.
- Choice: minimum completion time. A job may wait for a busy worker that will be done with it sooner; it has a
  reservation there, as in EASY backfilling, and what comes behind it takes the free worker.
- A job leaves a kind of machine to jobs that have fewer kinds to choose from, unless another is left to it.

Bound: on a worker where it fits, no job is overtaken by one that was submitted more than `OVERTAKING` after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush

OVERTAKING = 3600.0  # seconds between the submissions of two jobs beyond which the later one never goes first
STRETCH = 4.0  # a job is due so many times its own seconds after its submission
# Estimates are not exact: a busy worker has to be better by so much to be waited for, and a free one to be preferred
# to a smaller card.
WORTH_WAITING, ALIKE = 1.25, 1.1


@dataclass(frozen=True)
class Estimate:
    """What a job needs on a kind of machine.

    Attributes:
        fits: whether it runs there at all.
        seconds: of the run, with its models loaded.
        loading: seconds to read and cast the weights that are not loaded, on top; all of them together.
        vram: predicted peak of the card in bytes.
        ram: predicted peak of main memory in bytes.

    Raises:
        ValueError: `seconds` or `loading` is below 0 or not a number.
    """

    fits: bool
    seconds: float
    loading: float
    vram: int
    ram: int

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("loading", self.loading)):
            if not value >= 0:
                raise ValueError(f"{name} of an estimate is {value}: give a number of seconds from 0 on.")


@dataclass(frozen=True)
class WaitingJob:
    """A job that has no worker.

    Attributes:
        id: unique among the jobs.
        submitted: when it came, in seconds; a job that is tried again keeps the time.
        models: the models that it loads.
        estimates: by kind of machine; it does not fit kinds that are left out.
    """

    id: str
    submitted: float
    models: frozenset[str]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Worker:
    """A card, or a machine without one, that runs one job at a time.

    Attributes:
        id: unique among the workers.
        kind: of the machine; workers of a kind have the same estimates.
        loaded: the models in its memory, those of the job that it runs included.
        busy_until: when the job that it runs should be done; None where it runs none.
        vram: bytes of the card; of workers that are about equally fast the one with the least is taken.
    """

    id: str
    kind: str
    loaded: frozenset[str]
    busy_until: float | None
    vram: int = 0


@dataclass(frozen=True)
class Placement:
    """A job and the worker that it starts on, by their ids."""

    job: str
    worker: str


def place(jobs: Sequence[WaitingJob], workers: Sequence[Worker], now: float) -> list[Placement]:
    """Return which jobs start now and where; a worker gets at most one, and a job that fits no free one waits.

    Pure: the same jobs and workers give the same placements, in whatever order they come.

    Args:
        jobs: all that wait.
        workers: all that live, free and busy.
        now: the time in seconds, on the clock of `submitted` and `busy_until`.

    Raises:
        ValueError: two jobs or two workers have the same id.
    """
    for one, ids in (("jobs", [job.id for job in jobs]), ("workers", [worker.id for worker in workers])):
        if len(set(ids)) < len(ids):
            twice = next(name for name in sorted(ids) if ids.count(name) > 1)
            raise ValueError(f"Two {one} have the id {twice!r}: give each its own.")
    return list(_Decision(jobs, workers, now).placements())


# The order of jobs on one kind of machine: whether it leaves that kind to others, when it is due, its id, itself.
_Entry = tuple[bool, float, str, WaitingJob]


@dataclass
class _Site:
    """Free workers of a kind that hold the same models.

    Attributes:
        workers: their ids, the first to be taken last.
    """

    kind: str
    loaded: frozenset[str]
    vram: int
    workers: list[str]


@dataclass
class _Group:
    """Jobs with the same models that fit the same kinds of machines.

    Attributes:
        wanted: kinds that jobs with fewer kinds to choose from wait for.
        lines: {(kind, models that are not loaded there): a heap of its jobs}.
    """

    kinds: frozenset[str]
    models: frozenset[str]
    jobs: list[WaitingJob]
    wanted: frozenset[str] = frozenset()
    lines: dict[tuple[str, int], list[_Entry]] = field(default_factory=dict)

    def missing(self, loaded: frozenset[str]) -> int:
        """Return how many of the models are not among those."""
        return len(self.models - loaded)

    def cost(self, job: WaitingJob, kind: str, missing: int) -> float:
        """Return the seconds of a job of this group, with so many of its models to load."""
        estimate = job.estimates[kind]
        return estimate.seconds + (estimate.loading * missing / len(self.models) if missing else 0.0)

    def line(self, kind: str, missing: int, overdue: float) -> list[_Entry]:
        """Return the jobs as a heap in their order on a kind of machine.

        Args:
            overdue: jobs that were submitted before leave the kind to no others.
        """
        line = self.lines.get((kind, missing))
        if line is None:
            wanted, share = kind in self.wanted, missing / max(1, len(self.models))
            line = self.lines[kind, missing] = []
            for job in self.jobs:  # inline: the bulk of a decision's time
                estimate, submitted = job.estimates[kind], job.submitted
                slack = STRETCH * (estimate.seconds + share * estimate.loading)
                due = submitted + (slack if slack < OVERTAKING else OVERTAKING)
                line.append((wanted and submitted >= overdue, due, job.id, job))
            heapify(line)
        return line


@dataclass
class _Decision:
    """One call of `place`."""

    jobs: Sequence[WaitingJob]
    workers: Sequence[Worker]
    now: float
    _reserved: set[str] = field(default_factory=set, init=False)
    _busy: dict[tuple[str, frozenset[str]], list[tuple[float, str]]] = field(default_factory=dict, init=False)

    @property
    def _overdue(self) -> float:
        return self.now - OVERTAKING

    @cached_property
    def _sites(self) -> list[_Site]:
        """The free workers, those that are alike together."""
        found: dict[tuple[str, int, tuple[str, ...]], _Site] = {}
        for worker in sorted(self.workers, key=lambda worker: worker.id, reverse=True):
            if worker.busy_until is None:
                key = worker.kind, worker.vram, tuple(sorted(worker.loaded))
                site = found.setdefault(key, _Site(worker.kind, worker.loaded, worker.vram, []))
                site.workers.append(worker.id)
        return [found[key] for key in sorted(found)]

    @cached_property
    def _groups(self) -> list[_Group]:
        kinds = sorted({worker.kind for worker in self.workers})
        found: dict[tuple[frozenset[str], frozenset[str]], _Group] = {}
        for job in self.jobs:
            estimates = job.estimates
            fitting = frozenset([kind for kind in kinds if kind in estimates and estimates[kind].fits])
            key = fitting, job.models
            if key in found:
                found[key].jobs.append(job)
            elif fitting:
                found[key] = _Group(fitting, job.models, [job])
        choices = {group.kinds for group in found.values()}
        for group in found.values():
            fewer = [kinds for kinds in choices if kinds < group.kinds]
            group.wanted = frozenset().union(*fewer)
        return list(found.values())

    def placements(self) -> Iterator[Placement]:
        """Go through the jobs in their order, and give each the free worker that is done with it first."""
        settled: set[str] = set()

        def line(group: _Group, site: _Site) -> list[_Entry]:
            return group.line(site.kind, group.missing(site.loaded), self._overdue)

        # The first of each line on each site; equal jobs are told apart by the two numbers.
        heads = [
            (*line(group, site)[0][:3], place, number)
            for place, site in enumerate(self._sites)
            for number, group in enumerate(self._groups)
            if site.kind in group.kinds
        ]
        heapify(heads)
        while heads:
            *_, name, place, number = heappop(heads)
            site, group = self._sites[place], self._groups[number]
            if not site.workers:
                continue
            waiting = line(group, site)
            if name not in settled:
                leaves, _, _, job = waiting[0]
                settled.add(name)
                chosen = self._choose(job, group, leaves)
                if chosen is not None:
                    yield Placement(name, chosen.workers.pop())
            while waiting and waiting[0][2] in settled:
                heappop(waiting)
            if waiting:
                heappush(heads, (*waiting[0][:3], place, number))

    def _choose(self, job: WaitingJob, group: _Group, leaves: bool) -> _Site | None:
        """Return the free workers that a job goes to; None where it waits for a busy one."""
        is_young = job.submitted >= self._overdue
        wanted = group.wanted if is_young else frozenset()
        costs = [
            (group.cost(job, site.kind, group.missing(site.loaded)), number)
            for number, site in enumerate(self._sites)
            if site.workers and site.kind in group.kinds and (site.kind in wanted) == leaves
        ]
        least = min(costs)[0]
        if is_young and self._reserve(job, group, wanted, least / WORTH_WAITING):
            return None

        def preference(cost: float, number: int) -> tuple[int, float, int, int]:
            # Models that this job does not need stay loaded for others.
            site = self._sites[number]
            return site.vram, cost, len(site.loaded), number

        return self._sites[min(preference(*one) for one in costs if one[0] <= ALIKE * least)[-1]]

    def _reserve(self, job: WaitingJob, group: _Group, wanted: frozenset[str], within: float) -> bool:
        """Reserve the busy worker that would be done with a job first, if that is within so many seconds."""
        best, chosen = within, ""
        for kind in sorted(group.kinds - wanted):
            for models, missing in ((group.models, 0), (frozenset[str](), len(group.models))):
                busy = self._busy_workers(kind, models)
                while busy and busy[-1][1] in self._reserved:
                    busy.pop()
                if busy:
                    cost = busy[-1][0] - self.now + group.cost(job, kind, missing)
                    if cost < best:
                        best, chosen = cost, busy[-1][1]
        if chosen:
            self._reserved.add(chosen)
        return bool(chosen)

    def _busy_workers(self, kind: str, models: frozenset[str]) -> list[tuple[float, str]]:
        """Return when workers of a kind that hold these models will be free, the first one last.

        One that should have been by now is left out: nothing says how long it still takes.
        """
        key = kind, models
        if key not in self._busy:
            self._busy[key] = sorted(
                (
                    (worker.busy_until, worker.id)
                    for worker in self.workers
                    if worker.busy_until is not None
                    and math.isfinite(worker.busy_until)
                    and worker.busy_until > self.now
                    and worker.kind == kind
                    and models <= worker.loaded
                ),
                reverse=True,
            )
        return self._busy[key]
