"""HTTP client on the standard library, for model hubs, language-model servers and ComfyUI servers.

Addresses are HTTPS, or plain HTTP on this very machine unless a client says otherwise. Redirects are followed to HTTPS
alone and never from the internet into a private network or to this machine, or not at all; a token stays with the
origin it was made for. Every response is bounded in size, and one that comes slower than `SLOWEST` is given up.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from enum import IntEnum
from functools import partial
from typing import IO, Any, NamedTuple, TypeVar

from .errors import PiyingError

LOOPBACK_NAME = "localhost"
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
LONGEST_RETRY_AFTER = 60.0  # seconds that a server may ask us to wait
LONG_PAUSE = 4.0  # seconds of silence that a person would wonder about
SLOWEST = 1024  # bytes per second; a file of weights would take months
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

    Attempts that bring more than `SLOWEST` are not counted, so that a line that is cut often still gets there.

    Attributes:
        timeout: seconds without a byte, or with fewer than `SLOWEST` in each on average.
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
    failures, seen, since = 0, progress(), time.monotonic()
    while True:
        try:
            return attempt()
        except RetryableError as error:
            best, now = progress(), time.monotonic()
            failures = 0 if best - seen > SLOWEST * (now - since) else failures
            seen, since = max(seen, best), now
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
        body: bytes, or pieces of them, for which `headers` has to give the Content-Length.
        token: for `Authorization: Bearer`; goes to the origin of `url` alone.
        method: another one, such as DELETE.
        seconds: that sending the body may take beside what the answer may.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] | None = None
    token: str | None = None
    method: str | None = None
    seconds: float = 0.0


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
            timeout: seconds without a byte; the headers have to be here within twice as many after the body.
            cancellation: lets another thread end it.
            check_peer: given the IP address that was connected to, unless it is a proxy's; may raise.

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
        first_reach: list[Reach] = []

        def check_reach(peer: str | None) -> None:
            reach = Reach.INTERNET if peer is None else reach_of(peer)
            first_reach.append(reach)
            if reach > first_reach[0]:
                raise HttpError(f"{without_query(request.url)} redirects to {peer}, {reach.where}. Nothing was read.")
            if check_peer is not None and peer is not None:
                check_peer(peer)

        # A server may send headers without end, and no read of them would ever wait too long.
        watchdog = threading.Timer(2 * timeout + request.seconds, ended.set)
        watchdog.daemon = True
        watchdog.start()
        with _retryable(request.url):
            try:
                response = self._send(request, timeout, _ConnectionHooks(check_reach, ended.attach))
            finally:
                watchdog.cancel()
            with response:
                yield response

    def _send(self, request: Request, timeout: float, hooks: _ConnectionHooks) -> http.client.HTTPResponse:
        always = {"User-Agent": "piying", "Accept-Encoding": "identity"}
        sent = urllib.request.Request(request.url, request.body, {**always, **request.headers}, method=request.method)
        if request.token:
            sent.add_unredirected_header("Authorization", f"Bearer {request.token}")
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(None if self.proxies else {}),
            _HttpHandler(hooks),
            _HttpsHandler(hooks),
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


def fast_enough(chunks: Iterable[bytes], timeout: float) -> Iterator[bytes]:
    """Yield chunks; raises TimeoutError where `timeout` seconds bring fewer than `SLOWEST` bytes each on average."""
    begun, size = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        size += len(chunk)
        seconds = time.monotonic() - begun
        if seconds >= timeout:
            if size < SLOWEST * seconds:
                raise TimeoutError(f"slower than {SLOWEST} bytes per second")
            begun, size = time.monotonic(), 0


def read_limited(response: http.client.HTTPResponse, limit: int, seconds: float = float("inf")) -> Iterator[bytes]:
    """Yield the chunks of a response.

    Raises:
        ResponseTooLarge: there are more than `limit` bytes.
        TimeoutError: they take longer than `seconds`.
    """
    size, deadline = 0, time.monotonic() + seconds
    while chunk := response.read1(CHUNK):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not whole after {seconds:.0f} seconds")
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


class Reach(IntEnum):
    """From how far away an address can be reached; redirects lead from the narrower to the wider alone."""

    INTERNET, NETWORK, MACHINE = range(3)

    @property
    def where(self) -> str:
        """The reach in words, behind an address."""
        return ("on the internet", "which is in a private network", "which is on this machine")[self]


# Programs that route a whole machine through a proxy answer names with addresses of this range, which nobody has.
FAKE_ADDRESSES = ipaddress.ip_network("198.18.0.0/15")


def reach_of(host: str) -> Reach:
    """Return the reach of a host by its name or its IP address alone; any other name counts as on the internet."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.rstrip(".").lower()
        return Reach.MACHINE if name.rpartition(".")[2] == LOOPBACK_NAME else Reach.INTERNET
    address = getattr(address, "ipv4_mapped", None) or address
    # Clouds hand out the machine's credentials at a link-local address.
    if address.is_loopback or address.is_unspecified or address.is_link_local:
        return Reach.MACHINE
    return Reach.INTERNET if address.is_global or address in FAKE_ADDRESSES else Reach.NETWORK


def is_allowed(url: str) -> bool:
    """Return whether an address is HTTPS, or HTTP on this very machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def may_redirect(url: str, target: str) -> bool:
    """Return whether a server may redirect to another address: to HTTPS, and nowhere of a narrower reach."""
    source, destination = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    if reach_of(destination.hostname or "") > reach_of(source.hostname or ""):
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


class _ConnectionHooks(NamedTuple):
    """What a request wants to know of its connections, redirects included.

    Attributes:
        check: given the IP address at the other end, None for a proxy's, before a byte is sent; may raise.
        attach: given the socket that requests go through, once TLS is agreed upon.
    """

    check: Callable[[str | None], None]
    attach: Callable[[socket.socket], None]


class _HttpConnection(http.client.HTTPConnection):
    """A connection with hooks."""

    def __init__(self, *arguments: Any, hooks: _ConnectionHooks, is_proxy: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._hooks = hooks

        def connect(*place: Any) -> socket.socket:
            sock = socket.create_connection(*place)
            try:
                hooks.check(None if is_proxy else peer_address(sock))
            except PiyingError:
                sock.close()
                raise
            return sock

        # http.client's own seam: what it returns is not yet wrapped in TLS.
        self._create_connection = connect

    def connect(self) -> None:
        super().connect()
        self._hooks.attach(self.sock)


class _HttpsConnection(_HttpConnection, http.client.HTTPSConnection):
    """The same with TLS."""


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, hooks: _ConnectionHooks) -> None:
        super().__init__()
        self._hooks = hooks

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(_HttpConnection, hooks=self._hooks, is_proxy=_goes_to_proxy(req))
        return self.do_open(connection, req)  # type: ignore[arg-type]


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, hooks: _ConnectionHooks) -> None:
        super().__init__()
        self._hooks = hooks

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(_HttpsConnection, hooks=self._hooks, is_proxy=_goes_to_proxy(req))
        return self.do_open(connection, req)  # type: ignore[arg-type]


def _goes_to_proxy(req: urllib.request.Request) -> bool:
    return req.host != urllib.parse.urlsplit(req.full_url).netloc


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
            target = urllib.parse.urlsplit(newurl)
            why = "which is not HTTPS" if target.scheme != "https" else reach_of(target.hostname or "").where
            raise HttpError(
                f"{without_query(req.full_url)} redirects to {without_query(newurl)}, {why}. Nothing was read."
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
