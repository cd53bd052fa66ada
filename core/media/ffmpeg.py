"""ffmpeg as a subprocess: finding the program, running it, explaining its errors."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from ..errors import PiyingError, errno_in, file_error

if TYPE_CHECKING:
    import subprocess

# Options of the scale filter, whose defaults trade colour accuracy for speed.
PRECISE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

# Containers that hold their own data. Playlists (HLS, concat) would let one file read others.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,apng,flv,mpeg,mpegts,mpegvideo,ogg,asf,mxf,nut,h264,hevc,ivf"
_NOISE = re.compile(
    "Conversion failed!|Last message repeated|Error (opening|parsing)|Failed to set value|To ignore this"
    "|Task finished|Terminating thread"
)
_ADVICE = {
    "Invalid data found": "The file is damaged, cut short or no video. Copy or download it again.",
    "matches no streams": "The file holds no picture, or is cut short. Give a whole video.",
    "Unknown encoder": "Unset IMAGEIO_FFMPEG_EXE, or set it to an ffmpeg that has libx264 and aac.",
}


def ffmpeg_exe() -> str:
    """Return the ffmpeg program: $IMAGEIO_FFMPEG_EXE, the one imageio-ffmpeg brings, or the system's.

    Raises PiyingError when there is none.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise PiyingError(
            "Videos need ffmpeg, and there is none. Install it with `pip install imageio-ffmpeg`, or set "
            "IMAGEIO_FFMPEG_EXE to an ffmpeg program."
        ) from error


def source(path: Path) -> list[str]:
    """Return the arguments that open `path` for reading, whatever its name, and never another file."""
    return ["-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-i", url(path)]


def url(path: Path) -> str:
    """Return `path` as ffmpeg takes it literally: a leading dash, colons and percent signs mean nothing."""
    return f"file:{path.absolute()}"


@contextmanager
def running(arguments: Sequence[str], doing: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ffmpeg while the block feeds its stdin or reads its stdout, both binary pipes.

    It is ended when the block raises, and waited for in every case. Raises PiyingError, beginning with
    `doing` ("Cannot read clip.mp4"), when it cannot be started or fails.
    """
    process = _started(arguments)
    log: list[bytes] = []
    # stderr is drained all the time: a full pipe would block ffmpeg, and with it the caller.
    listener = Thread(target=lambda: log.append(_pipe(process.stderr).read()), daemon=True)
    listener.start()
    try:
        yield process
        with suppress(BrokenPipeError):
            _pipe(process.stdin).close()
        process.wait()
    finally:
        process.kill()
        process.wait()
        listener.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):
                _pipe(pipe).close()
    if process.returncode:
        raise _failure(doing, process.returncode, b"".join(log).decode("utf-8", "replace"))


def feed(process: subprocess.Popen[bytes], chunks: Iterable[memoryview]) -> int:
    """Write `chunks` to the process and return how many there were.

    Stops early when the process no longer listens: `running` then raises with the reason, which the broken pipe
    does not have.
    """
    stdin, count = _pipe(process.stdin), 0
    for count, chunk in enumerate(chunks, 1):  # noqa: B007
        try:
            stdin.write(chunk)
        except OSError:
            break
    return count


def output(arguments: Sequence[str], doing: str, limit: int = 1 << 28) -> bytes:
    """Return ffmpeg's stdout. Raises PiyingError when it fails, or writes more than `limit` bytes."""
    with running(arguments, doing) as process:
        data = _pipe(process.stdout).read(limit + 1)
        if len(data) > limit:
            raise PiyingError(f"{doing}: it holds more than {limit >> 20} MiB of text. Use another file.")
    return data


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _started(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    import subprocess

    # A separate process group: Ctrl-C reaches only this process, which decides what becomes of the unfinished file.
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    program = ffmpeg_exe()
    command = [program, "-hide_banner", "-nostdin", "-nostats", "-v", "error", *arguments]
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **apart)
    except OSError as error:
        raise PiyingError(
            f"The ffmpeg program {program} cannot be run: {error.strerror}. Set IMAGEIO_FFMPEG_EXE to an "
            "ffmpeg that works, or unset it and `pip install imageio-ffmpeg`."
        ) from error


def _failure(doing: str, code: int, log: str) -> PiyingError:
    # The signal for a file beyond the user's size limit; it kills ffmpeg before it can print an error.
    if code == -getattr(signal, "SIGXFSZ", 0):
        return file_error(doing, errno.EFBIG, "")
    if code < 0:
        return PiyingError(
            f"{doing}: ffmpeg was ended by signal {-code}. If memory ran short, free some and try again."
        )
    lines = [re.sub(r"^(\[[^]]*\] )+", "", line).strip() for line in log.splitlines()]
    words = [line.rstrip(".") for line in lines if line and not _NOISE.search(line)] or [f"it failed with code {code}"]
    advice = next((advice for sign, advice in _ADVICE.items() if sign in log), "")
    return file_error(doing, errno_in(log), f"ffmpeg says: {words[-1]}. {advice}".strip())
