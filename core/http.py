"""HTTP client on the standard library, for model hubs and for language-model servers.

Addresses are HTTPS, or plain HTTP on this very machine unless a client says otherwise. Redirects are followed to HTTPS
alone and never from elsewhere to this machine, or not at all; a token stays with the origin it was made for.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any, TypeVar

from .errors import PiyingError

LOOPBACK_NAME = "localhost"
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
LONGEST_RETRY_AFTER = 60.0  # seconds that a server may ask us to wait
LONG_PAUSE = 4.0  # seconds of silence that a person would wonder about
CHUNK = 64 << 10
LONGEST_CHAIN = 16  # of causes of an error, which may be a circle

Result = TypeVar("Result")


class HttpError(PiyingError):
    """A request that came to nothing, and would the next time."""


class ResponseTooLarge(HttpError):
    """More bytes came than are read of such a response."""


class RetryableError(Exception):
    """A request that came to nothing, and may not the next time: the reason, and seconds to wait at least."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up.

    The attempts are counted from the last new byte, so that a line that is cut often still gets there.

    Attributes:
        timeout: seconds without a byte.
        pauses: seconds before each further attempt.
        notify: given a sentence before a pause that a person would wonder about.
        deadline: no attempt begins after it, as `time.monotonic` counts.
    """

    timeout: float = 30.0
    pauses: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
    notify: Callable[[str], None] = lambda line: None
    deadline: float = float("inf")


def retry(
    attempt: Callable[[], Result], policy: RetryPolicy, title: str, progress: Callable[[], int] = lambda: 0
) -> Result:
    """Return what `attempt` gives, called again after each `RetryableError` as long as the policy allows.

    Args:
        title: of what is asked for, for messages.
        progress: the most bytes that were ever here; where they grow, the count of attempts restarts.

    Raises:
        RetryableError: the last attempt's.
    """
    failures, seen = 0, progress()
    while True:
        try:
            return attempt()
        except RetryableError as error:
            best = progress()
            failures, seen = (0 if best > seen else failures), max(seen, best)
            if failures == len(policy.pauses):
                raise
            pause = max(error.wait, policy.pauses[failures])
            if time.monotonic() + pause >= policy.deadline:
                raise
            if pause >= LONG_PAUSE:
                policy.notify(f"{title}: {error}. Trying again in {pause:.0f} s.")
        time.sleep(pause)
        failures += 1


class Cancellation:
    """Ends a request from another thread, which may be waiting for the server's next byte."""

    def __init__(self) -> None:
        self.is_set = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def attach(self, connected: socket.socket) -> None:
        """Take the request's socket."""
        with self._lock:
            self._socket = connected
        if self.is_set:
            self.set()

    def set(self) -> None:
        """End the request. Closing a socket does not wake a read of it, shutting it down does."""
        self.is_set = True
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Request:
    """A GET, or a POST where there is a body.

    Attributes:
        token: for `Authorization: Bearer`; goes to the origin of `url` alone.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    token: str | None = None


@dataclass(frozen=True)
class HttpClient:
    """How requests go out.

    Attributes:
        redirects: whether to follow them.
        proxies: whether those that the system names are used.
        plain_http: whether HTTP without encryption may leave this machine.
    """

    redirects: bool = True
    proxies: bool = True
    plain_http: bool = False

    @contextlib.contextmanager
    def open(
        self,
        request: Request,
        timeout: float,
        cancellation: Cancellation | None = None,
        check_peer: Callable[[str], None] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Yield the response, whatever its status.

        Args:
            timeout: seconds without a byte; the headers have to be here within twice as many.
            cancellation: lets another thread end it.
            check_peer: given the IP address that was connected to; may raise.

        Raises:
            RetryableError: the server cannot be reached or broke off, at any time until the block ends; the error of
                the system is its cause.
            HttpError: the address or a redirect may not be followed, or the server is not who it says.
        """
        if not self.plain_http and not is_allowed(request.url):
            raise HttpError(
                f"{without_query(request.url)} is not HTTPS. Only a server on this machine may do without."
            )

        ended = cancellation or Cancellation()

        def connected(sock: socket.socket) -> None:
            ended.attach(sock)
            if check_peer is not None:
                check_peer(peer_address(sock))

        # A server may send headers without end, and no read of them would ever wait too long.
        watchdog = threading.Timer(2 * timeout, ended.set)
        watchdog.daemon = True
        watchdog.start()
        with _retryable(request.url):
            try:
                response = self._send(request, timeout, connected)
            finally:
                watchdog.cancel()
            with response:
                yield response

    def _send(
        self, request: Request, timeout: float, connected: Callable[[socket.socket], None]
    ) -> http.client.HTTPResponse:
        always = {"User-Agent": "piying", "Accept-Encoding": "identity"}
        sent = urllib.request.Request(request.url, request.body, {**always, **request.headers})
        if request.token:
            sent.add_unredirected_header("Authorization", f"Bearer {request.token}")
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(None if self.proxies else {}),
            _HttpHandler(connected),
            _HttpsHandler(connected),
            _StatusHandler(),
            urllib.request.HTTPErrorProcessor(),
            *((_RedirectHandler(),) if self.redirects else ()),
        ):
            opener.add_handler(handler)
        try:
            response: http.client.HTTPResponse = opener.open(sent, timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            place = without_query(request.url)
            raise HttpError(
                f"{place} redirects to an address that is not HTTPS, or in a circle. Nothing was read."
            ) from error
        except ValueError as error:
            place = without_query(request.url)
            raise HttpError(f"{place} is or redirects to an address that cannot be read ({error}).") from error
        return response


def read_limited(response: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
    """Yield the chunks of a response.

    Raises:
        ResponseTooLarge: there are more than `limit` bytes.
    """
    size = 0
    while chunk := response.read1(CHUNK):
        size += len(chunk)
        if size > limit:
            raise ResponseTooLarge(f"answered with more than {limit >> 20} MiB")
        yield chunk


def retry_after(headers: Message | Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, within reason."""
    value = headers.get("Retry-After", "")
    return min(float(value), LONGEST_RETRY_AFTER) if value.isdigit() else 0.0


def without_query(url: str) -> str:
    """Return an address without what follows `?`, which may be a signature."""
    return url.partition("?")[0]


def is_loopback(host: str | None) -> bool:
    """Return whether a host is this very machine by its name."""
    try:
        return host == LOOPBACK_NAME or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def is_allowed(url: str) -> bool:
    """Return whether an address is HTTPS, or HTTP on this very machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def may_redirect(url: str, target: str) -> bool:
    """Return whether a server may redirect to another address: to HTTPS, and to this machine from it alone."""
    source, destination = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    if is_loopback(destination.hostname) and not is_loopback(source.hostname):
        return False
    # What was asked over HTTPS may be protected by nothing else, on this machine too.
    return destination.scheme == "https" or (source.scheme == "http" and is_allowed(target))


def peer_address(sock: socket.socket) -> str:
    """Return the IP address at the other end of a connection."""
    return str(sock.getpeername()[0]).partition("%")[0]


def same_origin(one: str, other: str) -> bool:
    """Return whether two addresses have scheme, host and port in common."""
    first, second = urllib.parse.urlsplit(one), urllib.parse.urlsplit(other)
    return (first.scheme, first.netloc) == (second.scheme, second.netloc)


def certificate_error(error: object, url: str) -> HttpError | None:
    """Return the error for a server whose certificate was refused; None where that is not why `error` came."""
    for _ in range(LONGEST_CHAIN):
        if isinstance(error, ssl.SSLCertVerificationError):
            return HttpError(
                f"{without_query(url)} cannot be trusted ({error.verify_message}). Check this machine's clock, its "
                "certificates and the proxy."
            )
        error = (error.__cause__ or error.__context__) if isinstance(error, BaseException) else None
    return None


@contextlib.contextmanager
def _retryable(url: str) -> Iterator[None]:
    """Turn what the system says of a broken connection into a `RetryableError`."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        untrusted = certificate_error(cause, url)
        if untrusted is not None:
            raise untrusted from error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise RetryableError(reason) from (cause if isinstance(cause, BaseException) else error)


class _HttpConnection(http.client.HTTPConnection):
    """A connection that hands its socket over before anything is sent."""

    def __init__(self, *arguments: Any, connected: Callable[[socket.socket], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connected = connected

    def connect(self) -> None:
        super().connect()
        self._connected(self.sock)


class _HttpsConnection(_HttpConnection, http.client.HTTPSConnection):
    """The same, once TLS is agreed upon."""


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._connected = connected

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req, connected=self._connected)  # type: ignore[arg-type]


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._connected = connected

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req, connected=self._connected)  # type: ignore[arg-type]


class _StatusHandler(urllib.request.HTTPDefaultErrorHandler):
    """Gives a response whose status is no success to the caller, where urllib raises it."""

    def http_error_default(self, req: urllib.request.Request, fp: Any, code: int, msg: str, hdrs: Any) -> Any:
        return fp


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed addresses alone, and takes the token along within one origin only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not may_redirect(req.full_url, newurl):
            why = "is not HTTPS" if urllib.parse.urlsplit(newurl).scheme != "https" else "is on this machine"
            raise HttpError(
                f"{without_query(req.full_url)} redirects to {without_query(newurl)}, which {why}. Nothing was read."
            )
        fp.close()  # or urllib reads its body, which may have no end
        known = 307 if code == 308 else code
        following = super().redirect_request(req, fp, known, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following and token and same_origin(newurl, req.full_url):
            following.add_unredirected_header("Authorization", token)
        return following

    # Python 3.10 does not know 308, which for a GET is what 307 is.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302
