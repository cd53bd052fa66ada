"""A queue of jobs before many cards, without either: arrivals, loading, wrong estimates, and cards that fail.

Time goes in ticks: at each the queue learns what ended, failed and came, and its policy places jobs. What a job really
takes is not told to the policy, which sees estimates alone. Everything random is drawn from a seed before the first
tick, or for a job and a card by themselves, so that two policies meet the same day.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import pi, sin
from statistics import fmean, quantiles
from typing import Any

HOUR, DAY = 3600.0, 86400.0
OUT_OF_MEMORY = 20.0  # seconds after loading at which a job that does not fit gives up


@dataclass(frozen=True)
class JobType:
    """Jobs that are alike.

    Attributes:
        models: what they load, by the slot of a worker's memory that each takes: a slot holds one model.
        estimates: the planner's, by kind of card.
        share: of all jobs.
    """

    name: str
    models: Mapping[str, str]
    estimates: Mapping[str, Any]
    share: float


@dataclass(frozen=True)
class Cards:
    """Cards of a kind.

    Attributes:
        count: how many there are.
        vram: bytes of each.
        watts: of a busy one.
    """

    kind: str
    count: int
    vram: int
    watts: float


@dataclass(frozen=True)
class Scenario:
    """A day.

    Attributes:
        jobs: expected number of jobs that come within the day.
        swing: of the daily curve; the rate goes from `1 - swing` to `1 + swing` times its mean, and peaks at 15:00.
        bias, spread: standard deviations of the logarithm of real over estimated seconds: of all jobs of a type on a
            kind, and of each run beside that.
        longer: mean of that logarithm.
        failures: expected failures of a card in a day; it loses its job and its memory.
        repair: seconds that it is away.
        tick: seconds between two decisions.
    """

    cards: tuple[Cards, ...]
    types: tuple[JobType, ...]
    jobs: float
    swing: float = 0.8
    bias: float = 0.0
    spread: float = 0.0
    longer: float = 0.0
    failures: float = 1 / 3
    repair: float = 600.0
    tick: float = 30.0


@dataclass
class Job:
    """A job of the day.

    Attributes:
        luck: the run's own part of the error of its estimate, as a factor.
        told: what a policy was last told of it.
    """

    id: str
    submitted: float
    type: JobType
    luck: float
    started: float = -1.0
    told: Any = None


@dataclass
class Card:
    """A card: what it holds, and what it runs.

    Attributes:
        slots: {slot: the model in it}.
        began, loading, ends: of its job: when, how many seconds it loads, when it really ends.
        should_end: when it ends by its estimate.
        fits: whether the job does.
        run: a number for each job, by which a planned end is known to be that of another one.
        told: what a policy was last told of it.
    """

    id: str
    of: Cards
    slots: dict[str, str] = field(default_factory=dict)
    job: Job | None = None
    began: float = 0.0
    loading: float = 0.0
    ends: float = 0.0
    should_end: float = 0.0
    fits: bool = True
    run: int = 0
    told: Any = None

    @property
    def loaded(self) -> frozenset[str]:
        """The models in its memory."""
        return frozenset(self.slots.values())


# Waiting jobs in the order in which they came, free cards in the order in which they became free, all living cards,
# the time → which job starts where.
Policy = Callable[[Sequence[Job], Sequence[Card], Sequence[Card], float], list[tuple[Job, Card]]]


def first_come(waiting: Sequence[Job], free: Sequence[Card], _: Sequence[Card], __: float) -> list[tuple[Job, Card]]:
    """Give each job, in the order in which they came, the card that has been free longest of those that it fits."""
    found: list[tuple[Job, Card]] = []
    kinds: dict[str, list[Card]] = {}
    for card in reversed(free):
        kinds.setdefault(card.of.kind, []).append(card)
    place = {id(card): number for number, card in enumerate(free)}
    for job in waiting:
        able = [cards[-1] for kind, cards in kinds.items() if cards and job.type.estimates[kind].fits]
        if able:
            card = min(able, key=lambda one: place[id(one)])
            kinds[card.of.kind].pop()
            found.append((job, card))
        if len(found) == len(free):
            break
    return found


def blind(waiting: Sequence[Job], free: Sequence[Card], _: Sequence[Card], __: float) -> list[tuple[Job, Card]]:
    """Give the first job the first card; where it is too small the job comes back."""
    return list(zip(waiting, free, strict=False))


def by_plan(placement: Any) -> Policy:
    """Return the queue's own policy.

    Args:
        placement: its module.
    """

    def policy(
        waiting: Sequence[Job], free: Sequence[Card], living: Sequence[Card], now: float
    ) -> list[tuple[Job, Card]]:
        del free
        for job in waiting:
            if job.told is None:
                models = frozenset(job.type.models.values())
                job.told = placement.WaitingJob(job.id, job.submitted, models, job.type.estimates)
        for card in living:
            state = card.run, card.job is None, len(card.slots)
            if card.told is None or card.told[0] != state:  # most have not changed
                until = card.should_end if card.job is not None else None
                card.told = state, placement.Worker(card.id, card.of.kind, card.loaded, until, card.of.vram)
        placed = placement.place([job.told for job in waiting], [card.told[1] for card in living], now)
        by_job, by_card = {job.id: job for job in waiting}, {card.id: card for card in living}
        return [(by_job[one.job], by_card[one.worker]) for one in placed]

    return policy


@dataclass
class Figures:
    """What a day came to.

    Attributes:
        done: jobs that were finished within the day, and in all.
        waits: seconds from the submission of each job to the start of the attempt that ended it, by type.
        turnarounds: to its end.
        busy: seconds that cards of each kind ran jobs within the day; `loading` of those and later ones loaded.
        makespan: when the last job ended.
        tries: attempts that ran out of memory, and those that a failure of the card ended.
    """

    done: int = 0
    done_in_all: int = 0
    waits: dict[str, list[float]] = field(default_factory=dict)
    turnarounds: dict[str, list[float]] = field(default_factory=dict)
    busy_in_day: float = 0.0
    busy: Counter[str] = field(default_factory=Counter)
    loading: float = 0.0
    makespan: float = 0.0
    tries: Counter[str] = field(default_factory=Counter)

    def to_json(self, scenario: Scenario) -> dict[str, float]:
        """Return the figures: seconds, shares and kilowatt-hours."""
        waits, turnarounds = ([one for many in by.values() for one in many] for by in (self.waits, self.turnarounds))
        busy = sum(self.busy.values())
        watts = {cards.kind: cards.watts for cards in scenario.cards}
        return {
            "jobs done in the day": self.done,
            "jobs done": self.done_in_all,
            "mean wait": fmean(waits),
            "p95 wait": quantiles(waits, n=20)[-1],
            "longest wait": max(waits),
            "mean turnaround": fmean(turnarounds),
            "makespan": self.makespan,
            "share of busy time loading": self.loading / busy,
            "utilisation": self.busy_in_day / (DAY * sum(cards.count for cards in scenario.cards)),
            "kWh": sum(watts[kind] * seconds for kind, seconds in self.busy.items()) / 3.6e6,
            "out of memory": self.tries["out of memory"],
            "lost with a card": self.tries["failed"],
        } | {f"mean turnaround, {name}": fmean(many) for name, many in sorted(self.turnarounds.items())}


def arrivals(scenario: Scenario, draw: random.Random) -> list[Job]:
    """Return the jobs of a day, by thinning of a Poisson process of its highest rate."""
    highest = scenario.jobs / DAY * (1 + scenario.swing)
    found: list[Job] = []
    at = draw.expovariate(highest)
    while at < DAY:
        # The sine's peak, a quarter of a day after its start, is at 15:00.
        rate = 1 + scenario.swing * sin(2 * pi * (at - 9 * HOUR) / DAY)
        if draw.random() * (1 + scenario.swing) < rate:
            (chosen,) = draw.choices(scenario.types, [one.share for one in scenario.types])
            found.append(Job(f"{len(found):07}", at, chosen, draw.lognormvariate(0.0, scenario.spread)))
        at += draw.expovariate(highest)
    return found


@dataclass
class Simulation:
    """One day under one policy.

    Args:
        latest: seconds after which it is given up; jobs that are not done by then do not count.
    """

    scenario: Scenario
    policy: Policy
    seed: int
    latest: float = 4 * DAY

    def __post_init__(self) -> None:
        draw, scenario = random.Random(self.seed), self.scenario
        self._jobs = arrivals(scenario, draw)
        self._bias = {
            (one.name, cards.kind): draw.lognormvariate(scenario.longer, scenario.bias)
            for one in scenario.types
            for cards in scenario.cards
        }
        kinds = [cards for cards in scenario.cards for _ in range(cards.count)]
        draw.shuffle(kinds)
        self._cards = [Card(f"{number:05}", cards) for number, cards in enumerate(kinds)]
        self._failures = sorted(self._drawn_failures(draw), key=lambda one: one[0])
        self._free = {card.id: card for card in self._cards}  # in the order in which they became free
        self._living = dict(self._free)
        self._ends: list[tuple[float, str, int]] = []
        self._repairs: list[tuple[float, str]] = []
        self.figures = Figures()

    def _drawn_failures(self, draw: random.Random) -> Iterator[tuple[float, Card]]:
        if self.scenario.failures:
            for card in self._cards:
                at = draw.expovariate(self.scenario.failures / DAY)
                while at < self.latest:
                    yield at, card
                    at += self.scenario.repair + draw.expovariate(self.scenario.failures / DAY)

    def run(self) -> Figures:
        """Go through the day and what is left of it, and return the figures."""
        coming, failing = iter([*self._jobs, None]), iter([*self._failures, None])
        job, failure = next(coming), next(failing)
        waiting: dict[str, Job] = {}
        now = 0.0
        while now < self.latest and (job is not None or waiting or self._ends):
            now += self.scenario.tick
            changed = self._end(now, waiting)
            while failure is not None and failure[0] <= now:
                changed |= self._fail(*failure, waiting)
                failure = next(failing)
            changed |= self._repair(now)
            while job is not None and job.submitted <= now:
                waiting[job.id] = job
                job, changed = next(coming), True
            if changed and waiting and self._free:
                queue = sorted(waiting.values(), key=lambda one: one.submitted)
                for one, card in self.policy(queue, list(self._free.values()), list(self._living.values()), now):
                    del waiting[one.id]
                    self._start(one, card, now)
        return self.figures

    def _start(self, job: Job, card: Card, now: float) -> None:
        estimate, models = job.type.estimates[card.of.kind], job.type.models
        missing = sum(card.slots.get(slot) != model for slot, model in models.items())
        loading = estimate.loading * missing / len(models) if missing else 0.0
        longer = self._bias[job.type.name, card.of.kind] * job.luck
        seconds = estimate.seconds if estimate.fits else OUT_OF_MEMORY
        card.job, card.began, card.fits, card.loading = job, now, estimate.fits, loading * longer
        card.ends = now + card.loading + seconds * longer
        card.should_end = now + loading + seconds
        card.slots.update(models)
        job.started = now
        card.run += 1
        del self._free[card.id]
        heappush(self._ends, (card.ends, card.id, card.run))

    def _end(self, now: float, waiting: dict[str, Job]) -> bool:
        changed = False
        while self._ends and self._ends[0][0] <= now:
            at, name, run = heappop(self._ends)
            card = self._living.get(name)
            if card is None or card.job is None or card.run != run:
                continue  # the card failed before
            job, figures, changed = card.job, self.figures, True
            self._count_busy(card, at)
            if card.fits:
                figures.done_in_all += 1
                figures.done += at <= DAY
                figures.makespan = max(figures.makespan, at)
                figures.waits.setdefault(job.type.name, []).append(job.started - job.submitted)
                figures.turnarounds.setdefault(job.type.name, []).append(at - job.submitted)
            else:
                figures.tries["out of memory"] += 1
                waiting[job.id] = job
            card.job = None
            self._free[name] = card
        return changed

    def _count_busy(self, card: Card, until: float) -> None:
        self.figures.busy[card.of.kind] += until - card.began
        self.figures.busy_in_day += max(0.0, min(until, DAY) - min(card.began, DAY))
        self.figures.loading += min(card.loading, until - card.began)

    def _fail(self, at: float, card: Card, waiting: dict[str, Job]) -> bool:
        if card.id not in self._living:
            return False
        if card.job is not None:
            self._count_busy(card, at)
            self.figures.tries["failed"] += 1
            waiting[card.job.id] = card.job
        card.job, card.slots = None, {}
        self._free.pop(card.id, None)
        del self._living[card.id]
        heappush(self._repairs, (at + self.scenario.repair, card.id))
        return True

    def _repair(self, now: float) -> bool:
        changed = False
        while self._repairs and self._repairs[0][0] <= now:
            _, name = heappop(self._repairs)
            card = self._cards[int(name)]
            self._living[name] = self._free[name] = card
            changed = True
        return changed
