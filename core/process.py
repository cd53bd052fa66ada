"""Process around a run: standard streams that may be closed or full, and the signals that end it.

A run takes minutes and its files are what a person wants. So a stdout or stderr whose reader has gone costs the run
nothing, and the first signal stops it where it is, while any that follow leave its clean-up alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

DONE, FAILED, WRONG, HUNG_UP, CANCELLED = 0, 1, 2, 129, 130
# SIGHUP comes where the terminal is closed; a queue ends a job by SIGTERM.
EXIT_CODES = {"SIGINT": CANCELLED, "SIGTERM": CANCELLED, "SIGHUP": HUNG_UP}
PATIENCE = 10.0  # seconds for the clean-up, after which one more signal ends the process at once
# What the system says where nobody reads any more: closed pipes, closed descriptors, and terminals that are gone.
READER_GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ESHUTDOWN)


class Interruption:
    """The signals that end a run.

    The first raises KeyboardInterrupt wherever the run is, later ones do nothing. Python drops an exception that comes
    up in a destructor, and a library may swallow it: `check` raises it again.

    Attributes:
        exit_code: of the first signal; None where none came.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._since = 0.0
        self._is_over = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Take the signals in the block, but those that the process was started to ignore, as by `nohup`."""
        numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, before[number])

    def check(self) -> None:
        """Stop here where a signal has come."""
        if self.exit_code is not None and not self._is_over and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    def end(self) -> None:
        """Ignore signals from now on: the run is over, and what is left to do is to clean up."""
        self._is_over = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._is_over:
            return
        if self.exit_code is None:
            self.exit_code, self._since = EXIT_CODES[signal.Signals(number).name], time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._since > PATIENCE:
            os._exit(self.exit_code)


class Output:
    """A standard stream: text that cannot be written is dropped, and the run goes on.

    Attributes:
        failure: why text was dropped; None where all was written, or where its reader had gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text; characters that the stream's encoding lacks are escaped."""
        with self._losses():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with self._losses():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def reserved(self, rest: Output | None) -> Iterator[None]:
        """Keep stdout for who holds this object; what anything else prints goes to `rest`, or nowhere.

        Packs print as they like, and so do the programs that they start: it is the descriptor that is redirected.
        """
        shared = self._stream
        try:
            number, own = shared.fileno(), os.dup(shared.fileno())
        except (OSError, ValueError):  # closed, or no file
            yield
            return
        with (
            os.fdopen(own, "w", encoding=shared.encoding, errors=shared.errors) as stream,
            Path(os.devnull).open("wb") as nowhere,
        ):
            shared.flush()
            self._stream, sys.stdout = stream, Output(shared)  # type: ignore[assignment]
            os.dup2(nowhere.fileno() if rest is None else rest.fileno(), number)
            try:
                yield
            finally:
                sys.stdout.flush()
                self.flush()
                os.dup2(own, number)
                self._stream, sys.stdout = shared, self  # type: ignore[assignment]

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in READER_GONE:
                self.failure = error
            # What is still in its buffer would fail again at every write, and in the interpreter's last moments.
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def standard_outputs() -> Iterator[tuple[Output, Output]]:
    """Have stdout and stderr, and all that is printed to them meanwhile, fail nobody; yield the two."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        # They are None where the process was started with closed descriptors.
        outputs = Output(sys.stdout or nowhere), Output(sys.stderr or nowhere)
        sys.stdout, sys.stderr = outputs  # type: ignore[assignment]
        try:
            yield outputs
        finally:
            for output in outputs:
                output.flush()
            sys.stdout, sys.stderr = before


def checked_output(code: int, out: Output, err: Output) -> int:
    """Return the exit code of a command: one that is done has failed where its stdout is incomplete."""
    out.flush()
    if code != DONE or out.failure is None:
        return code
    err.write(f"error: stdout cannot be written ({out.failure.strerror}). Files that were saved are whole.\n")
    return FAILED


def exit_code(end: SystemExit) -> int:
    """Return the exit code that Python would end with."""
    return end.code if isinstance(end.code, int) else int(end.code is not None)
