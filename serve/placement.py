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


@dataclass
class _Site:
    """Free workers of a kind that hold the same models.

    Attributes:
        number: tells it from others, in an order of its own.
        workers: their ids, the first to be taken last.
    """

    number: int
    kind: str
    loaded: frozenset[str]
    vram: int
    workers: list[str]


@dataclass
class _Line:
    """Free workers of a kind that lack equally many of a job's models: it costs the same on all of them.

    Attributes:
        missing: the share of its models that they lack.
        sites: the workers, those to be taken first last.
    """

    kind: str
    missing: float
    sites: list[_Site]

    @property
    def site(self) -> _Site | None:
        """The workers to be taken first; None where all are taken."""
        while self.sites and not self.sites[-1].workers:
            self.sites.pop()
        return self.sites[-1] if self.sites else None


@dataclass
class _Group:
    """Jobs with the same models and the same estimates, as a batch has: among them the first one is next everywhere.

    Attributes:
        kinds: that they fit.
        jobs: the next one last.
        wanted: kinds that jobs with fewer kinds to choose from wait for.
        lines: where they could start.
    """

    kinds: frozenset[str]
    jobs: list[WaitingJob]
    wanted: frozenset[str] = frozenset()
    lines: list[_Line] = field(default_factory=list)


def _cost(job: WaitingJob, kind: str, missing: float) -> float:
    """Return the seconds of a job with that share of its models to load."""
    estimate = job.estimates[kind]
    return estimate.seconds + missing * estimate.loading


@dataclass
class _Decision:
    """One call of `place`."""

    jobs: Sequence[WaitingJob]
    workers: Sequence[Worker]
    now: float
    _reserved: set[str] = field(default_factory=set, init=False)
    _busy_by_kind: dict[str, list[tuple[float, str, frozenset[str]]]] = field(default_factory=dict, init=False)
    _busy: dict[tuple[str, frozenset[str]], list[tuple[float, str]]] = field(default_factory=dict, init=False)

    def placements(self) -> Iterator[Placement]:
        """Go through the jobs in their order, and give each the free worker that is done with it first."""
        groups = self.groups()
        # The order: whether a job leaves that kind of machine to others, when it is due, its id.
        heads = [
            self.head(group, line, number, place)
            for number, group in enumerate(groups)
            for place, line in enumerate(group.lines)
        ]
        heapify(heads)
        while heads:
            leaves, _, name, number, place = heappop(heads)
            group = groups[number]
            line = group.lines[place]
            if line.site is None or not group.jobs:
                continue
            job = group.jobs[-1]
            if job.id == name:
                group.jobs.pop()
                chosen = self.choose(job, group, leaves)
                if chosen is not None:
                    yield Placement(name, chosen.workers.pop())
            if group.jobs:
                heappush(heads, self.head(group, line, number, place))

    def __post_init__(self) -> None:
        self._overdue = self.now - OVERTAKING

    def head(self, group: _Group, line: _Line, number: int, place: int) -> tuple[bool, float, str, int, int]:
        job = group.jobs[-1]
        estimate, submitted = job.estimates[line.kind], job.submitted  # inline: the bulk of a decision's time
        slack = STRETCH * (estimate.seconds + line.missing * estimate.loading)
        due = submitted + (slack if slack < OVERTAKING else OVERTAKING)
        return line.kind in group.wanted and submitted >= self._overdue, due, job.id, number, place

    def sites(self) -> list[_Site]:
        """Return the free workers, those that are alike together."""
        found: dict[tuple[str, int, tuple[str, ...]], list[str]] = {}
        for worker in self.workers:
            if worker.busy_until is None:
                found.setdefault((worker.kind, worker.vram, tuple(sorted(worker.loaded))), []).append(worker.id)
        return [
            _Site(number, kind, frozenset(loaded), vram, sorted(found[kind, vram, loaded], reverse=True))
            for number, (kind, vram, loaded) in enumerate(sorted(found))
        ]

    def groups(self) -> list[_Group]:
        kinds, sites = sorted({worker.kind for worker in self.workers}), self.sites()
        found: dict[tuple[int, frozenset[str]], _Group] = {}
        for job in self.jobs:
            # By identity: to compare the values of all jobs would take longer than it saves.
            key = id(job.estimates), job.models
            group = found.get(key)
            if group is None:
                known = job.estimates
                fitting = frozenset([kind for kind in kinds if kind in known and known[kind].fits])
                found[key] = _Group(fitting, [job])
            else:
                group.jobs.append(job)
        choices = {group.kinds for group in found.values()}
        wanted = {one: frozenset[str]().union(*(kinds for kinds in choices if kinds < one)) for one in choices}
        lines: dict[tuple[frozenset[str], frozenset[str]], list[_Line]] = {}
        for (_, models), group in found.items():
            if (group.kinds, models) not in lines:
                lines[group.kinds, models] = lines_to(group.kinds, models, sites)
            group.lines, group.wanted = lines[group.kinds, models], wanted[group.kinds]
            if len(group.jobs) > 1:
                group.jobs.sort(key=lambda job: (job.submitted, job.id), reverse=True)
        return list(found.values())

    def choose(self, job: WaitingJob, group: _Group, leaves: bool) -> _Site | None:
        """Return the free workers that a job goes to; None where it waits for a busy one."""
        is_young = job.submitted >= self._overdue
        wanted = group.wanted if is_young else frozenset()
        costs = [
            (_cost(job, line.kind, line.missing), site)
            for line in group.lines
            if (line.kind in wanted) == leaves and (site := line.site) is not None
        ]
        least = min(cost for cost, _ in costs)
        if is_young and self.reserve(job, group, wanted, least / WORTH_WAITING):
            return None
        alike = [(site.vram, cost, site.number, site) for cost, site in costs if cost <= ALIKE * least]
        return min(alike)[-1]

    def reserve(self, job: WaitingJob, group: _Group, wanted: frozenset[str], within: float) -> bool:
        """Reserve the busy worker that would be done with a job first, if that is within so many seconds."""
        best, chosen = within, ""
        for kind in sorted(group.kinds - wanted):
            for models, missing in ((job.models, 0.0), (frozenset[str](), 1.0)):
                busy = self.busy_workers(kind, models)
                while busy and busy[-1][1] in self._reserved:
                    busy.pop()
                if busy:
                    cost = busy[-1][0] - self.now + _cost(job, kind, missing)
                    if cost < best:
                        best, chosen = cost, busy[-1][1]
        if chosen:
            self._reserved.add(chosen)
        return bool(chosen)

    def busy_workers(self, kind: str, models: frozenset[str]) -> list[tuple[float, str]]:
        """Return when workers of a kind that hold these models will be free, the first one last.

        One that should have been by now is left out: nothing says how long it still takes.
        """
        if not self._busy_by_kind:
            for worker in self.workers:
                of_kind = self._busy_by_kind.setdefault(worker.kind, [])
                if worker.busy_until is not None and self.now < worker.busy_until < math.inf:
                    of_kind.append((worker.busy_until, worker.id, worker.loaded))
            for of_kind in self._busy_by_kind.values():
                of_kind.sort(key=lambda one: one[:2], reverse=True)
        key = kind, models
        if key not in self._busy:
            self._busy[key] = [(until, name) for until, name, loaded in self._busy_by_kind[kind] if models <= loaded]
        return self._busy[key]


def lines_to(kinds: frozenset[str], models: frozenset[str], sites: Sequence[_Site]) -> list[_Line]:
    """Return the free workers for jobs with these models that fit these kinds."""
    found: dict[tuple[str, float], list[_Site]] = {}
    for site in sites:
        if site.kind in kinds:
            found.setdefault((site.kind, len(models - site.loaded) / max(1, len(models))), []).append(site)
    for reached in found.values():
        # Models that these jobs do not need stay loaded for others.
        reached.sort(key=lambda site: (site.vram, len(site.loaded), site.number), reverse=True)
    return [_Line(kind, missing, reached) for (kind, missing), reached in found.items()]
