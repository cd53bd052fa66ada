"""Work done aside: a thread of its own takes what it is given, in order, while the giver goes on."""

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
# Seconds between two looks at whether the user has cancelled. On Windows Ctrl-C does not end a wait without a limit.
LOOK = 0.1


class Unwanted(Exception):
    """Raised in the work: the giver has failed or was cancelled, so what it makes is of no use."""


@contextmanager
def aside(
    work: Callable[[Aside[Item]], None], check: Callable[[], None], most: int | None = None
) -> Iterator[Aside[Item]]:
    """Have `work` done in a thread of its own while the body runs.

    The end of the body waits for it and raises what it raised. Where the body fails, Ctrl-C included, the work is
    told so and waited for as well: nothing runs on behind the block. An error of its own is then logged.

    Args:
        work: called once, in the thread; takes all of `items()`, and may ask `heed` between two of its steps.
        check: called now and then while the body waits for the thread, to raise where the user has cancelled. Never
            called in the thread.
        most: how many items may be unfinished when `give` returns; None is any number, and `give` never waits.
    """
    given = Aside[Item](check, most)
    try:
        given._begin(work)
        yield given
        given._end()
    except BaseException as error:
        given._abandon(error)
        raise


class Aside(Generic[Item]):
    """Both ends of work that is done aside: `give` and `raise_failure` for the giver, the rest for the work."""

    def __init__(self, check: Callable[[], None], most: int | None) -> None:
        self._check, self._most = check, most
        self._changed = Condition()
        self._waiting: deque[Item] = deque()
        self._unfinished = 0
        self._closed = self._unwanted = False
        self._done: Future[None] | None = None

    def give(self, item: Item) -> None:
        """Hand an item over, then wait while more than `most` are unfinished.

        It is worked on even where `check` ends the wait. Once the work has failed it goes nowhere: `raise_failure`.
        """
        with self._changed:
            self._waiting.append(item)
            self._unfinished += 1
            self._changed.notify_all()
        if self._most is not None:
            self._wait(self._has_room, self._check)

    def raise_failure(self) -> None:
        """Raise what the work has raised, if it has."""
        if self._done is not None and self._done.done():
            self._done.result()

    def items(self) -> Iterator[Item]:
        """Yield what is given, all of it. An item is finished when the next one is asked for.

        Raises:
            Unwanted: behind the last one, where the giver has failed.
        """
        while self._more():
            yield self._waiting.popleft()
            with self._changed:
                self._unfinished -= 1
                self._changed.notify_all()
        self.heed()

    def heed(self) -> None:
        """Raise `Unwanted` where the giver has failed."""
        if self._unwanted:
            raise Unwanted

    def _begin(self, work: Callable[[Aside[Item]], None]) -> None:
        pool = ThreadPoolExecutor(1, "piying-aside")
        self._done = pool.submit(work, self)
        pool.shutdown(wait=False)  # there will be no other work; this is done all the same
        self._done.add_done_callback(self._notify)

    def _end(self) -> None:
        assert self._done is not None
        self._close()
        self._wait(self._done.done, self._check)
        self._done.result()

    def _abandon(self, error: BaseException) -> None:
        self._unwanted = True
        self._close()
        if self._done is None:
            return
        self._wait(self._done.done)
        own = self._done.exception()
        if own is not None and own is not error and not isinstance(own, Unwanted):
            log.warning("What was done beside it failed too. %s", own)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _notify(self, done: Future[None]) -> None:
        del done
        with self._changed:
            self._changed.notify_all()

    def _more(self) -> bool:
        """Wait until an item is there, or none will come; return which."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return bool(self._waiting)

    def _has_room(self) -> bool:
        assert self._most is not None and self._done is not None
        return self._unfinished <= self._most or self._done.done()

    def _wait(self, until: Callable[[], bool], check: Callable[[], None] | None = None) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(until, LOOK):
                    return
            if check is not None:
                check()
