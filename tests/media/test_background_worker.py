"""Background worker: in order, bounded, with every failure told, and over when the block is."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
from piying.core.errors import PiyingError
from piying.core.media.background_worker import WorkCancelled, background_worker

SOON = 20  # seconds that no step here takes


class Cancelled(Exception):
    """What a host raises."""


class Thing:
    """Something that can be seen to be gone."""


def never():
    """Nobody cancels."""


def fails(jobs):
    for item in jobs.items():
        raise PiyingError(f"The disk is full at {item}.")


@pytest.fixture(autouse=True)
def nothing_runs_on():
    before = set(threading.enumerate())
    yield
    ended = [thread for thread in threading.enumerate() if thread not in before]
    for thread in ended:
        thread.join(SOON)
        assert not thread.is_alive()


def test_items_are_worked_on_in_order_beside_the_giver():
    done, began = [], threading.Event()

    def work(jobs):
        for item in jobs.items():
            began.set()
            time.sleep(0.001)
            done.append((item, threading.current_thread()))

    with background_worker(work, never) as jobs:
        jobs.put(0)
        assert began.wait(SOON), "the giver goes on meanwhile"
        for item in range(1, 50):
            jobs.put(item)
    assert [item for item, _ in done] == list(range(50))
    assert {thread for _, thread in done}.isdisjoint({threading.current_thread()})


def test_the_giver_waits_while_too_much_is_unfinished():
    going_on, done, told = threading.Semaphore(0), [], []

    def work(jobs):
        for item in jobs.items():
            assert going_on.acquire(timeout=SOON)
            done.append(item)

    def check():
        told.append(list(done))
        if len(told) == 1:
            going_on.release()

    with background_worker(work, check, max_pending=1) as jobs:
        jobs.put("first")
        assert not done and not told, "one may be unfinished"
        jobs.put("second")
        assert done == ["first"] and told[0] == [], "two may not"
        going_on.release()


def test_what_the_work_raises_comes_up_in_the_giver():
    with pytest.raises(PiyingError, match="full at 1"), background_worker(fails, never, max_pending=1) as jobs:
        jobs.put(1)
    given = []
    with pytest.raises(PiyingError, match="full at 1"), background_worker(fails, never, max_pending=0) as jobs:
        for item in range(1, 9):
            jobs.put(item)
            given.append(item)
            jobs.raise_failure()
    assert given == [1]


def test_a_giver_does_not_wait_for_work_that_has_failed():
    with pytest.raises(PiyingError, match="full at 0"), background_worker(fails, never, max_pending=1) as jobs:
        for item in range(9):
            jobs.put(item)


def test_a_giver_that_fails_has_everything_finished_that_it_gave():
    done, ends = [], []

    def work(jobs):
        with pytest.raises(WorkCancelled):
            for item in jobs.items():
                time.sleep(0.01)
                done.append(item)
        ends.append("told")

    with pytest.raises(KeyboardInterrupt), background_worker(work, never) as jobs:
        for item in range(9):
            jobs.put(item)
        raise KeyboardInterrupt
    assert done == list(range(9)) and ends == ["told"]


def test_work_that_heeds_it_stops_at_once_and_is_waited_for():
    began, steps = threading.Event(), []

    def work(jobs):
        for _ in jobs.items():
            began.set()
            for step in range(10_000):
                jobs.raise_if_cancelled()
                time.sleep(0.005)
                steps.append(step)

    with pytest.raises(Cancelled), background_worker(work, never) as jobs:
        jobs.put("long")
        assert began.wait(SOON)
        raise Cancelled
    assert 0 < len(steps) < 9000
    so_far = len(steps)
    time.sleep(0.05)
    assert len(steps) == so_far


def test_a_user_cancels_while_the_giver_waits():
    """In `give` and at the end of the block; the item is worked on all the same, and no thread but the giver asks."""
    for ends in ("give", "block"):
        done, asked, cancelled = [], [], threading.Event()

        def check(asked=asked, cancelled=cancelled):
            asked.append(threading.current_thread())
            cancelled.set()
            raise Cancelled

        def work(jobs, done=done, cancelled=cancelled):
            for item in jobs.items():
                assert cancelled.wait(SOON)
                done.append(item)

        with (
            pytest.raises(Cancelled),
            background_worker(work, check, max_pending=1 if ends == "give" else None) as jobs,
        ):
            jobs.put(1)
            jobs.put(2)
            assert ends == "block"
        assert done == [1, 2]
        assert asked == [threading.current_thread()]


def test_two_failures_are_both_told(caplog):
    with pytest.raises(KeyboardInterrupt), background_worker(fails, never) as jobs:
        jobs.put(7)
        raise KeyboardInterrupt
    assert "The disk is full at 7." in caplog.text
    caplog.clear()
    with pytest.raises(PiyingError), background_worker(fails, never, max_pending=0) as jobs:
        jobs.put(7)
        jobs.raise_failure()
    assert not caplog.text, "one failure is told once"


def test_nothing_of_an_item_is_kept_behind_it():
    gone = threading.Event()

    def work(jobs):
        for item in jobs.items():
            del item

    with background_worker(work, never, max_pending=0) as jobs:
        thing = Thing()
        weakref.finalize(thing, gone.set)
        jobs.put(thing)
        del thing
        assert gone.is_set()
