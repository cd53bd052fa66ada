"""Client for the chat endpoint of an OpenAI-compatible server: one chat and its answer, bounded in time and size."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.client import OK, HTTPResponse
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..files.json_file import parse_json
from ..http import (
    Cancellation,
    HttpClient,
    HttpError,
    Request,
    ResponseTooLarge,
    RetryableError,
    RetryPolicy,
    read_limited,
    retry,
)
from .addresses import API_KEY, Address, key_hint
from .messages import Answer

if TYPE_CHECKING:
    from ..host.base import Host


LARGEST = 4 * 1024 * 1024  # bytes of an answer; 4,096 tokens as events of 300 bytes are 1.2 MB
LARGEST_ERROR = 16 * 1024
POLL = 0.05  # seconds until a cancel is seen
PAUSE = 0.3  # seconds before a second try
GRACE = 2.0  # seconds that a thread outlives its deadline, where nothing wakes it
REASON = 200  # characters of what a server says that are repeated

# No proxy sees a prompt, and no redirect takes it elsewhere. Where it may go is the owner's to say, over HTTP too.
CLIENT = HttpClient(redirects=False, proxies=False, plain_http=True)


class ServerFailed(PiyingError):
    """The server cannot be used now."""


class RequestRejected(ServerFailed):
    """The server does not take this request; one with less in it may do."""


class ServerUnavailable(ServerFailed):
    """The server failed in a way that a second try may mend."""


@dataclass(frozen=True, kw_only=True)
class ChatTerms:
    """To whom a request goes, and how long it may take.

    Attributes:
        address: of the endpoint.
        api_key: None for none.
        timeout: seconds from the first try on, for messages.
        deadline: when they are over, as `time.monotonic` counts.
        tries: how often to ask a server that fails by itself.
    """

    address: Address
    api_key: str | None
    timeout: float
    deadline: float
    tries: int


def chat_completion(terms: ChatTerms, body: dict[str, Any], host: Host, shown: Callable[[str], str]) -> Answer:
    """Return a server's answer to a chat.

    Args:
        terms: to whom, and how long.
        body: the request.
        host: shows the text while it comes, and is asked for a cancel all the time.
        shown: text so far → what to show of it.

    Raises:
        RequestRejected: the server does not take the request.
        ServerFailed: it cannot be reached, is too slow, fails, or answers with something else.
    """

    def attempt() -> Answer:
        try:
            return _Chat(terms, body).run(host, shown)
        except ServerUnavailable as error:
            raise RetryableError(str(error)) from error

    try:
        policy = RetryPolicy(pauses=(PAUSE,) * (terms.tries - 1), deadline=terms.deadline)
        return retry(attempt, policy, str(terms.address))
    except RetryableError as error:
        raise ServerUnavailable(str(error)) from error


@dataclass
class _Chat:
    """One request. What its thread receives comes through the queue: pieces of text, an error, and None at the end."""

    terms: ChatTerms
    body: dict[str, Any]
    _received: queue.SimpleQueue[str | PiyingError | None] = field(default_factory=queue.SimpleQueue)
    _cancellation: Cancellation = field(default_factory=Cancellation)
    _finish_reason: Any = None  # as the server gives it

    @property
    def address(self) -> Address:
        return self.terms.address

    def run(self, host: Host, shown: Callable[[str], str]) -> Answer:
        pieces: list[str] = []
        total = int(self.body["max_tokens"])
        threading.Thread(target=self._request, name="piying-server", daemon=True).start()
        try:
            progress = host.progress("Asking the server", total)
            while True:
                host.check_cancelled()
                if time.monotonic() > self.terms.deadline:
                    raise ServerFailed(f"{self.address} did not answer within {self.terms.timeout:g} seconds.")
                try:
                    received = self._received.get(timeout=POLL)
                except queue.Empty:
                    continue
                if isinstance(received, PiyingError):
                    raise received
                if received is None:
                    progress.step(total)
                    return Answer("".join(pieces), self._finish_reason not in (None, "length"))
                pieces.append(received)
                progress.step(min(len(pieces), total - 1))
                if self._received.empty():  # showing every piece of a fast server would slow it down
                    progress.text(shown("".join(pieces)))
        finally:
            self._cancellation.set()

    # In the thread

    def _request(self) -> None:
        data = json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        request = Request(str(self.address), headers, data, self.terms.api_key)
        # The deadline is kept by the one who waits; this only ends an abandoned thread.
        left = max(0.0, self.terms.deadline - time.monotonic()) + GRACE
        try:
            with CLIENT.open(request, left, self._cancellation, self._check_peer) as response:
                if response.status != OK:
                    raise _failure(self.terms, response)
                for piece in self._pieces(response):
                    self._received.put(piece)
            self._received.put(None)
        except RetryableError as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                problem = "cannot be reached: nothing listens there. Start the server."
            else:
                reason = f"{type(error.__cause__).__name__}: {error}"[:REASON]
                problem = f"cannot be reached, or broke off ({reason})."
            self._received.put(ServerUnavailable(f"{self.address} {problem}"))
        except ResponseTooLarge as error:
            self._received.put(ServerFailed(f"{self.address} {error}."))
        except HttpError as error:
            self._received.put(ServerFailed(str(error)))
        except PiyingError as error:
            self._received.put(error)

    def _check_peer(self, peer: str) -> None:
        """Refuse a server that is on this machine by its name and elsewhere by its address."""
        if self.address.is_loopback and not ipaddress.ip_address(peer).is_loopback:
            raise ServerFailed(f"{self.address} leads to {peer}, which is not this machine.")

    def _pieces(self, response: HTTPResponse) -> Iterator[str]:
        """Yield the text of an answer, in events or all at once."""
        coding = response.getheader("Content-Encoding") or "identity"
        if coding != "identity":
            raise ServerFailed(
                f"{self.address} answered in {_quoted(coding)}, and was asked for plain text. Switch compression off."
            )
        chunks = read_limited(response, LARGEST)
        if "text/event-stream" not in (response.getheader("Content-Type") or ""):
            choice = _choice(self.address, b"".join(chunks).decode("utf-8-sig", "replace"))
            self._finish_reason = choice.get("finish_reason") or "stop"
            yield _text(self.address, choice.get("message"))
            return
        for event in _events(chunks):
            if event == "[DONE]":
                self._finish_reason = self._finish_reason or "stop"
                return
            choice = _choice(self.address, event)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            yield _text(self.address, choice.get("delta"))


def _events(chunks: Iterable[bytes]) -> Iterator[str]:
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
        choices = parse_json(text)["choices"]
        return dict(choices[0]) if choices else {}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ServerFailed(
            f"{address} answered with something that is no chat completion: {_quoted(text)}. Is it the right address?"
        ) from error


def _text(address: Address, message: Any) -> str:
    """Return the text of a message or of a piece of one, which may come in parts.

    Raises:
        ServerFailed: it is a refusal.
    """
    said = message if isinstance(message, dict) else {}
    if isinstance(said.get("refusal"), str) and said["refusal"]:
        raise ServerFailed(f"{address} refuses to answer: {_quoted(said['refusal'])}.")
    content = said.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _failure(terms: ChatTerms, response: HTTPResponse) -> ServerFailed:
    """Return what a status other than 200 means for the person at the screen."""
    address, status = terms.address, response.status
    detail = response.read1(LARGEST_ERROR).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a plain text is its own message
        error = parse_json(detail)["error"]  # as OpenAI's servers and Ollama wrap it
        detail = str(error["message"] if isinstance(error, dict) else error)
    detail = _quoted(detail)
    if 300 <= status < 400:
        return ServerFailed(f"{address} redirects requests ({status}). Write the address it is really at.")
    if status in (401, 403) and terms.api_key:
        return ServerFailed(f"{address} does not accept the API key in {API_KEY} ({status}: {detail}).")
    if status in (401, 403):
        return ServerFailed(f"{address} wants an API key ({status}). {key_hint(address)}")
    if status == 404:
        return ServerFailed(f"{address} does not have this address or model (404: {detail}).")
    if status == 429 or status >= 500:
        return ServerUnavailable(f"{address} failed ({status}: {detail}).")
    return RequestRejected(f"{address} does not take the request ({status}: {detail}).")


def _quoted(text: str) -> str:
    """Return the beginning of what a server said, harmless to show."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * REASON]).strip()[:REASON] or "nothing"
