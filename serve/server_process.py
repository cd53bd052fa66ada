"""Server process: which one has started a queue on a cluster, and whether it still runs."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class ServerProcess:
    """A process of the cluster's first machine.

    Attributes:
        pid: its number.
        begun: when it began, in seconds since 1970: another one may have its number by now.
    """

    pid: int
    begun: float

    @classmethod
    def this(cls) -> ServerProcess:
        """Return this process."""
        return cls(os.getpid(), psutil.Process().create_time())

    def is_running(self) -> bool:
        """Return whether it still runs."""
        try:
            found = psutil.Process(self.pid)
            return bool(found.create_time() == self.begun and found.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
