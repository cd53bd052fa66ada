"""Joining of a run's ranks: rank 0 gets what its session needs of them, the others help it until it is done."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..host.current import set_host
from ..host.headless import HeadlessHost
from ..process import FAILED, Interruption
from .cards import Asked, Cards
from .ranks import Ranks, check_distributed
from .watchdog import Failure

if TYPE_CHECKING:
    from .group import Group

# Shows the sentence of an error.
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Joined:
    """What rank 0's session is given of the ranks of its run.

    Attributes:
        device: the torch device.
        vram: bytes of the card to use; None for all of it.
        cards: what the run is shared between.
        check: called often while nodes run; raises where the run is to end.
    """

    device: str
    vram: int | None
    cards: Cards | None
    check: Callable[[], None]


@contextmanager
def joined_group(
    ranks: Ranks,
    device: str,
    interruption: Interruption,
    tell: Tell,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[Group]:
    """Yield the group of all ranks, once they are all there; at the end of the block they end together.

    Args:
        device: the torch device of this one.
        interruption: the signals that end the run.
        tell: called with why the run ends, where this rank's main thread does not come to say it.
        on_wait: see `Group`.

    Raises:
        PiyingError: the others do not come.
        RankLostError: one of them is lost.
    """
    # That the store's connections are closed as the ranks end is not worth the stacks that torch prints of it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    check_distributed()
    # Not at the top: torch takes seconds to load, and may be built without what it needs.
    from .group import Group, set_group

    def end(failure: Failure, speaks: bool) -> None:
        if speaks:
            tell(failure.text)
        os._exit(FAILED)

    with Group(ranks, device, end, on_wait) as group:
        set_group(group)
        try:
            yield group
        except KeyboardInterrupt as error:
            # torchrun ends all ranks by a signal where one has died.
            lost = group.lost()
            if lost is None:
                raise
            interruption.end()
            raise lost from error
        finally:
            set_group(None)


def joined_run(group: Group, asked: Asked, vram: int | None, interruption: Interruption) -> Joined:
    """Return what rank 0's session is given of a group.

    Args:
        asked: how the run is to be shared.
        vram: bytes of each card to use; None for all of it.
    """
    # The plan is one for all of them, so it is made for the smallest.
    sizes = {peer.vram for peer in group.peers}
    limits = [*([min(sizes)] if len(sizes) > 1 else []), *([] if vram is None else [vram])]
    cards = Cards(group.size, asked, group.link, group.is_shared)
    return Joined(group.device, min(limits, default=None), cards, check_of(group, interruption))


def check_of(group: Group, interruption: Interruption) -> Callable[[], None]:
    """Return what raises where the run is to end: after a signal, or where a rank is lost."""

    def check() -> None:
        interruption.check()
        group.check()

    return check


def help_rank_0(group: Group, vram: int | None, check: Callable[[], None], place: Path | None = None) -> None:
    """Do what rank 0 asks for until its run is over.

    Args:
        vram: bytes of the card to use; None for all of it.
        check: called often; raises where the run is to end.
        place: where temporary files go; None for the system's folder of them.

    Raises:
        PiyingError: this rank cannot do its part, or another one is lost.
    """
    import torch

    # The place may be gone with the process that made it.
    with tempfile.TemporaryDirectory(prefix="piying-rank-", dir=place, ignore_cleanup_errors=True) as temp:
        folder = Path(temp)
        # Nothing that several ranks would write lies in one place.
        host = HeadlessHost(
            input=folder,
            output=folder,
            temp=folder,
            chosen_device=group.device,
            on_check=check,
            cache=folder / "cache",
            vram=vram,
        )
        set_host(host)
        with torch.inference_mode():
            group.assist(host)


def is_started_by(number: int) -> bool:
    """Return whether the process of that number has started this one, and lives.

    On Windows the Python of a virtual environment is a launcher, which stands between the two.
    """
    import psutil

    return number in [parent.pid for parent in psutil.Process().parents()]


def be_local_rank(told: Mapping[str, Any], device: str, vram: int | None, started_by: int) -> None:
    """Be a rank that another process has started, until that has no more to do; see `local_ranks`.

    What goes wrong is told by that process.

    Args:
        told: arguments of `Ranks.local`.
        device: the torch device of this rank.
        vram: bytes of the card to use; None for all of it.
        started_by: the number of the process that has started it.
    """
    from ..executor.retry import PhaseOutOfMemoryError

    log = logging.getLogger("piying")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    interruption = Interruption()

    def on_wait() -> None:
        if not is_started_by(started_by):
            raise PiyingError("The process that has started this rank is gone.")

    def tidy_up(text: str = "") -> None:
        del text
        if not is_started_by(started_by):  # nobody else is left to do it
            shutil.rmtree(Path(ranks.store).parent, ignore_errors=True)

    ranks = Ranks.local(**told)
    try:
        with interruption.caught(), joined_group(ranks, device, interruption, tidy_up, on_wait=on_wait) as group:
            help_rank_0(group, vram, check_of(group, interruption), Path(ranks.store).parent)
    except (PiyingError, PhaseOutOfMemoryError, KeyboardInterrupt):
        sys.exit(FAILED)
    finally:
        tidy_up()


def end_started_ranks() -> None:
    """End the ranks that this process has started beside itself, where it has come to that."""
    local_ranks = sys.modules.get(f"{__package__}.local_ranks")
    if local_ranks is not None:
        local_ranks.end_local_ranks()


def is_helper(environment: Mapping[str, str]) -> bool:
    """Return whether this process is a rank that leaves it to rank 0 to say what happens."""
    return environment.get("WORLD_SIZE", "1") != "1" and environment.get("RANK", "0") != "0"
