"""Transfer of one file from a hub: resumed where it was cut, and its checksum compared before it takes its place."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, TypeVar

from ..errors import PiyingError
from ..files.json_file import parse_json
from ..http import (
    TRANSIENT_STATUSES,
    HttpClient,
    HttpError,
    Request,
    ResponseTooLarge,
    RetryableError,
    RetryPolicy,
    fast_enough,
    read_limited,
    retry,
    retry_after,
    without_query,
)
from .checksums import file_lock, sha256_of
from .partial_file import CHUNK, PartialFile

# A file that came in several pieces may be made of two versions: it is fetched again in one piece.
RESUMED_TRIES = 3
LARGEST_LISTING = 16 << 20  # bytes; of a repository with a thousand files it is 1 MB
LONGEST_LISTING = 120.0  # seconds
CLIENT = HttpClient()

Progress = Callable[[int], None]
Result = TypeVar("Result")


class DownloadRefused(PiyingError):
    """A hub does not give a file, or gives another one. Another hub may have it."""


class OutOfRange(RetryableError):
    """There is nothing after the bytes that are here; `total` is the file's length where the server says it."""

    def __init__(self, total: int | None) -> None:
        super().__init__("there is nothing after what is here")
        self.total = total


@dataclass(frozen=True)
class Body:
    """What a server sends of a file.

    Attributes:
        start: where it starts in the file.
        total: bytes of the whole file; None where the server does not say.
        etag: of this version of the file.
        chunks: the bytes; raise `RetryableError` or an OSError where the connection breaks.
    """

    start: int
    total: int | None
    etag: str | None
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded, and what is known of it.

    Attributes:
        url: its address.
        bytes, sha256: what it has to be; None where that is not known.
        hub: the hub's name, for people.
        token: sent to the first host alone, never along a redirect to another one.
        login: what to do where the hub wants to know who asks.
        opener: asks for the rest of a partial file; None for `open_http`.
    """

    url: str
    bytes: int | None = None
    sha256: str | None = None
    hub: str = "the server"
    token: str | None = None
    login: str = ""
    opener: Callable[[RemoteFile, PartialFile, float], AbstractContextManager[Body]] | None = None

    @property
    def place(self) -> str:
        """The address without what follows `?`, which may be a signature."""
        return without_query(self.url)


def transfer(
    remote: RemoteFile,
    target: Path,
    *,
    progress: Progress = lambda done: None,
    policy: RetryPolicy | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> str:
    """Download a file to `target` and return its sha256.

    What is at `target` already stays until the new file is proved. Of two processes that download the same file the
    second waits, and finds it there.

    Args:
        target: where it goes; the folder is made.
        progress: told the bytes that are here, often; may raise to stop, and the partial file stays.
        on_wait: called once where another process is downloading the same file.

    Raises:
        DownloadRefused: the server does not give it, or gives something else.
        PiyingError: it cannot be written here.
    """
    before = _state(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(target.name + ".part.lock"), on_wait):
            if _state(target) not in (None, before):
                return sha256_of(target)
            with PartialFile(target, remote.sha256) as part:
                digest = _complete(part, remote, progress, policy or RetryPolicy())
                part.finish()
    except OSError as error:
        raise PiyingError(
            f"{target} cannot be written ({error.strerror or error}). Look at the folder's permissions, or name "
            "another one with --to."
        ) from error
    return digest


def fetch_json(remote: RemoteFile, policy: RetryPolicy) -> Any:
    """Return what a hub's API answers.

    Raises:
        DownloadRefused: there is no answer, or it is no JSON.
    """

    def attempt() -> Any:
        with _open(remote, {}, policy.timeout) as response:
            return parse_json(b"".join(read_limited(response, LARGEST_LISTING, LONGEST_LISTING)))

    try:
        return _with_retries(attempt, remote, policy)
    except ValueError as error:
        raise DownloadRefused(f"{remote.hub} answered {remote.place} with something else than a listing.") from error


def _with_retries(
    attempt: Callable[[], Result], remote: RemoteFile, policy: RetryPolicy, progress: Callable[[], int] = lambda: 0
) -> Result:
    """Return what `attempt` gives; see `retry`. Raises DownloadRefused in the end."""
    try:
        return retry(attempt, policy, remote.place, progress)
    except RetryableError as error:
        raise DownloadRefused(
            f"{remote.place} cannot be fetched ({error}). Check the network, then run the same command again: it "
            "goes on where it stopped."
        ) from error
    except ResponseTooLarge as error:
        raise DownloadRefused(f"{remote.place} {error}.") from error
    except HttpError as error:
        raise DownloadRefused(str(error)) from error


def server_answers(url: str, timeout: float) -> bool:
    """Return whether a server is there, whatever it says."""
    try:
        with CLIENT.open(Request(url), timeout) as response:
            return response.status < 500
    except (RetryableError, HttpError):
        return False


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _complete(part: PartialFile, remote: RemoteFile, progress: Progress, policy: RetryPolicy) -> str:
    """Fill a partial file until its checksum is right, and return it."""
    for _ in range(RESUMED_TRIES):
        progress(part.size)
        _with_retries(lambda: _receive(part, remote, progress, policy.timeout), remote, policy, lambda: part.most)
        digest, was_resumed = part.digest(), part.was_resumed
        if remote.sha256 in (None, digest):
            return digest
        part.reset()
        if not was_resumed:
            break
    raise DownloadRefused(
        f"What {remote.hub} sent for {part.target.name} is not the right file: its sha256 is {digest}, and "
        f"{remote.sha256} was expected. Nothing was changed here. Choose the other hub with --source, or try later."
    )


def _receive(part: PartialFile, remote: RemoteFile, progress: Progress, timeout: float) -> None:
    """Ask once for what is missing, and write what comes."""
    if part.size and part.size == remote.bytes:
        return
    try:
        with (remote.opener or open_http)(remote, part, timeout) as body:
            limit = _begin(part, remote, body)
            for chunk in fast_enough(body.chunks, timeout):
                if part.size + len(chunk) > limit and remote.sha256 is None:
                    part.reset()
                    raise DownloadRefused(
                        f"{remote.hub} sends more than the {limit} bytes that {part.target.name} has. Nothing was "
                        "changed here. Choose the other hub with --source, or try later."
                    )
                part.write(chunk[: limit - part.size])
                progress(part.size)
                # A hub that does not say how long a file is may send without end. The checksum decides, where known.
                if part.size == limit and remote.sha256:
                    break
        if part.size < limit:
            raise RetryableError(f"the connection was cut after {part.size} of {limit} bytes")
    except OutOfRange as error:
        if error.total != part.size or part.announced not in (None, part.size):
            part.reset()
            raise


def _begin(part: PartialFile, remote: RemoteFile, body: Body) -> int:
    """Put the partial file where the body starts, and return the bytes of the whole file."""
    size = remote.bytes if body.total is None else body.total
    if size is None:
        raise DownloadRefused(
            f"{remote.hub} does not say how long {part.target.name} is, so a truncated download would go unnoticed."
        )
    if remote.bytes not in (None, size):
        raise DownloadRefused(
            f"{part.target.name} has {size} bytes at {remote.hub}, not {remote.bytes}: it was changed there, or this "
            "is no file but a message. Nothing was changed here. Choose the other hub with --source, or try later."
        )
    if body.start and (body.start != part.size or part.is_other_version(body.etag)):
        part.reset()
        raise RetryableError("the file at the hub is another one now")
    if body.start:
        part.was_resumed = True
    else:
        part.reset()
    part.announced = body.total
    part.write_state(body.etag)
    return size


# Over HTTP


@contextlib.contextmanager
def open_http(remote: RemoteFile, part: PartialFile, timeout: float) -> Iterator[Body]:
    """Yield the rest of a partial file, or the whole file where the server gives no less."""
    with _open(remote, part.range_headers(), timeout) as response:
        start, length = 0, response.headers.get("Content-Length", "")
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not match:
                raise RetryableError("the answer does not say where it starts")
            # Content-Length counts the part alone; "*" stands for a length the server does not know.
            start, length = int(match[1]), match[2]
        total = int(length) if length.isdigit() else None
        yield Body(start, total, response.headers.get("ETag"), iter(lambda: response.read1(CHUNK), b""))


@contextlib.contextmanager
def _open(remote: RemoteFile, headers: dict[str, str], timeout: float) -> Iterator[HTTPResponse]:
    """Yield the response with status 200 or 206."""
    with CLIENT.open(Request(remote.url, headers, token=remote.token), timeout) as response:
        if response.status not in (200, 206):
            raise status_error(response.status, response.headers, remote)
        # Asked for plain bytes, so that sizes and checksums are those of the file.
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise DownloadRefused(f"{remote.hub} sends {remote.place} compressed as {encoding}. Choose the other hub.")
        yield response


def status_error(status: int, headers: Message | Mapping[str, str], remote: RemoteFile) -> Exception:
    """Return the error for a status that is no success."""
    if status in TRANSIENT_STATUSES:
        return RetryableError(f"status {status}", retry_after(headers))
    if status == 416:
        total = headers.get("Content-Range", "").rpartition("/")[2]
        return OutOfRange(int(total) if total.isdigit() else None)
    if status in (401, 403):
        return DownloadRefused(
            f"{remote.hub} does not give {remote.place} to everybody (status {status}). {remote.login}"
        )
    if status in (404, 410):
        return DownloadRefused(
            f"{remote.hub} has no {remote.place} (status {status}). It may have moved: update Piying, or choose the "
            "other hub with --source."
        )
    if 300 <= status < 400:
        return DownloadRefused(
            f"{remote.place} redirects to an address that is not HTTPS, or in a circle. Nothing was read."
        )
    return DownloadRefused(f"{remote.hub} answered {remote.place} with status {status}.")
