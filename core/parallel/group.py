"""Process group: the ranks of one run, what rank 0 tells the others, and the tensors that they exchange.

Rank 0 runs the graph. The others wait for what it gives them to do, and end with it. What is small goes through the
store that torchrun keeps, where a rank that waits can look meanwhile whether the others still live; tensors go by
torch.distributed: NCCL between cards, gloo between processes that have none of their own.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from ..errors import PiyingError
from ..executor.retry import PhaseOutOfMemoryError
from .ranks import Peer, Ranks
from .watchdog import FAILURE, FINISHED, STOPPED, Failure, RankLostError, Watchdog

if TYPE_CHECKING:
    from ..host.base import Host

START = 300.0  # seconds in which all ranks have to begin
# Of an exchange: what one rank is ahead of another, such as the time to read its weights. Ranks that die or hang as a
# whole are noticed by the watchdog, much sooner.
LONGEST_WAIT = timedelta(minutes=30)
CONNECT = timedelta(seconds=30)  # of ranks that all are there: torch does not look whether one dies meanwhile
LEAVE = 10.0  # seconds in which the ranks end together
SHORT, LONG = 0.0002, 0.02  # seconds between looks while something is awaited, at first and later
SHARE = 0.1  # of the time waited so far that a look may come late
TRIED_BYTES = 8 * 2**20  # sent to measure the link
END = "end"
# Not public in torch, and all there is for it.
abort_process_group: Callable[[], None] = dist.distributed_c10d._abort_process_group
set_longest_wait: Callable[[timedelta], None] = dist.distributed_c10d._set_pg_timeout


class Group:
    """The ranks of a run, of which this process is one; a context manager within which they work.

    Args:
        ranks: which one this process is.
        device: its torch device.
        on_stuck: called where this rank's main thread does not end after another one has failed, with that failure and
            whether it is this rank that tells it: it has to end the process, or what the thread waits for.
        on_wait: called while the others are awaited at the beginning; raises where they will not come.

    Attributes:
        own: this rank.
        peers: all of them, by their number.
        link: bytes per second from one to another, as measured.
        is_shared: whether some of them have one device together.
        is_on_streams: whether tensors are exchanged on the streams of the cards, by NCCL.

    Raises:
        PiyingError: the others do not come.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: str,
        on_stuck: Callable[[Failure, bool], None],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.own, self.device, self._ranks = Peer.here(ranks, device), device, ranks
        self._on_wait, self._end = on_wait, on_stuck
        self._number = self._agreed = 0
        self._store = self._connect(master=ranks.rank == 0 and not ranks.has_store)
        self._store.set(f"peer/{ranks.rank}", json.dumps(self.own.to_json()))
        self.peers = self._await_peers()
        self._watchdog = Watchdog(
            self._connect(),
            self.own,
            self.peers,
            silence=ranks.silence,
            on_stuck=self._on_stuck,
            is_patient=bool(ranks.store),
        )
        self.is_shared = len({(peer.place, peer.device) for peer in self.peers}) < len(self.peers)
        # NCCL wants a card for each rank, and Linux; gloo knows the processor alone.
        self.is_on_streams = device != "cpu" and not self.is_shared and dist.is_nccl_available()
        try:
            self._begin_exchange()
            self.link = self._measure_link()
        except BaseException as error:
            with suppress(RuntimeError):
                self._tell_failure(error)
            self.stop_watching()
            self.leave(in_order=False)
            raise

    @property
    def rank(self) -> int:
        """Which one this is."""
        return self.own.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.own.size

    @property
    def failure(self) -> Failure | None:
        """Why the run ends, as far as it is known; None as long as nothing is wrong."""
        return self._watchdog.failure

    @property
    def speaks(self) -> bool:
        """Whether it is this rank that tells the user of the failure: rank 0, or another where that is lost."""
        failure = self.failure
        if failure is None or failure.is_told:
            return False
        return self.rank == (1 if failure.rank == 0 else 0)

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A signal may be torchrun's, which ends all ranks where one has died.
        lost = self._watchdog.look() if error is not None else None
        self.stop_watching()
        with suppress(RuntimeError):  # the store is gone with the process that kept it
            if lost is None and error is not None:
                self._tell_failure(error)
            elif self.rank == 0 and lost is None:
                self.tell(END)
            self._store.set(f"{FINISHED}/{self.rank}", "")
            if error is None:
                dist.destroy_process_group()
            if self.rank == 0:
                # It may keep the store, in which the others look for what has happened.
                self._await_end([peer for peer in self.peers[1:] if lost is None or peer.rank != lost.rank])
            elif error is not None and lost is None:
                # It is rank 0 that tells the user, before torchrun ends it.
                self._await_end(self.peers[:1])

    def _on_stuck(self, failure: Failure) -> None:
        self._end(failure, self.speaks)

    def stop_watching(self) -> None:
        """Look no longer whether the others live."""
        self._watchdog.end()

    def _await_end(self, peers: Sequence[Peer]) -> None:
        until = time.monotonic() + LEAVE
        for peer in peers:
            while time.monotonic() < until and not self._store.check([f"{FINISHED}/{peer.rank}"]):
                if peer.has_died(self.own.place):
                    break
                time.sleep(LONG)

    def _tell_failure(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._store.set(f"{STOPPED}/{self.rank}", "")
            return
        key = error.key if isinstance(error, PhaseOutOfMemoryError) else ""
        text = str(error) if isinstance(error, PiyingError) else f"{type(error).__name__}: {error}"
        failure = Failure(self.rank, f"{self.own}: {text}", key, is_told=self.rank == 0)
        self._store.compare_set(FAILURE, "", json.dumps(asdict(failure)))

    def _connect(self, master: bool = False) -> Store:
        ranks = self._ranks
        if ranks.store:
            return FileStore(ranks.store, -1)
        try:
            store = TCPStore(
                ranks.address,
                ranks.port,
                is_master=master,
                wait_for_workers=False,
                timeout=timedelta(seconds=START),
            )
        except RuntimeError as error:  # DistNetworkError is one
            reason = str(error).partition("\n")[0]
            raise PiyingError(
                f"Rank {ranks.rank} of {ranks.size} cannot reach the rest at {ranks.address}:{ranks.port} ({reason}). "
                "Start with torchrun, or free that port."
            ) from error
        return PrefixStore(f"piying/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _await_peers(self) -> list[Peer]:
        ranks, until = self._ranks, time.monotonic() + START
        keys = [f"peer/{rank}" for rank in range(ranks.size)]
        while not self._store.check(keys):
            if time.monotonic() > until:
                missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
                raise PiyingError(
                    f"Of {ranks.size} ranks, {', '.join(missing)} did not begin within {START:g} s. Start all of them."
                )
            self._on_wait()
            time.sleep(LONG)
        peers = [Peer(**json.loads(self._store.get(key))) for key in keys]
        other = next((peer for peer in peers if peer.software != peers[0].software), None)
        if other is not None:
            raise PiyingError(
                f"{other} has {other.software}, and rank 0 {peers[0].software}. Install the same on all machines."
            )
        return peers

    def _measure_link(self) -> float:
        tried = torch.zeros(TRIED_BYTES, dtype=torch.uint8, device=self.device)
        seconds = []
        for _ in range(3):  # the first one connects
            begun = time.perf_counter()
            self.broadcast(tried, source=0)
            if self.device != "cpu":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - begun)
        # By broadcast one pair after the other has it: of two ranks this is the link, of more a lower bound.
        return TRIED_BYTES / max(min(seconds), 1e-9)

    def _begin_exchange(self) -> None:
        if self.is_on_streams:
            torch.cuda.set_device(self.device)
        keys = [f"ready/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], "")
        self._awaited(lambda: bool(self._with_store(lambda: self._store.check(keys))))
        try:
            dist.init_process_group(
                "nccl" if self.is_on_streams else "gloo",
                store=PrefixStore("tensors", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=CONNECT,
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise self.lost() or PiyingError(
                f"Tensors cannot be exchanged with the other ranks ({reason}). Look at the network interface that "
                "they go over: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name it where they are set."
            ) from error
        set_longest_wait(LONGEST_WAIT)

    def leave(self, in_order: bool) -> None:
        """Give up what tensors are exchanged by, where that is not done yet.

        Args:
            in_order: nothing is on its way.
        """
        if not dist.is_initialized():
            return
        # Kernels of NCCL wait for the other card until their communicator is aborted.
        leave = dist.destroy_process_group if in_order or not self.is_on_streams else abort_process_group
        # The watchdog's thread may have aborted it meanwhile.
        with suppress(RuntimeError, AssertionError, ValueError):
            leave()

    def assist(self, host: Host) -> None:
        """Do what rank 0 asks for until it is done, on the others; each thing it asks for has a method `assist`.

        Raises:
            PiyingError: this rank cannot do its part, or another one is lost.
        """
        while (job := self.hear()) != END:
            job.assist(self, host)

    def abandon(self) -> bool:
        """Give the other ranks up, which may wait in the middle of an exchange; returns whether new ones can come."""
        return False

    def check(self) -> None:
        """Go on where no rank is lost.

        Raises:
            RankLostError: one is.
        """
        if self.failure is not None:
            raise RankLostError(self.failure)

    def lost(self) -> RankLostError | None:
        """Return the error of a rank that is lost, as it is known now; None where none is."""
        failure = self._watchdog.look()
        return None if failure is None else RankLostError(failure)

    def _awaited(self, is_there: Callable[[], bool]) -> None:
        """Wait for something of another rank; raises `RankLostError` where one is lost."""
        begun = time.monotonic()
        while not is_there():
            self.check()
            time.sleep(min(LONG, max(SHORT, SHARE * (time.monotonic() - begun))))

    def tell(self, message: Any) -> None:
        """Give all other ranks a message, on rank 0."""
        self._number += 1
        # Its stub says str; bytes go through as they are.
        self._with_store(lambda: self._store.set(f"message/{self._number}", pickle.dumps(message)))  # type: ignore[arg-type]

    def hear(self) -> Any:
        """Return the next message of rank 0, once it is there, on the others."""
        self._number += 1
        key = f"message/{self._number}"
        self._awaited(lambda: bool(self._with_store(lambda: self._store.check([key]))))
        # What one process of a run writes for the others, as torch.distributed's own objects are.
        return pickle.loads(self._with_store(lambda: self._store.get(key)))

    def largest(self, value: float, ranks: Sequence[int]) -> float:
        """Return the largest of values of some ranks, each of which calls this as often as the others."""
        self._agreed += 1
        keys = [f"value/{self._agreed}/{rank}" for rank in ranks]
        self._with_store(lambda: self._store.set(f"value/{self._agreed}/{self.rank}", repr(value)))
        self._awaited(lambda: bool(self._with_store(lambda: self._store.check(keys))))
        return max(map(float, self._with_store(lambda: self._store.multi_get(keys))))

    def _with_store(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError as error:
            raise self._explained(error) from error

    def _explained(self, error: RuntimeError) -> PiyingError:
        """Return the error of the rank that is the cause of an exchange that failed."""
        lost, until = self.lost(), time.monotonic() + self._ranks.silence
        while lost is None and time.monotonic() < until:
            time.sleep(LONG)
            lost = self.lost()
        reason = str(error).partition("\n")[0]
        return lost or PiyingError(f"{self.own}: what the ranks exchange does not arrive ({reason}). Start it again.")

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Return a rank's tensor on all of them; on the others `tensor` has its shape and type, and is overwritten."""
        sent = self._as_bytes(tensor)
        self._exchange(lambda: dist.broadcast(sent, source, async_op=True))
        return self._as_tensor(sent, tensor, tensor.shape)

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, which have one shape and type."""
        sent = self._as_bytes(tensor)
        found = sent.new_empty(self.size, sent.numel())
        self._exchange(lambda: dist.all_gather(list(found.unbind()), sent, async_op=True))
        return [self._as_tensor(each, tensor, tensor.shape) for each in found]

    def gather_into(self, into: torch.Tensor, own: torch.Tensor) -> None:
        """Fill a tensor of bytes [ranks * n] with those [n] of all ranks, in their order; on the current stream."""
        if self.is_on_streams:
            self._exchange(lambda: dist.all_gather_into_tensor(into, own, async_op=True))
            return
        for place, found in zip(into.chunk(self.size), self.all_gather(own), strict=True):
            place.copy_(found)

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what all ranks have for this one: `tensor[r]` [ranks, …] goes to rank r, the result's is from it."""
        sent = self._as_bytes(tensor)
        found = torch.empty_like(sent)
        self._exchange(lambda: dist.all_to_all_single(found, sent, async_op=True))
        return self._as_tensor(found, tensor, tensor.shape)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device if self.is_on_streams else "cpu")
        self._exchange(lambda: dist.all_reduce(total, async_op=True))
        found: list[float] = total.tolist()
        return found

    def _as_bytes(self, tensor: torch.Tensor) -> torch.Tensor:
        # As bytes every number type goes every way, and none is computed with.
        held = tensor if self.is_on_streams else tensor.cpu()
        flat = held.contiguous().reshape(-1)
        # One element that was expanded has a stride of 0.
        flat = flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)
        return flat.view(torch.uint8)

    @staticmethod
    def _as_tensor(found: torch.Tensor, like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return found.view(like.dtype).view(shape).to(like.device)

    def _exchange(self, begin: Callable[[], Any]) -> None:
        try:
            work = begin()
            if not self.is_on_streams:
                # gloo waits for a rank that is gone until its time is over.
                self._awaited(work.is_completed)
            work.wait()
        except RankLostError:
            raise
        except RuntimeError as error:
            raise self._explained(error) from error


_group: Group | None = None


def set_group(group: Group | None) -> None:
    """Make a group that of this process."""
    global _group
    _group = group


def current_group() -> Group | None:
    """Return the group of this process; None where it runs alone."""
    return _group
