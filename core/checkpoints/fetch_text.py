"""How fetching looks on a screen: sizes, times, the table of models, the line that moves."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .fetch_proof import Ledger
from .fetch_verify import presence
from .manifest import Listed, files_of

TERMINAL_SECONDS = 0.2  # between two states of a line that moves
PIPE_SECONDS = 30.0  # between two lines where nothing can move
SPEED_SECONDS = 10.0  # the speed shown is that of the last so many seconds
HEADINGS = ("id", "model", "size", "licence", "smallest card", "here")


def size_text(size: int | None) -> str:
    """Return a number of bytes as people write it: "4.3 GB"."""
    if size is None:
        return "?"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def time_text(seconds: float) -> str:
    """Return a time as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in padded]


def model_table(models: Iterable[Listed], root: Path) -> list[str]:
    """Return the models as a table; sizes include the parts a model needs."""
    ledger = Ledger.read(root)
    return table([HEADINGS, *(_row(model, root, ledger) for model in models)])


def _row(model: Listed, root: Path, ledger: Ledger) -> tuple[str, ...]:
    card = f"{model.min_vram_gb} GB" if model.min_vram_gb else "-"
    return model.id, model.title, model_size(model), model.licence, card, presence(model, root, ledger)


def model_size(model: Listed) -> str:
    """Return the size of a model with its parts; "?" where only the hub knows it."""
    sizes = [file.bytes for file in files_of([model])]
    known = sum(size for size in sizes if size is not None)
    if None not in sizes:
        return size_text(known)
    return f"{size_text(known)} and more" if known else "?"


class Console:
    """Tells a person how it goes: a line that moves on a terminal, a line now and then elsewhere.

    Args:
        write: takes text, which ends in a line break or is to be overwritten.
        is_terminal: whether lines can move.
        clock: gives seconds.
    """

    def __init__(
        self, write: Callable[[str], None], is_terminal: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._is_terminal, self._clock = write, is_terminal, clock
        self._name = ""
        self._moving = False
        self._shown = 0.0
        self._points: deque[tuple[float, int]] = deque()

    def say(self, line: str) -> None:
        """Print a line."""
        self._clear()
        self._write(line + "\n")

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Show how far a file is, not too often."""
        now = self._clock()
        if name != self._name or (self._points and done < self._points[-1][1]):
            self._name, self._shown = name, now if not self._is_terminal else 0.0
            self._points.clear()
        self._points.append((now, done))
        while self._points[-1][0] - self._points[0][0] > SPEED_SECONDS:
            self._points.popleft()
        if now - self._shown >= (TERMINAL_SECONDS if self._is_terminal else PIPE_SECONDS):
            self._shown = now
            self._show(self._line(done, total))

    def _line(self, done: int, total: int | None) -> str:
        (begun, first), (now, last) = self._points[0], self._points[-1]
        speed = (last - first) / (now - begun) if now > begun else 0.0
        parts = [self._name, size_text(done)]
        if total:
            parts[1:] = [f"{100 * done // total} %", f"{size_text(done)} of {size_text(total)}"]
        if speed:
            parts.append(f"{size_text(round(speed))}/s")
        if speed and total:
            parts.append(f"{time_text((total - done) / speed)} left")
        return "  ".join(parts)

    def _show(self, line: str) -> None:
        if not self._is_terminal:
            self._write(line + "\n")
            return
        width = shutil.get_terminal_size().columns - 1
        self._write("\r" + line[-width:].ljust(width))
        self._moving = True

    def _clear(self) -> None:
        if self._moving:
            self._write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._moving = False
