"""Asking a server: HTTPS alone, tokens to their own host alone, and every refusal a sentence."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from .errors import PiyingError

JSON_LIMIT = 64 << 20  # bytes of a listing; the largest repositories' are a few MB
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0  # seconds that a server may ask us to wait
LONG_PAUSE = 4.0  # seconds of silence that a person would wonder about


class DownloadRefused(PiyingError):
    """A hub does not give a file, or gives another one. Another hub may have it."""


class RetryableError(Exception):
    """This attempt came to nothing; the next one may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class OutOfRange(RetryableError):
    """There is nothing after the bytes that are here; `total` is the file's length where the server says it."""

    def __init__(self, total: int | None) -> None:
        super().__init__("there is nothing after what is here")
        self.total = total


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched, and what is known of it.

    Attributes:
        url: its address.
        bytes, sha256: what it has to be; None where that is not known.
        hub: the hub's name, for people.
        token: sent to the first host alone, never along a redirect to another one.
        login: what to do where the hub wants to know who asks.
    """

    url: str
    bytes: int | None = None
    sha256: str | None = None
    hub: str = "the server"
    token: str | None = None
    login: str = ""

    @property
    def place(self) -> str:
        """The address without what follows `?`, which may be a signature."""
        return place(self.url)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait: seconds without a byte, and seconds before each further attempt.

    The attempts are counted from the last new byte, so that a line that is cut often still gets there. `tell` is
    given a sentence before a pause that a person would wonder about.
    """

    timeout: float = 30.0
    pauses: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
    tell: Callable[[str], None] = lambda line: None


def place(url: str) -> str:
    """Return an address without its query."""
    return url.partition("?")[0]


def is_allowed(url: str) -> bool:
    """Tell whether an address is HTTPS, or HTTP on this very machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


def answers(url: str, timeout: float) -> bool:
    """Tell whether a server is there, whatever it says."""
    try:
        with _OPENER.open(_request(Remote(url), {}), timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, http.client.HTTPException, PiyingError):
        return False


def read_json(remote: Remote, patience: RetryPolicy) -> Any:
    """Return what a hub's listing says.

    Raises:
        Refused: there is none, or it is no JSON.
    """

    def attempt() -> Any:
        with answer(remote, {}, patience.timeout) as response:
            return json.loads(response.read(JSON_LIMIT))

    try:
        return persist(attempt, remote, patience)
    except (ValueError, RecursionError) as error:
        raise DownloadRefused(f"{remote.hub} answered {remote.place} with something else than a listing.") from error


@contextlib.contextmanager
def answer(remote: Remote, headers: dict[str, str], timeout: float) -> Iterator[http.client.HTTPResponse]:
    """Ask for a file and give the answer, with status 200 or 206.

    Raises:
        Refused: the server does not give it.
        Again, OSError, HTTPException: it may the next time.
    """
    try:
        response = _OPENER.open(_request(remote, headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, remote) from error
    except ValueError as error:
        raise DownloadRefused(f"{remote.place} is or sends on to an address that cannot be read ({error}).") from error
    with response:
        yield response


def persist(
    attempt: Callable[[], Any], remote: Remote, patience: RetryPolicy, best: Callable[[], int] = lambda: 0
) -> Any:
    """Try until it works.

    Args:
        attempt: what to try.
        remote: what is asked for, for the message.
        patience: the pauses; as many attempts may fail one after the other.
        best: the most bytes that were ever here; where they grow, the count begins anew.

    Raises:
        Refused: the server says no, or cannot be reached.
    """
    failures, seen = 0, best()
    while True:
        try:
            return attempt()
        except RetryableError as error:
            reason, wait = str(error), error.wait
        except (OSError, http.client.HTTPException) as error:
            _refuse_untrusted(error, remote)
            reason, wait = _reason(error), 0.0
        failures = 0 if best() > seen else failures
        seen = max(seen, best())
        if failures == len(patience.pauses):
            raise DownloadRefused(
                f"{remote.place} cannot be fetched ({reason}). Check the network, then run the same command again: it "
                "goes on where it stopped."
            )
        pause = max(wait, patience.pauses[failures])
        if pause >= LONG_PAUSE:
            patience.tell(f"{remote.place}: {reason}. Trying again in {pause:.0f} s.")
        time.sleep(pause)
        failures += 1


def _refuse_untrusted(error: Exception, remote: Remote) -> None:
    cause = getattr(error, "reason", error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise DownloadRefused(
            f"{remote.place} cannot be trusted ({cause.verify_message}). Check this machine's clock, its certificates "
            "and the proxy."
        ) from error


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return " ".join(str(cause).split()) or type(cause).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed addresses alone, and takes the token along on the same host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not is_allowed(newurl):
            raise DownloadRefused(
                f"{place(req.full_url)} sends on to {place(newurl)}, which is not HTTPS. Nothing was read."
            )
        known = 307 if code == 308 else code
        following = super().redirect_request(req, fp, known, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following and token and _origin(newurl) == _origin(req.full_url):
            following.add_unredirected_header("Authorization", token)
        return following

    # Python 3.10 does not know 308, which for a GET is what 307 is.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


_OPENER = urllib.request.build_opener(_Redirects)


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _request(remote: Remote, headers: dict[str, str]) -> urllib.request.Request:
    if not is_allowed(remote.url):
        raise DownloadRefused(f"{remote.place} is not HTTPS. Only a server on this machine may do without.")
    always = {"User-Agent": "piying", "Accept-Encoding": "identity"}
    request = urllib.request.Request(remote.url, headers={**always, **headers})
    if remote.token:
        request.add_unredirected_header("Authorization", f"Bearer {remote.token}")
    return request


def _refusal(error: urllib.error.HTTPError, remote: Remote) -> Exception:
    """Turn a status into what to do about it."""
    code = error.code
    if code in TRANSIENT:
        return RetryableError(f"status {code}", _asked_wait(error.headers))
    if code == 416:
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        return OutOfRange(int(total) if total.isdigit() else None)
    if code in (401, 403):
        return DownloadRefused(
            f"{remote.hub} does not give {remote.place} to everybody (status {code}). {remote.login}"
        )
    if code in (404, 410):
        return DownloadRefused(
            f"{remote.hub} has no {remote.place} (status {code}). It may have moved: update Piying, or choose the "
            "other hub with --source."
        )
    if 300 <= code < 400:
        return DownloadRefused(
            f"{remote.place} sends on to an address that is not HTTPS, or in a circle. Nothing was read."
        )
    return DownloadRefused(f"{remote.hub} answered {remote.place} with status {code}.")


def _asked_wait(headers: Message) -> float:
    value = headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT) if value.isdigit() else 0.0
