"""Local ranks: processes that this one starts on the cards beside its own, and that help it as torchrun's ranks do.

They begin with the first run that is shared, and stay for later ones with the models that they hold. What all of them
have to know goes through a file in a folder that only this user can read.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from ..errors import PiyingError
from ..executor.model_cache import evict_with_models
from ..host.current import get_host
from .cards import Cards, measured_links
from .group import END, LEAVE, LONG, Group, abort_process_group, current_group
from .ranks import Ranks, silence_of

if TYPE_CHECKING:
    from ..host.base import Host
    from .watchdog import Failure

SCRIPT = Path(__file__).with_name("local_rank.py")
ROOT = Path(__file__).resolve().parents[2]
PACK = __name__.removesuffix(".core.parallel.local_ranks")
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class LocalGroup(Group):
    """The group of ranks that this process has started."""

    def abandon(self) -> bool:
        """End them; the next run starts others."""
        end_local_ranks(in_order=False)
        return True

    def check(self) -> None:
        """Go on where no rank is lost, and nobody has cancelled the run: ComfyUI stops nothing by a signal."""
        super().check()
        get_host().check_cancelled()


@dataclass
class LocalRanks:
    """Ranks that this process has started.

    Attributes:
        devices: of all ranks, the own first.
        vram: bytes of each card to use; None for all of it.
        folder: what they tell each other lies in it.
        processes: those of the others.
        group: all of them, once they have come together.
    """

    devices: tuple[str, ...]
    vram: int | None
    folder: tempfile.TemporaryDirectory[str]
    processes: list[subprocess.Popen[bytes]]
    group: LocalGroup | None = None

    def is_of(self, cards: Cards, vram: int | None) -> bool:
        """Return whether they are what a run needs, and all there."""
        lives = all(process.poll() is None for process in self.processes)
        is_well = self.group is None or self.group.lost() is None
        return (self.devices, self.vram) == (cards.devices, vram) and lives and is_well

    def check(self) -> None:
        """Go on where all of them still run.

        Raises:
            PiyingError: one has ended.
        """
        for rank, process in enumerate(self.processes, 1):
            if process.poll() is not None:
                raise PiyingError(
                    f"Rank {rank} of {len(self.devices)} ({self.devices[rank]}) ended as it began, with code "
                    f"{process.returncode}; what it printed is above. Set cards to 1 to do without it."
                )

    def kill(self) -> None:
        """End their processes at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


_ranks: LocalRanks | None = None


def begin_local_ranks(cards: Cards, host: Host) -> None:
    """Start the ranks of a run where they do not run yet; they load what they need while this one goes on.

    Raises:
        PiyingError: another program in this process uses torch.distributed.
    """
    global _ranks
    vram = host.memory_rules().vram
    if not cards.devices or (_ranks is not None and _ranks.is_of(cards, vram)):
        return
    end_local_ranks()
    if dist.is_initialized():
        raise PiyingError(
            "Another pack in this process uses torch.distributed, of which there can be one group. Set cards to 1, or "
            "do without that pack."
        )
    silence = silence_of(os.environ)
    try:
        folder = tempfile.TemporaryDirectory(prefix="piying-ranks-")  # for its owner alone
        _ranks = LocalRanks(cards.devices, vram, folder, [])
        for rank in range(1, len(cards.devices)):
            _ranks.processes.append(_started(_ranks, rank, silence))
    except OSError as error:
        end_local_ranks(in_order=False)
        raise PiyingError(
            f"The other {len(cards.devices) - 1} ranks cannot be started ({error}). Free memory and disk space, or "
            "set cards to 1."
        ) from error
    except BaseException:
        end_local_ranks(in_order=False)
        raise


def _started(ranks: LocalRanks, rank: int, silence: float) -> subprocess.Popen[bytes]:
    size, store = len(ranks.devices), str(Path(ranks.folder.name, "store"))
    told = {"rank": rank, "size": size, "store": store, "silence": silence}
    given = {"ranks": told, "device": ranks.devices[rank], "vram": ranks.vram, "started_by": os.getpid()}
    # ComfyUI's portable build leaves the user's own packages out, of which torch may be another one.
    flags = ["-s"] if sys.flags.no_user_site else []
    return subprocess.Popen(
        [sys.executable, *flags, str(SCRIPT), PACK, str(ROOT), json.dumps(given)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is this process's to take
    )


def group_of(cards: Cards, host: Host) -> Group:
    """Return the group of a run: torchrun's, or that of the ranks which this process has started.

    Raises:
        PiyingError: they cannot be started.
    """
    given = current_group()
    if given is not None:
        return given
    begin_local_ranks(cards, host)
    assert _ranks is not None
    if _ranks.group is None:
        _ranks.group = _joined(_ranks, host)
        measured_links[_ranks.devices] = _ranks.group.link
    return _ranks.group


def _joined(ranks: LocalRanks, host: Host) -> LocalGroup:
    own = Ranks.local(0, len(ranks.devices), str(Path(ranks.folder.name, "store")), silence_of(os.environ))

    def on_wait() -> None:
        ranks.check()
        host.check_cancelled()

    try:
        with _on_loopback():
            return LocalGroup(own, ranks.devices[0], _unblocking(ranks), on_wait)
    except BaseException:
        end_local_ranks(in_order=False)
        raise


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have tensors go over the loopback interface inside the block, where nobody has chosen another."""
    added = [name for name in INTERFACES if name not in os.environ and sys.platform in LOOPBACK]
    os.environ |= dict.fromkeys(added, LOOPBACK.get(sys.platform, ""))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _unblocking(ranks: LocalRanks) -> Callable[[Failure, bool], None]:
    """Return what has the main thread go on where it waits for a rank that is lost."""

    def unblock(failure: Failure, speaks: bool) -> None:
        del failure, speaks
        ranks.kill()
        # The main thread may still wait for the first exchange, before there is a group.
        if dist.is_initialized() and dist.get_backend() == "nccl":
            abort_process_group()

    return unblock


@atexit.register
def end_local_ranks(in_order: bool = True) -> None:
    """End the ranks that this process has started, where there are any.

    Args:
        in_order: they wait for what they are to do, and are told to end.
    """
    global _ranks
    ranks, _ranks = _ranks, None
    if ranks is None:
        return
    try:
        in_order = in_order and ranks.group is not None and ranks.group.lost() is None
        if in_order and ranks.group is not None:
            ranks.group.tell(END)
            until = time.monotonic() + LEAVE
            while time.monotonic() < until and any(process.poll() is None for process in ranks.processes):
                time.sleep(LONG)
    finally:
        if ranks.group is not None:
            ranks.group.stop_watching()
        ranks.kill()
        if ranks.group is not None:
            ranks.group.leave(in_order)
        ranks.folder.cleanup()


evict_with_models(end_local_ranks)
