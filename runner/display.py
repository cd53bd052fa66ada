"""Displays of a run: a progress bar on a terminal, plain lines elsewhere, or events in JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from ..core.errors import PiyingError, escaped, readable, shortened
from ..core.host.base import Preview, Progress
from ..core.host.progress import TimeLeft
from ..core.main_memory import is_out_of_memory, shortage
from ..core.process import CANCELLED, HUNG_UP, Output
from .errors import NodeFailed, NodeMisused, ServerNodeError
from .graph import Node

SECONDS_BETWEEN_LINES = 5.0
LONGEST_TITLE = 80  # characters
TEXT_SHOWN = 40  # characters of a growing text that fit behind a bar

Stream = TextIO | Output


def shown_title(node: Node) -> str:
    """Return a node's title for the beginning of a line: it is from the workflow, and may hold anything."""
    return shortened(" ".join(node.title.split()), LONGEST_TITLE)


def indented(text: str) -> str:
    """Return a message whose further lines cannot pass for messages of their own."""
    return text.replace("\n", "\n  ")


class Display(Protocol):
    """Called with everything that happens; decides what to show."""

    def node_started(self, node: Node) -> None:
        """A node begins to run."""

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """A node has its results."""

    def node_blocked(self, node: Node, message: str) -> None:
        """A node does not run, because one before it says so."""

    def progress(self, phase: str, total: int) -> Progress:
        """A phase of the running node begins."""

    def message(self, text: str, level: str) -> None:
        """The pack or the runner has a message; `level` is a level name of logging."""

    def saved(self, path: Path) -> None:
        """A file is complete."""

    def failed(self, text: str, code: int, node: str | None = None) -> None:
        """The run ends with an error."""

    def done(self, seconds: float) -> None:
        """The run ends well."""


class Quiet:
    """Shows the paths of files on stdout, and warnings and errors on stderr."""

    def __init__(self, out: Stream | None = None, err: Stream | None = None) -> None:
        self.out, self.err = out or sys.stdout, err or sys.stderr

    def node_started(self, node: Node) -> None:
        """Show nothing."""

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """Show nothing."""

    def node_blocked(self, node: Node, message: str) -> None:
        """Show why."""
        self.message(f"{node}: not run: {message}", "WARNING")

    def progress(self, phase: str, total: int) -> Progress:
        """Show nothing."""
        return _Lines(None, phase, total)

    def message(self, text: str, level: str) -> None:
        """Show warnings, not information."""
        if level not in ("INFO", "DEBUG"):
            self.line(indented(readable(text)))

    def saved(self, path: Path) -> None:
        """Show the path alone, for scripts to read."""
        print(escaped(str(path)) if self.out.isatty() else path, file=self.out, flush=True)

    def failed(self, text: str, code: int, node: str | None = None) -> None:
        """Show the sentence."""
        self.line(indented(f"{'cancelled' if code in (CANCELLED, HUNG_UP) else 'error'}: {readable(text)}"))

    def done(self, seconds: float) -> None:
        """Show nothing."""

    def line(self, text: str) -> None:
        """Write a line to stderr."""
        print(escaped(text), file=self.err, flush=True)


class Silent(Quiet):
    """Shows nothing: what there is to say another process says.

    Attributes:
        speaks: whether it falls to this process after all to say why the run ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.speaks: Callable[[], bool] = lambda: False

    def message(self, text: str, level: str) -> None:
        """Show nothing."""

    def saved(self, path: Path) -> None:
        """Show nothing."""

    def failed(self, text: str, code: int, node: str | None = None) -> None:
        """Show the sentence, where it falls to this process."""
        if self.speaks():
            super().failed(text, code, node)


class Plain(Quiet):
    """Lines: which node runs, how far it is, what it shows."""

    title = ""

    def node_started(self, node: Node) -> None:
        """Remember the node; its phases are shown under its title."""
        self.title = shown_title(node)

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """Show the text a node shows."""
        for text in ui.get("text", ()):
            self.line(f"{shown_title(node)}: {text}")

    def progress(self, phase: str, total: int) -> Progress:
        """Show a line now and then."""
        return _Lines(self, phase, total)

    def message(self, text: str, level: str) -> None:
        """Show everything."""
        text = readable(text)
        self.line(text if level in ("INFO", "DEBUG") else indented(text))

    def done(self, seconds: float) -> None:
        """Show how long it took."""
        self.line(f"Done in {seconds:.1f} s.")


class _Lines:
    """Progress as lines, at most one in a few seconds; none without a display."""

    def __init__(self, display: Plain | None, phase: str, total: int) -> None:
        self._display, self._phase, self._total = display, phase, total
        # As if a line had just been shown: a phase that is over within seconds gets its last line alone.
        self._begun = self._shown = time.monotonic()
        self._time_left = TimeLeft(total)

    def expect(self, seconds: float) -> None:
        """Say how long the phase is estimated to take."""
        self._time_left.expected = seconds

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Show a line when the phase is over, or when the last one is old."""
        del preview
        now = time.monotonic()
        self._time_left.step(done)
        if self._display and (done >= self._total or now - self._shown >= SECONDS_BETWEEN_LINES):
            self._shown = now
            left = self._time_left.seconds()
            rest = "" if left is None else f", {left:.0f} s left"
            rest = rest if done < self._total else f" in {now - self._begun:.1f} s"
            self._display.line(f"{self._display.title}: {self._phase} {done}/{self._total}{rest}")

    def text(self, text: str) -> None:
        """Show nothing: lines that change are for terminals."""


class Terminal(Plain):
    """A bar with the time left for every phase."""

    _bar: _Bar | None = None

    def progress(self, phase: str, total: int) -> Progress:
        """Begin a new bar below the last."""
        bar = _Bar(self, escaped(f"{self.title}: {phase}"), total)
        self.show(bar)
        return bar

    def show(self, bar: _Bar) -> None:
        """End the bar that is shown, and begin another, or one that a line has ended, below it."""
        if self._bar is not bar:
            self._close()
            bar.open(self.err)
            self._bar = bar

    def line(self, text: str) -> None:
        """Write a line below the bar."""
        self._close()
        super().line(text)

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """End the last bar."""
        self._close()
        super().node_finished(node, ui, cached)

    def saved(self, path: Path) -> None:
        """Show the path below the bar."""
        self._close()
        super().saved(path)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Bar:
    """A bar of one phase; tqdm's own forecast takes the first step at face value, and is not shown."""

    _tqdm: Any = None

    def __init__(self, display: Terminal, title: str, total: int) -> None:
        self._display, self._title, self._total = display, title, total
        self._done, self._time_left = 0, TimeLeft(total)

    def open(self, stream: Stream) -> None:
        """Draw the bar, as far as the phase is."""
        from tqdm import tqdm

        # disable=False: the bars of libraries are switched off by environment, ours is not.
        self._tqdm = tqdm(
            total=self._total, initial=self._done, desc=self._title, file=stream, disable=False, leave=True
        )
        self._show_time_left()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._tqdm.close()

    def expect(self, seconds: float) -> None:
        """Say how long the phase is estimated to take."""
        self._time_left.expected = seconds
        self._show_time_left()

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Move the bar."""
        del preview
        self._time_left.step(done)
        self._display.show(self)
        self._show_time_left()
        self._tqdm.update(done - self._done)
        self._done = done

    def text(self, text: str) -> None:
        """Show the end of the text behind the bar."""
        self._display.show(self)
        self._tqdm.set_postfix_str(escaped(text[-TEXT_SHOWN:].replace("\n", " ")))

    def _show_time_left(self) -> None:
        left = self._time_left.seconds()
        shown = "?" if left is None else self._tqdm.format_interval(left)
        self._tqdm.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<" + shown + "{postfix}]"


class EventDisplay(Quiet):
    """Emits one dictionary for everything that happens."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._emit = emit
        self.node: str | None = None

    def node_started(self, node: Node) -> None:
        """Emit `node`."""
        self.node = node.id
        self.emit("node", node=node.id, class_type=node.class_type, title=node.title)

    def node_finished(self, node: Node, ui: dict[str, Any], cached: bool) -> None:
        """Emit `executed`."""
        self.emit("executed", node=node.id, cached=cached, output=ui)

    def progress(self, phase: str, total: int) -> Progress:
        """Emit `progress` at every step."""
        return _EventProgress(self, phase, total)

    def message(self, text: str, level: str) -> None:
        """Emit `message`."""
        self.emit("message", level=level.lower(), text=readable(text))

    def saved(self, path: Path) -> None:
        """Emit `saved`."""
        self.emit("saved", path=str(path))

    def failed(self, text: str, code: int, node: str | None = None) -> None:
        """Emit `error`."""
        self.emit("error", message=readable(text), exit_code=code, node=node)

    def done(self, seconds: float) -> None:
        """Emit `done`."""
        self.emit("done", seconds=round(seconds, 3))

    def emit(self, event: str, **values: Any) -> None:
        """Emit one event."""
        self._emit({"event": event, **values})


class PlanDisplay(EventDisplay):
    """Emits errors alone, so that a plan is the one object on stdout; warnings go to stderr."""

    def message(self, text: str, level: str) -> None:
        """Show warnings."""
        Quiet.message(self, text, level)


class _EventProgress:
    def __init__(self, display: EventDisplay, phase: str, total: int) -> None:
        self._display, self._phase, self._total = display, phase, total

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Emit the step."""
        del preview
        self._display.emit("progress", node=self._display.node, phase=self._phase, value=done, max=self._total)

    def text(self, text: str) -> None:
        """Emit the text so far."""
        self._display.emit("text", node=self._display.node, phase=self._phase, text=text)


def print_json(out: Stream, value: Any) -> None:
    """Write an event, or another object, as a line of JSON."""
    # Any pack may put anything into its ui; what JSON has no form for is written as text.
    line = json.dumps(value, ensure_ascii=False, default=str)
    # Control characters are escaped without loss: JSON itself spares the upper half of them, and directional marks.
    if not line.isprintable() or (out.encoding or "").lower().replace("-", "") != "utf8":
        line = json.dumps(value, default=str)
    out.write(line + "\n")
    # Programs read the events as they come, and a pipe is not flushed by lines.
    out.flush()


class LogToDisplay(logging.Handler):
    """Passes log records of the pack to the display."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._display.message(record.getMessage(), record.levelname)


def error_text(error: BaseException, advice: str) -> str:
    """Return the sentence that a person gets for an error of a run.

    Args:
        advice: how to learn more of an error whose text nobody wrote for a person.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped; no unfinished file is left."
    if isinstance(error, NodeFailed) and isinstance(error.cause, ServerNodeError):
        return f"{str(error).rstrip('.')}. {advice}"
    if isinstance(error, NodeFailed) and not isinstance(error.cause, PiyingError | NodeMisused):
        cause = error.cause
        kind = f"{type(cause).__name__}: {cause}. {advice}"
        return f"{error.node}: {shortage(cause) if is_out_of_memory(cause) else kind}"
    return str(error)


def choose_display(out: Stream, json_lines: bool, quiet: bool) -> Display:
    """Return the display that the options and the terminal call for."""
    if json_lines:
        return EventDisplay(partial(print_json, out))
    if quiet:
        return Quiet(out)
    return Terminal(out) if sys.stderr.isatty() else Plain(out)
