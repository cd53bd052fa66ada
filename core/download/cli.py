"""Command line of downloads: `install.py --models`, `--list`, `--verify` and `--print-files`."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PiyingError
from ..host.model_folders import ModelsRoot
from ..process import DONE, FAILED, WRONG
from .checksums import Ledger
from .hub_session import AUTO, HubSession
from .jobs import check_disk_space, downloads_of, fetch, is_present
from .manifest import ListedModel, files_of, find_listed, listed_models
from .verify import file_list, presence, read_file_list, verify


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        task: `check`, `fetch`, `plan`, `list`, `verify` or `files`.
        ids: models by id.
        root: the models folder.
        source: `huggingface`, `modelscope` or `auto`.
        carried: for `verify`, a list of files made with `files`, or None.
    """

    task: str
    ids: Sequence[str]
    root: ModelsRoot
    source: str = AUTO
    carried: Path | None = None


def run(request: Request, write: Callable[[str], None], is_terminal: bool) -> int:
    """Do what is asked and return the exit code: 0 done, 1 not, 2 where there is no such model."""
    console = Console(write, is_terminal)
    try:
        models = find_listed(request.ids)
    except PiyingError as error:
        console.message(str(error))
        return WRONG
    try:
        return TASKS[request.task](request, models, console)
    except PiyingError as error:
        console.message(str(error))
        return FAILED


def _fetch(request: Request, models: list[ListedModel], console: Console) -> int:
    for model in models:
        console.message(f"{model.title}, licence: {model.licence}")
    fetch(models, request.root, source=request.source, listener=console)
    return DONE


def _plan(request: Request, models: list[ListedModel], console: Console) -> int:
    """Say what would be fetched."""
    session, ledger = HubSession(request.source), Ledger.read(request.root)
    downloads = [one for file in files_of(models) for one in downloads_of(file, session, request.root, ledger)]
    missing = [one for one in downloads if not is_present(one, request.root, ledger)]
    check_disk_space(missing, request.root)
    for download in missing:
        console.message(f"Would fetch {request.root / download.path}, {size_text(download.bytes)}")
    if not missing:
        console.message(f"Nothing to fetch: all is in {request.root}.")
    return DONE


def _list(request: Request, models: list[ListedModel], console: Console) -> int:
    for line in model_table(models or listed_models(), request.root):
        console.message(line)
    console.message(f"here: in {request.root}. A size of ? is asked from the hub before anything is fetched.")
    return DONE


def _verify(request: Request, models: list[ListedModel], console: Console) -> int:
    ledger = Ledger.read(request.root)
    chosen = models or [model for model in listed_models() if presence(model, request.root, ledger) != "no"]
    carried = read_file_list(request.carried) if request.carried else []
    verdicts = verify(chosen, request.root, console, carried)
    for verdict in verdicts:
        console.message(f"{verdict.path}: {verdict.text}")
    bad = [verdict for verdict in verdicts if not verdict.is_good]
    if not verdicts:
        console.message(f"None of the listed models is in {request.root}.")
    elif bad:
        console.message(
            f"{len(bad)} of {len(verdicts)} files are not right. Remove the wrong ones, then run: python install.py "
            f"--models {' '.join(model.id for model in chosen)}"
        )
    return FAILED if bad else DONE


def _files(request: Request, models: list[ListedModel], console: Console) -> int:
    for line in file_list(models, HubSession(request.source)):
        console.message(line)
    return DONE


TASKS: dict[str, Callable[[Request, list[ListedModel], Console], int]] = {
    "check": lambda *_: DONE,  # `run` has looked the models up before
    "fetch": _fetch,
    "plan": _plan,
    "list": _list,
    "verify": _verify,
    "files": _files,
}


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


def model_table(models: Iterable[ListedModel], root: ModelsRoot) -> list[str]:
    """Return the models as a table; sizes include the parts a model needs."""
    ledger = Ledger.read(root)
    rows = [HEADINGS]
    for model in models:
        card = f"{model.min_vram_gb} GB" if model.min_vram_gb else "-"
        here = presence(model, root, ledger)
        rows.append((model.id, model.title, model_size(model), model.licence, card, here))
    return table(rows)


def model_size(model: ListedModel) -> str:
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

    def message(self, line: str) -> None:
        """Print a line."""
        if self._moving:
            # A shorter line would leave the end of the moving one beside it.
            self._write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._moving = False
        self._write(line + "\n")

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Show how far a file is, not too often."""
        now = self._clock()
        # Fewer bytes than before: the file restarts, and its speed with it.
        if name != self._name or (self._points and done < self._points[-1][1]):
            self._name, self._shown = name, now if not self._is_terminal else 0.0
            self._points.clear()
        self._points.append((now, done))
        while self._points[-1][0] - self._points[0][0] > SPEED_SECONDS:
            self._points.popleft()
        if now - self._shown < (TERMINAL_SECONDS if self._is_terminal else PIPE_SECONDS):
            return
        self._shown, line = now, self._line(done, total)
        if self._is_terminal:
            # One column is left free: a terminal breaks a line that fills it, and \r no longer reaches its start.
            width = shutil.get_terminal_size().columns - 1
            self._write("\r" + line[-width:].ljust(width))
            self._moving = True
        else:
            self._write(line + "\n")

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
