"""One question to an HTTP server and its answer, bounded in time and size."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from .addresses import API_KEY, Address
from .writer import Answer

if TYPE_CHECKING:
    from ..host.base import Host


LARGEST = 4 * 1024 * 1024  # bytes of an answer; 4,096 tokens as events of 300 bytes are 1.2 MB
CHUNK = 16 * 1024
POLL = 0.05  # seconds until a cancel is seen
PAUSE = 0.3  # seconds before a second try
GRACE = 2.0  # seconds that a thread outlives its deadline, where nothing wakes it
REASON = 200  # characters of what a server says that are repeated


class ServerFailed(PiyingError):
    """The server cannot be used now."""


class RequestRejected(ServerFailed):
    """The server does not take this request; one with less in it may do."""


class Unreachable(ServerFailed):
    """The server failed in a way that a second try may mend."""


@dataclass(frozen=True)
class Terms:
    """To whom a request goes, and how long it may take.

    Attributes:
        address, headers: of the request.
        timeout: seconds from the first try on, for messages.
        deadline: when they are over, as `time.monotonic` counts.
        tries: how often to ask a server that fails by itself.
    """

    address: Address
    headers: dict[str, str]
    timeout: float
    deadline: float
    tries: int


def exchange(terms: Terms, body: dict[str, Any], host: Host, shown: Callable[[str], str]) -> Answer:
    """Return a server's answer to a chat.

    Args:
        terms: to whom, and how long.
        body: the request.
        host: shows the text while it comes, and is asked for a cancel all the time.
        shown: text so far → what to show of it.

    Raises:
        Refused: the server does not take the request.
        ServerFailed: it cannot be reached, is too slow, fails, or answers with something else.
    """
    for number in range(1, terms.tries + 1):
        try:
            return _Exchange(terms, body).run(host, shown)
        except Unreachable:
            if number == terms.tries or time.monotonic() + PAUSE >= terms.deadline:
                raise
            time.sleep(PAUSE)
    raise AssertionError("tries is at least 1")


@dataclass
class _Exchange:
    """One request. What the thread finds comes through the queue: pieces of text, an error, and None at the end."""

    terms: Terms
    body: dict[str, Any]
    _found: queue.SimpleQueue[str | PiyingError | None] = field(default_factory=queue.SimpleQueue)
    _connection: http.client.HTTPConnection | None = None
    _reason: str | None = None  # why the model stopped, in the server's words
    _given_up: bool = False

    @property
    def address(self) -> Address:
        return self.terms.address

    def run(self, host: Host, shown: Callable[[str], str]) -> Answer:
        threading.Thread(target=self._ask, name="piying-server", daemon=True).start()
        try:
            text = self._collect(host, shown)
        finally:
            self._close()
        return Answer(text, self._reason not in (None, "length"))

    def _collect(self, host: Host, shown: Callable[[str], str]) -> str:
        pieces: list[str] = []
        total = int(self.body["max_tokens"])
        progress = host.progress("Asking the server", total)
        while True:
            host.check_cancelled()
            if time.monotonic() > self.terms.deadline:
                raise ServerFailed(f"{self.address} did not answer within {self.terms.timeout:g} seconds.")
            try:
                found = self._found.get(timeout=POLL)
            except queue.Empty:
                continue
            if isinstance(found, PiyingError):
                raise found
            if found is None:
                progress.step(total)
                return "".join(pieces)
            pieces.append(found)
            progress.step(min(len(pieces), total - 1))
            if self._found.empty():
                progress.text(shown("".join(pieces)))

    def _close(self) -> None:
        """End the thread's waiting: closing alone does not wake a read."""
        self._given_up = True
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    # In the thread

    def _ask(self) -> None:
        try:
            self._connect()
            for piece in self._pieces(self._send()):
                self._found.put(piece)
            self._found.put(None)
        except PiyingError as error:
            self._found.put(error)
        except ConnectionRefusedError:
            self._found.put(Unreachable(f"{self.address} cannot be reached: nothing listens there. Start the server."))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".strip(": ")[:REASON]
            self._found.put(Unreachable(f"{self.address} cannot be reached, or broke off ({reason})."))
        finally:
            if self._connection is not None:
                self._connection.close()

    def _connect(self) -> None:
        """Connect, and see that a server on this machine really is on it."""
        kind = http.client.HTTPSConnection if self.address.secure else http.client.HTTPConnection
        # The deadline is kept by the one who waits; this only ends a thread that nobody waits for.
        left = max(0.0, self.terms.deadline - time.monotonic()) + GRACE
        self._connection = kind(self.address.host, self.address.port, timeout=left)
        self._connection.connect()
        peer = ipaddress.ip_address(self._connection.sock.getpeername()[0].partition("%")[0])
        if self.address.is_loopback and not peer.is_loopback:
            raise ServerFailed(f"{self.address} leads to {peer}, which is not this machine.")

    def _send(self) -> http.client.HTTPResponse:
        assert self._connection is not None
        data = json.dumps(self.body, ensure_ascii=False).encode()
        self._connection.request("POST", self.address.path, body=data, headers=self.terms.headers)
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            raise _failure(self.terms, response)
        return response

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[str]:
        """Yield the text of an answer, in events or all at once."""
        if "text/event-stream" not in (response.getheader("Content-Type") or ""):
            yield self._whole(b"".join(self._chunks(response)))
            return
        for event in _events(self._chunks(response)):
            if event == "[DONE]":
                self._reason = self._reason or "stop"
                return
            yield self._delta(event)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        size = 0
        while chunk := response.read1(CHUNK):
            size += len(chunk)
            if size > LARGEST:
                raise ServerFailed(f"{self.address} answered with more than {LARGEST // 1024**2} MiB.")
            if self._given_up:
                return
            yield chunk

    def _whole(self, data: bytes) -> str:
        choice = _choice(self.address, data.decode("utf-8", "replace"))
        self._reason = choice.get("finish_reason") or "stop"
        return _text(choice.get("message"))

    def _delta(self, event: str) -> str:
        choice = _choice(self.address, event)
        self._reason = choice.get("finish_reason") or self._reason
        return _text(choice.get("delta"))


def _events(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the data of server-sent events; one that is cut off is dropped."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode("utf-8", "replace")


def _choice(address: Address, text: str) -> dict[str, Any]:
    """Return the first choice of a completion; empty where an event has none, as one of usage."""
    try:
        value = json.loads(text)
        choices = value["choices"]
        return dict(choices[0]) if choices else {}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ServerFailed(
            f"{address} answered with something that is no chat completion: {_quoted(text)}. Is it the right address?"
        ) from error


def _text(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _failure(terms: Terms, response: http.client.HTTPResponse) -> ServerFailed:
    """Return what a status other than 200 means for the person at the screen."""
    address, status = terms.address, response.status
    said = _quoted(_message(response.read1(CHUNK).decode("utf-8", "replace")))
    if 300 <= status < 400:
        return ServerFailed(f"{address} sends requests elsewhere ({status}). Write the address it is really at.")
    if status in (401, 403) and "Authorization" in terms.headers:
        return ServerFailed(f"{address} does not accept the API key in {API_KEY} ({status}: {said}).")
    if status in (401, 403):
        return ServerFailed(f"{address} wants an API key ({status}). Set the environment variable {API_KEY}.")
    if status == 404:
        return ServerFailed(f"{address} does not have this address or model (404: {said}).")
    if status == 429 or status >= 500:
        return Unreachable(f"{address} failed ({status}: {said}).")
    return RequestRejected(f"{address} does not take the request ({status}: {said}).")


def _message(text: str) -> str:
    """Return the words of an error, as OpenAI's servers and Ollama wrap them; else the text."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text


def _quoted(text: str) -> str:
    """Return the beginning of what a server said, harmless to show."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * REASON]).strip()[:REASON] or "nothing"
