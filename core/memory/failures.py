"""Plans that ran out of memory, remembered per machine and work."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .machine import Machine
    from .work import Phase

log = logging.getLogger("piying")

LIMIT = 200  # entries in the file, the oldest of which go
# A choice that failed is tried again where this much more of the card is free than when it failed.
MORE_ROOM = 1.05


@dataclass(frozen=True)
class Failures:
    """The phase choices that ran out of memory for one machine and one work.

    Attributes:
        path: the file they are kept in; it may be deleted at any time.
        machine: where they failed.
        work: what failed.
    """

    path: Path
    machine: Machine
    work: tuple[Phase, ...]

    def load(self) -> frozenset[str]:
        """Return the keys of choices that failed here before with no more of the card free than now."""
        entries = self._read().get(self._key, {})
        room = self.machine.vram_free
        return frozenset(key for key, free in entries.items() if isinstance(free, int) and room < free * MORE_ROOM)

    def add(self, key: str) -> None:
        """Remember a choice."""
        entries = self._read()
        mine = entries.pop(self._key, {})
        entries[self._key] = {**mine, key: self.machine.vram_free}
        self._write(dict(list(entries.items())[-LIMIT:]))

    @property
    def _key(self) -> str:
        work = hashlib.sha256(repr(self.work).encode()).hexdigest()[:16]
        return f"{self.machine.name} {self.machine.vram_total} {work}"

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(entries, dict):
            return {}
        return {key: value for key, value in entries.items() if isinstance(value, dict)}

    def _write(self, entries: dict[str, dict[str, Any]]) -> None:
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(entries, indent=1), encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            log.debug("%s cannot be written (%s): the plan may be tried again.", self.path, error)
