"""Video writer: finished windows go to disk while the next is made: into the cache, then into the video file."""

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
from .window_cache import FinishedWindow, WindowCache

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# Windows that may be waiting to be cached while the next one is made. Those before them are on disk.
MAX_PENDING = 1


@dataclass(frozen=True)
class Segment:
    """What the whole video takes of a window: its frames from `first` up to, not including, `end`."""

    key: str
    first: int
    end: int


@dataclass(frozen=True)
class _Entry:
    """The next segment; its window, where that is not cached yet; the windows that are to stay cached."""

    segment: Segment
    made: FinishedWindow | None
    needed: tuple[str, ...]


@dataclass(frozen=True)
class VideoWriter:
    """Takes the windows of a video in their order."""

    _entries: BackgroundWorker[_Entry]
    _segments: BackgroundWorker[Segment]

    def add(self, segment: Segment, made: FinishedWindow | None, needed: tuple[str, ...]) -> None:
        """Take the next window; one of those before it may still be being written when this returns.

        Args:
            segment: what the video takes of it.
            made: the window, to be cached; None where it is cached already.
            needed: the keys of windows that are not to be evicted.

        Raises:
            PiyingError: the disk or ffmpeg has failed with this window or one before it.
        """
        self._entries.put(_Entry(segment, made, needed))
        self._entries.raise_failure()
        self._segments.raise_failure()


@contextmanager
def video_writer(
    cache: WindowCache, path: Path, audio: dict[str, Any] | None, check_cancelled: Callable[[], None]
) -> Iterator[VideoWriter]:
    """Yield a writer; at the end of the body `path` is an MP4 of all windows added.

    Where the body fails, windows it has added are still cached, and the video is given up.

    Args:
        audio: as `write_mp4` takes it.
        check_cancelled: raises where the user has cancelled.

    Raises:
        PiyingError: as `VideoWriter.add`.
    """
    if audio:  # which a node may have left on the card, where no thread beside the sampling has business
        audio = {**audio, "waveform": audio["waveform"].detach().cpu()}

    def encode(segments: BackgroundWorker[Segment]) -> None:
        with closing(_frames(cache, segments)) as frames:  # where writing fails, what reads them is to end too
            write_mp4(path, frames, Fraction(FPS), audio=audio)

    def store(entries: BackgroundWorker[_Entry]) -> None:
        for entry in entries.items():
            if entry.made is not None:
                cache.put(entry.segment.key, entry.made)
                cache.evict(entry.needed)
            segments.put(entry.segment)
            del entry  # before waiting for the next: it holds a window

    with (
        background_worker(encode, check_cancelled) as segments,
        background_worker(store, check_cancelled, MAX_PENDING) as entries,
    ):
        yield VideoWriter(entries, segments)


def _frames(cache: WindowCache, segments: BackgroundWorker[Segment]) -> Generator[npt.NDArray[np.uint8], None, None]:
    """Yield the frames of the video, one in memory at a time: however far encoding is behind, it holds no window."""
    for segment in segments.items():
        with closing(cache.read(segment.key)) as frames:
            for index, frame in enumerate(frames):
                segments.raise_if_cancelled()
                if segment.first <= index < segment.end:
                    yield frame
