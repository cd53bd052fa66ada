"""ffmpeg as a subprocess: finding the program, running it, explaining its errors."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, Literal

from ..errors import PiyingError, errno_in, file_error

if TYPE_CHECKING:
    import subprocess

# Without pictures that are attached to sound, such as the cover of an album.
PICTURE = "0:V:0"
# With the picture, what decides from which time on a file's times count, in containers such as MPEG-TS. Two runs agree
# if both map it.
SOUNDS_AND_TEXTS = "-map 0:a? -map 0:s?"

# Containers that hold their own data. Playlists (HLS, concat) would let one file read others.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,apng,flv,mpeg,mpegts,mpegvideo,ogg,asf,mxf,nut,h264,hevc,ivf"
_NOISE = re.compile(
    "Conversion failed!|Last message repeated|Error (opening|parsing)|Failed to set value|To ignore this"
    "|Task finished|Terminating thread|non monotonically increasing dts"
)
_ADVICE = {
    "Invalid data found": "The file is damaged, cut short or no video. Copy or download it again.",
    "whitelist": "The file is no video of a kind that is read: MP4, MOV, MKV, WebM, AVI, GIF, TS and others.",
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


def names(kind: Literal["decoders", "encoders", "filters"]) -> frozenset[str]:
    """Return what this ffmpeg has of a kind: a set with the names among other words of its list."""
    listed = output([f"-{kind}"], f"Cannot ask ffmpeg for its {kind}").decode("utf-8", "replace")
    return frozenset(listed.split())


def passthrough() -> list[str]:
    """Return the output's arguments for which no frame is duplicated or dropped, whatever its time."""
    # New versions have no -vsync, old ones no -fps_mode.
    option = "-fps_mode" if _knows_fps_mode(ffmpeg_exe()) else "-vsync"
    return [option, "passthrough"]


@cache
def _knows_fps_mode(program: str) -> bool:
    del program
    return b"-fps_mode" in output(["-h", "long"], "Cannot ask ffmpeg for its options")


@contextmanager
def running(arguments: Sequence[str], doing: str, heard: list[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ffmpeg while the block feeds its stdin or reads its stdout, both binary pipes.

    It is ended when the block raises, and waited for in every case. Raises PiyingError, beginning with
    `doing` ("Cannot read clip.mp4"), when it cannot be started or fails.

    Args:
        heard: is given the lines of its stderr: errors alone, where the arguments do not set another level.
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
    said = b"".join(log).decode("utf-8", "replace")
    if process.returncode:
        raise _failure(doing, process.returncode, said)
    if heard is not None:
        heard += said.splitlines()


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


def output(arguments: Sequence[str], doing: str, limit: int = 1 << 28, heard: list[str] | None = None) -> bytes:
    """Return ffmpeg's stdout; for `heard` see `running`.

    Raises PiyingError when it fails, or writes more than `limit` bytes.
    """
    with running(arguments, doing, heard) as process:
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
    words = _sentences(log.splitlines()) or [f"it failed with code {code}"]
    advice = next((advice for sign, advice in _ADVICE.items() if sign in log), "")
    return file_error(doing, errno_in(log), f"ffmpeg says: {words[-1]}. {advice}".strip())


def complaint(heard: Sequence[str]) -> str | None:
    """Return what ffmpeg said of a file that it read nevertheless, in short; None where it said nothing."""
    words = _sentences(heard)
    if not words:
        return None
    return f"ffmpeg says: {words[0]}{f' (and {len(words) - 1} more)' if len(words) > 1 else ''}"


def _sentences(lines: Sequence[str]) -> list[str]:
    """Return the lines that say something, without the part of ffmpeg that says it."""
    # Where lines have a level, only errors count.
    chosen = [line for line in lines if re.search(r"\[(error|fatal|panic)\]", line)] or lines
    said = (re.sub(r"^(\[[^]]*\] )+", "", line).strip().rstrip(".") for line in chosen)
    return [line for line in said if line and not _NOISE.search(line)]
