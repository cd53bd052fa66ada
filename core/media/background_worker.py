"""Background worker: a thread that consumes a queue in order while the producer goes on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import Generic, TypeVar

log = logging.getLogger("piying")

Item = TypeVar("Item")
# Seconds between two checks for cancellation. On Windows, Ctrl-C does not interrupt a wait without a timeout.
POLL = 0.1


class WorkCancelled(Exception):
    """Raised in the thread: the block has failed or was cancelled, so the result of the work is not needed."""


@contextmanager
def background_worker(
    work: Callable[[BackgroundWorker[Item]], None], check: Callable[[], None], max_pending: int | None = None
) -> Iterator[BackgroundWorker[Item]]:
    """Run `work` in a background thread during the block.

    The end of the block waits for it and raises what it raised. Where the block fails, Ctrl-C included, the work is
    cancelled and waited for as well: no thread outlives the block. An error of its own is then logged.

    Args:
        work: called once, in the thread; takes all of `items()`, and may call `raise_if_cancelled` between its steps.
        check: called now and then while the block waits for the thread, to raise where the user has cancelled. Never
            called in the thread: hosts answer in the one that runs the node.
        max_pending: how many items may be unfinished when `put` returns; None is any number, and `put` never waits.
    """
    worker = BackgroundWorker[Item](check, max_pending)
    try:
        worker._start(work)
        yield worker
        worker._finish()
    except BaseException as error:
        worker._cancel(error)
        raise


class BackgroundWorker(Generic[Item]):
    """Both ends of the queue: `put` and `raise_failure` for the block, the rest for the thread."""

    def __init__(self, check: Callable[[], None], max_pending: int | None) -> None:
        self._check, self._max_pending = check, max_pending
        self._changed = Condition()
        self._queue: deque[Item] = deque()
        self._pending = 0
        self._closed = self._cancelled = False
        self._done: Future[None] | None = None

    def put(self, item: Item) -> None:
        """Add an item to the queue, then wait while more than `max_pending` are unfinished.

        It is worked on even where `check` ends the wait. Once the work has failed it is dropped: `raise_failure`.
        """

        def has_room() -> bool:
            assert self._max_pending is not None and self._done is not None
            return self._pending <= self._max_pending or self._done.done()

        with self._changed:
            self._queue.append(item)
            self._pending += 1
            self._changed.notify_all()
        if self._max_pending is not None:
            self._wait(has_room, self._check)

    def raise_failure(self) -> None:
        """Raise what the work has raised, if it has."""
        if self._done is not None and self._done.done():
            self._done.result()

    def items(self) -> Iterator[Item]:
        """Yield what was put, all of it. An item is finished when the next one is asked for.

        Raises:
            WorkCancelled: behind the last one, where the block has failed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    break
            # No local variable: it would keep the item, a window of video, in memory after its user has released it.
            yield self._queue.popleft()
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()
        self.raise_if_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raise `WorkCancelled` where the block has failed."""
        if self._cancelled:
            raise WorkCancelled

    def _start(self, work: Callable[[BackgroundWorker[Item]], None]) -> None:
        pool = ThreadPoolExecutor(1, "piying-background")
        self._done = pool.submit(work, self)
        # Refuses further work; what was submitted still runs to its end.
        pool.shutdown(wait=False)
        self._done.add_done_callback(lambda _: self._notify())

    def _finish(self) -> None:
        assert self._done is not None
        self._close()
        self._wait(self._done.done, self._check)
        self._done.result()

    def _cancel(self, error: BaseException) -> None:
        self._cancelled = True
        self._close()
        if self._done is None:
            return
        self._wait(self._done.done)
        own = self._done.exception()
        if own is not None and own is not error and not isinstance(own, WorkCancelled):
            log.warning("The work in the background failed too. %s", own)

    def _close(self) -> None:
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, until: Callable[[], bool], check: Callable[[], None] | None = None) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(until, POLL):
                    return
            # Outside the lock: a slow check must not block the thread.
            if check is not None:
                check()
