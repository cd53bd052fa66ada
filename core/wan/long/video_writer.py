"""Finished windows on their way to disk, beside the making of the next: onto the shelf, then into the video file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...media.background_worker import BackgroundWorker, background_worker
from ...media.mp4 import write_mp4
from ..request import FPS
from .window_cache import Finished, Shelf

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# Windows that may be on their way to the shelf while the next one is made. Those behind them are on disk.
MOST = 1


@dataclass(frozen=True)
class Part:
    """What the whole video takes of a window: its frames from `first` to before `behind`."""

    key: str
    first: int
    behind: int


@dataclass(frozen=True)
class _Entry:
    """A part that comes next; its window, where that is not on the shelf yet; the windows that are to stay there."""

    part: Part
    made: Finished | None
    needed: tuple[str, ...]


@dataclass(frozen=True)
class Reel:
    """Takes the windows of a video in their order."""

    _entries: BackgroundWorker[_Entry]
    _parts: BackgroundWorker[Part]

    def add(self, part: Part, made: Finished | None, needed: tuple[str, ...]) -> None:
        """Take the next window; one of those before it may still be on its way to disk when this returns.

        Args:
            part: what the video takes of it.
            made: the window, to be kept; None where it is on the shelf.
            needed: the keys of windows that are not to be let go.

        Raises:
            PiyingError: the disk or ffmpeg has failed with this window or one before it.
        """
        self._entries.put(_Entry(part, made, needed))
        self._entries.raise_failure()
        self._parts.raise_failure()


@contextmanager
def reel(shelf: Shelf, path: Path, audio: dict[str, Any] | None, check: Callable[[], None]) -> Iterator[Reel]:
    """Yield what takes finished windows; at the end of the body `path` is an MP4 of all of them.

    Where the body fails, windows it has added are still kept, and the video is given up.

    Args:
        audio: as `write_mp4` takes it.
        check: raises where the user has cancelled.

    Raises:
        PiyingError: as `Reel.add`.
    """
    if audio:  # which a node may have left on the card, where no thread beside the sampling has business
        audio = {**audio, "waveform": audio["waveform"].detach().cpu()}

    def encode(parts: BackgroundWorker[Part]) -> None:
        with closing(_frames(shelf, parts)) as frames:  # where writing fails, what reads them is to end too
            write_mp4(path, frames, Fraction(FPS), audio=audio)

    def keep(entries: BackgroundWorker[_Entry]) -> None:
        for entry in entries.items():
            _keep(shelf, entry)
            parts.put(entry.part)
            del entry  # before waiting for the next: it holds a window

    with background_worker(encode, check) as parts, background_worker(keep, check, MOST) as entries:
        yield Reel(entries, parts)


def _keep(shelf: Shelf, entry: _Entry) -> None:
    if entry.made is not None:
        shelf.put(entry.part.key, entry.made)
        shelf.let_go(entry.needed)


def _frames(shelf: Shelf, parts: BackgroundWorker[Part]) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield the frames of the video, one in memory at a time: however far encoding is behind, it holds no window."""
    for part in parts.items():
        with closing(shelf.read(part.key)) as frames:
            for index, frame in enumerate(frames):
                parts.raise_if_cancelled()
                if part.first <= index < part.behind:
                    yield frame
