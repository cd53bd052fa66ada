"""One file over HTTPS: resumed where it was cut, and proved before it takes its place."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path

from ..errors import PiyingError
from ..http import DownloadRefused, OutOfRange, Remote, RetryableError, RetryPolicy, answer, persist
from .checksums import exclusive, sha256_of
from .partial_file import CHUNK, PartialFile

JOINED_TRIES = 3

Progress = Callable[[int], None]


def transfer(
    remote: Remote,
    target: Path,
    progress: Progress = lambda done: None,
    patience: RetryPolicy | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> str:
    """Fetch a file to `target` and return its sha256.

    What is at `target` already stays until the new file is proved. Of two processes that fetch the same file the
    second waits, and finds it there.

    Args:
        remote: what to fetch.
        target: where it goes; the folder is made.
        progress: told the bytes that are here, often; may raise to stop, and the part stays.
        patience: how long to wait for a server.
        waiting: called once where another process is fetching the same file.

    Raises:
        Refused: the server does not give it, or gives something else.
        PiyingError: it cannot be written here.
    """
    before = _stamp(target)
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target.with_name(target.name + ".part.lock"), waiting):
            if _stamp(target) not in (None, before):
                return sha256_of(target)
            with PartialFile(target, remote.sha256) as part:
                digest = _complete(part, remote, progress, patience or RetryPolicy())
                part.take_place()
    return digest


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PiyingError(
            f"{target} cannot be written ({error.strerror or error}). Look at the folder's permissions, or name "
            "another one with --to."
        ) from error


def _complete(part: PartialFile, remote: Remote, progress: Progress, patience: RetryPolicy) -> str:
    """Fill a part until it is right; one that was put together may be of two files, and is fetched in one piece."""
    for _ in range(JOINED_TRIES):
        progress(part.size)
        persist(lambda: _receive(part, remote, progress, patience.timeout), remote, patience, lambda: part.best)
        digest, joined = part.digest(), part.joined
        if remote.sha256 in (None, digest):
            return digest
        part.reset()
        if not joined:
            break
    raise DownloadRefused(
        f"What {remote.hub} sent for {part.target.name} is not the right file: its sha256 is {digest}, and "
        f"{remote.sha256} was expected. Nothing was changed here. Choose the other hub with --source, or try later."
    )


def _receive(part: PartialFile, remote: Remote, progress: Progress, timeout: float) -> None:
    """Ask once for what is missing, and write what comes."""
    if part.size and part.size == remote.bytes:
        return
    try:
        with answer(remote, part.range_headers(), timeout) as response:
            total = _begin(part, remote, response)
            _pour(response, part, total, progress)
    except OutOfRange as error:
        if error.total != part.size or part.announced not in (None, part.size):
            part.reset()
            raise


def _pour(response: http.client.HTTPResponse, part: PartialFile, total: int | None, progress: Progress) -> None:
    while chunk := response.read1(CHUNK):
        if total is not None and part.size + len(chunk) > total:
            part.reset()
            raise RetryableError("more came than was announced")
        part.write(chunk)
        progress(part.size)
    if total is not None and part.size < total:
        raise RetryableError(f"the connection was cut after {part.size} of {total} bytes")


def _begin(part: PartialFile, remote: Remote, response: http.client.HTTPResponse) -> int | None:
    """Put the part where the answer starts, and return the bytes of the whole file."""
    start, total = _extent(response)
    _check_length(part.target.name, remote, total)
    etag = response.headers.get("ETag")
    if start and (start != part.size or part.is_another(etag)):
        part.reset()
        raise RetryableError("the file at the hub is another one now")
    if start:
        part.joined = True
    else:
        part.reset()
    part.announced = total
    part.note(etag)
    return total


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return where the answer starts in the file, and the file's length where it is told."""
    if response.status == 206:
        return _content_range(response.headers)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _content_range(headers: Message) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if not match:
        raise RetryableError("the answer does not say where it starts")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _check_length(name: str, remote: Remote, total: int | None) -> None:
    if total is None and remote.sha256 is None:
        raise DownloadRefused(
            f"{remote.hub} does not say how long {name} is, so nobody could tell whether it came whole."
        )
    if total is not None and remote.bytes not in (None, total):
        raise DownloadRefused(
            f"{name} has {total} bytes at {remote.hub}, not {remote.bytes}: it was changed there, or this is no file "
            "but a message. Nothing was changed here. Choose the other hub with --source, or try later."
        )
