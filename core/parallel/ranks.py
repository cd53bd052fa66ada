"""Ranks: which of a run's processes this one is, the card that it has, and whether another one still lives."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from ..accelerator import best_device, card_module, checked_device
from ..errors import PiyingError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ALIKE = ("torch", "diffusers")
SILENCE_VARIABLE = "PIYING_RANK_TIMEOUT"
SILENCE = 60.0  # seconds without a sign of life after which a rank counts as hung


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is, as torchrun tells it.

    Attributes:
        rank, size: of the run, from 0.
        local_rank, local_size: of those on this machine.
        address, port: where they find each other.
        has_store: whether torchrun keeps what they tell each other; else rank 0 does.
        silence: seconds without a sign of life after which a rank counts as hung.
        store: a file through which they tell each other what they do, in place of an address.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    has_store: bool
    silence: float = SILENCE
    store: str = ""

    @classmethod
    def local(cls, rank: int, size: int, store: str, silence: float) -> Ranks:
        """Return one of those that a process has started beside itself."""
        return cls(rank, size, rank, size, "", 0, has_store=True, silence=silence, store=store)


def ranks_of(environment: Mapping[str, str]) -> Ranks | None:
    """Return what torchrun has put into an environment; None where there is one process alone.

    Raises:
        PiyingError: it contradicts itself, or lacks something.
    """
    if environment.get("WORLD_SIZE", "1") == "1" or "RANK" not in environment:
        return None
    lacking = [name for name in VARIABLES if name not in environment]
    if lacking:
        raise PiyingError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']!r}, and {', '.join(lacking)} is not set. Start with torchrun "
            "--nproc-per-node N -m runner …, which sets all of them, or unset WORLD_SIZE."
        )
    try:
        rank, size, local_rank, local_size, port = (
            int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        )
    except ValueError as error:
        raise PiyingError(
            f"The environment of torchrun is wrong ({error}): {', '.join(VARIABLES)} are set."
        ) from error
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise PiyingError(
            f"RANK is {rank} of WORLD_SIZE {size}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_size}. Ranks "
            "count from 0: start with torchrun."
        )
    has_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    silence = silence_of(environment)
    return Ranks(rank, size, local_rank, local_size, environment["MASTER_ADDR"], port, has_store, silence)


def silence_of(environment: Mapping[str, str]) -> float:
    """Return the seconds without a sign of life after which a rank counts as hung.

    Raises:
        PiyingError: what an environment has is no number above 0.
    """
    given = environment.get(SILENCE_VARIABLE, str(SILENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise PiyingError(f"{SILENCE_VARIABLE} is {given!r}. Set a number of seconds above 0, or leave it unset.")
    return seconds


def check_distributed() -> None:
    """Accept a torch that ranks can exchange tensors with.

    Raises:
        PiyingError: it is built without.
    """
    import torch

    if not torch.distributed.is_available():
        raise PiyingError(
            "This torch is built without torch.distributed, which ranks need. Run without torchrun, and set cards to "
            "1."
        )


def device_of(asked: str, ranks: Ranks) -> str:
    """Return the torch device of a rank: a card of its own, or what all of them share where that was named.

    Args:
        asked: `auto`, or a torch device; one with a number, such as `cuda:0`, is shared by all ranks of a machine.

    Raises:
        PiyingError: there are fewer cards than ranks here, or the device is of a kind that ranks cannot share.
    """
    device = best_device() if asked == "auto" else checked_device(asked)
    if device == "cpu" or (asked.startswith("cuda:") and asked == device):
        return device
    module = card_module(device)
    if module is None or not device.startswith("cuda"):
        raise PiyingError(f"--device {device}: several ranks run on CUDA cards or on the CPU. Run without torchrun.")
    count = module.device_count()
    if count < ranks.local_size:
        raise PiyingError(
            f"torchrun has started {ranks.local_size} ranks here, and this machine has {count} "
            f"{'card' if count == 1 else 'cards'}. Start with --nproc-per-node {count}."
        )
    return f"cuda:{ranks.local_rank}"


@dataclass(frozen=True)
class Peer:
    """What the ranks know of each other.

    Attributes:
        rank, size: which of how many.
        pid: of the process, in `place`.
        place: the machine, and the name space of process numbers on it.
        device: its torch device.
        card: its name; "" for the CPU.
        vram: bytes of the card; 0 without one.
        software: versions of what has to be the same on all ranks.
    """

    rank: int
    size: int
    pid: int
    place: str
    device: str
    card: str = ""
    vram: int = 0
    software: str = ""

    @classmethod
    def here(cls, ranks: Ranks, device: str) -> Peer:
        """Return this process."""
        try:
            place = f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:
            place = socket.gethostname()
        software = ", ".join(f"{name} {version(name)}" for name in ALIKE)
        found = cls(ranks.rank, ranks.size, os.getpid(), place, device, software=software)
        module = card_module(device)
        if module is None:
            return found
        card = module.get_device_properties(device)
        return replace(found, card=card.name, vram=int(card.total_memory))

    def __str__(self) -> str:
        return f"Rank {self.rank} of {self.size} ({self.device}, process {self.pid})"

    def to_json(self) -> dict[str, object]:
        """Return it fit for JSON."""
        return asdict(self)

    def has_died(self, place: str) -> bool:
        """Return whether its process is seen to be gone by one of `place`; elsewhere nothing is known of it."""
        import psutil

        return self._status(place, gone=psutil.STATUS_DEAD) in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)

    def is_stopped(self, place: str) -> bool:
        """Return whether its process is seen to be stopped, as by Ctrl-Z; see `has_died`."""
        import psutil

        return bool(self._status(place) == psutil.STATUS_STOPPED)

    def _status(self, place: str, gone: str = "") -> str:
        import psutil

        if place != self.place:
            return ""
        try:
            return str(psutil.Process(self.pid).status())
        except psutil.NoSuchProcess:
            return gone
        except psutil.Error:
            return ""
