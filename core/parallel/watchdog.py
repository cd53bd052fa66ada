"""Watchdog: a thread of every rank that gives signs of life, looks for those of the others, and tells who is lost."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import PiyingError
from .ranks import SILENCE_VARIABLE, Peer

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

BEAT = 0.5  # seconds between signs of life
GRACE = 10.0  # seconds that the main thread has to end by itself once a rank is lost
FAILURE, STOPPED, FINISHED = "failure", "stopped", "finished"


@dataclass(frozen=True)
class Failure:
    """Why a run on several ranks ends.

    Attributes:
        rank: which one is the cause.
        text: a sentence that names it.
        key: the `PhasePlan.key` of what ran out of memory there, where that is the cause.
        is_told: whether that rank has said so itself, to the user.
    """

    rank: int
    text: str
    key: str = ""
    is_told: bool = False


class RankLostError(PiyingError):
    """Another rank of the run has failed, so that this one ends too.

    Attributes:
        failure: which one, and why.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Watchdog:
    """Watches the other ranks of a run.

    Args:
        store: of its own: one that the main thread waits with answers nobody else.
        own: this rank.
        peers: all of them.
        silence: seconds without a sign of life after which a rank counts as hung.
        on_stuck: called with the failure where the main thread has not ended `GRACE` seconds after it.
        is_patient: whether rank 0 may be stopped, as by Ctrl-Z, for as long as its user likes.

    Attributes:
        failure: why the run ends; None as long as it goes on.
    """

    def __init__(
        self,
        store: Store,
        own: Peer,
        peers: Sequence[Peer],
        *,
        silence: float,
        on_stuck: Callable[[Failure], None],
        is_patient: bool = False,
    ) -> None:
        self.failure: Failure | None = None
        self._store, self._own, self._on_stuck = store, own, on_stuck
        self._others = [peer for peer in peers if peer.rank != own.rank]
        self._silence, self._is_patient = silence, is_patient
        self._ended = threading.Event()
        self._looking = threading.Lock()
        now = time.monotonic()
        self._heard = {peer.rank: (b"", now) for peer in self._others}
        self._thread = threading.Thread(target=self._watch, name="rank watchdog", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join(2 * BEAT)

    def look(self) -> Failure | None:
        """Look now, and return why the run ends; None where nothing is wrong."""
        with self._looking:
            if self.failure is None:
                self.failure = self._look()
            return self.failure

    def _watch(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            with contextlib.suppress(RuntimeError):  # the store is gone with rank 0, which `_look` finds out
                self._store.set(f"beat/{self._own.rank}", str(beats))
            failure = self.look()
            if failure is not None:
                if failure.rank != self._own.rank and not self._ended.wait(GRACE):
                    self._on_stuck(failure)
                return

    def _look(self) -> Failure | None:
        try:
            if self._store.check([FAILURE]):
                return Failure(**json.loads(self._store.get(FAILURE)))
            found = self._lost()
            if found is not None:
                # The first one that notices decides what all of them say.
                kept = self._store.compare_set(FAILURE, "", json.dumps(asdict(found)))
                return Failure(**json.loads(kept))
        except RuntimeError:
            # torchrun or rank 0 keeps the store: with that process it is gone.
            return Failure(0, "The process that keeps the ranks together has died: the run ends here. Start it again.")
        return None

    def _lost(self) -> Failure | None:
        now = time.monotonic()
        for peer in self._others:
            # It ends in order too where a signal has stopped it.
            if self._store.check([f"{STOPPED}/{peer.rank}"]):
                said = f"{peer} was stopped by a signal: the run ends here."
                return Failure(peer.rank, said, is_told=peer.rank == 0)
            if self._store.check([f"{FINISHED}/{peer.rank}"]):
                continue
            if peer.has_died(self._own.place):
                return Failure(
                    peer.rank,
                    f"{peer} has died: it was killed, as by a system that is out of memory, or it crashed. The run "
                    "ends here. Look into the system's log, and start it again.",
                )
            beat = f"beat/{peer.rank}"
            heard = self._store.get(beat) if self._store.check([beat]) else b""
            before, since = self._heard[peer.rank]
            if heard != before or (self._is_patient and peer.rank == 0 and peer.is_stopped(self._own.place)):
                self._heard[peer.rank] = heard, now
            elif now - since > self._silence:
                return Failure(
                    peer.rank,
                    f"{peer} has given no sign of life for {self._silence:g} s: it hangs, or cannot be reached. The "
                    f"run ends here. Start it again; {SILENCE_VARIABLE} sets how many seconds are waited.",
                )
        return None
