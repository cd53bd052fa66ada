"""Client: a server's routes as methods, with requests that are sent again where that does no harm."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import PiyingError, clipped
from ..core.http import HttpClient, Request, RetryableError, RetryPolicy, is_allowed, read_limited, retry, retry_after
from ..core.media.naming import writing
from .job import ResultFile

Result = TypeVar("Result")

TIMEOUT = 60.0  # seconds without a byte; a server that has nothing to say says so every 15
LONGEST_LINE = 64 << 20  # bytes of one event
LONGEST_ANSWER = 64 << 20
NUMBERED = re.compile(r"(?P<prefix>.+?)(_[0-9]{5,}_)?(?P<suffix>\.[A-Za-z0-9]+)?")


class ServerRefused(PiyingError):
    """The server does not take a request; the text has its sentences."""


@dataclass(frozen=True)
class Client:
    """A server of jobs.

    Attributes:
        url: its address.
        token: for it, or None.
        plain_http: whether HTTP without encryption may leave this machine.
        notify: given a sentence before a pause that a person would wonder about.
    """

    url: str
    token: str | None = None
    plain_http: bool = False
    notify: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        """Refuse an address that cannot be one, or that a token must not go to.

        Raises:
            PiyingError: see above.
        """
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PiyingError(f"--to {self.url!r}: is no address. Give one such as http://127.0.0.1:8190.")
        if not self.plain_http and not is_allowed(self.url):
            raise PiyingError(
                f"--to {self.url}: without HTTPS anybody on the way reads the token and the work. Use https://, or "
                "--plain-http in a network that you trust."
            )

    def submit(self, path: str, body: dict[str, Any]) -> Any:
        """Send jobs with ids of their own, again where the answer does not come, and return the answer.

        Raises:
            ServerRefused: it does not take them.
            PiyingError: it cannot be reached.
        """
        data = json.dumps(body).encode("ascii")
        return self._json(Request(self._at(path), {"Content-Type": "application/json"}, data, self.token))

    def get(self, path: str) -> Any:
        """Return what a route says."""
        return self._json(Request(self._at(path), token=self.token))

    def show(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        found: dict[str, Any] = self.get(f"/jobs/{job_id}")
        return found

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        self._json(Request(self._at(f"/jobs/{job_id}"), token=self.token, method="DELETE"))

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a job until its last; goes on where the connection was lost."""
        last = 0

        def follow() -> Iterator[dict[str, Any]]:
            nonlocal last
            headers = {"Last-Event-ID": str(last), "Accept": "text/event-stream"}
            request = Request(self._at(f"/jobs/{job_id}/events"), headers, token=self.token)
            with self._http.open(request, TIMEOUT) as response:
                self._check(response)
                for number, event in _parsed(response):
                    last = number or last
                    yield event
            raise RetryableError("the connection was closed")

        stream = follow()

        def attempt() -> dict[str, Any]:
            nonlocal stream
            try:
                return next(stream)
            except RetryableError:
                stream = follow()
                raise

        # Attempts are counted anew for each event: a long job outlives many broken connections.
        while True:
            event = self._retried(attempt)
            yield event
            if event.get("event") in ("done", "error"):
                return

    def fetch(self, job_id: str, file: ResultFile, folder: Path) -> Path:
        """Write a file of a job's results to a folder, under a number of its own, and return its path.

        Raises:
            PiyingError: it cannot be fetched or written, or is another one than the server says.
        """
        name = file["name"]
        parent, _, own = name.rpartition("/")
        parts = NUMBERED.fullmatch(own)
        stem, suffix = (parts["prefix"], parts["suffix"] or "") if parts else (own, "")
        prefix = f"{parent}/{stem}" if parent else stem

        def attempt() -> Path:
            url = self._at(f"/jobs/{job_id}/results/{urllib.parse.quote(name)}")
            with self._http.open(Request(url, token=self.token), TIMEOUT) as response:
                self._check(response)
                # The names come from a server: `writing` lets none lead out of the folder, and overwrites nothing.
                with writing(folder, prefix, suffix) as output:
                    checksum = hashlib.sha256()
                    with output.path.open("wb") as target:
                        for chunk in read_limited(response, file["bytes"]):
                            checksum.update(chunk)
                            target.write(chunk)
                    if checksum.hexdigest() != file["sha256"]:
                        raise RetryableError(f"{name} came incomplete")
                return output.path

        return self._retried(attempt)

    @property
    def _http(self) -> HttpClient:
        return HttpClient(redirects=False, plain_http=self.plain_http)

    def _at(self, path: str) -> str:
        return self.url.rstrip("/") + path

    def _json(self, request: Request) -> Any:
        def attempt() -> Any:
            with self._http.open(request, TIMEOUT) as response:
                self._check(response)
                return json.loads(b"".join(read_limited(response, LONGEST_ANSWER)))

        return self._retried(attempt)

    def _retried(self, attempt: Callable[[], Result]) -> Result:
        try:
            return retry(attempt, RetryPolicy(timeout=TIMEOUT, notify=self.notify), self.url)
        except RetryableError as error:
            raise PiyingError(f"--to {self.url}: cannot be reached ({error}). Is the server running?") from error
        except ValueError as error:
            raise PiyingError(
                f"--to {self.url}: answers with something else than JSON. Is it a server of jobs?"
            ) from error

    def _check(self, response: http.client.HTTPResponse) -> None:
        """Accept a response that is a success."""
        if response.status < 300:
            return
        text = b"".join(read_limited(response, LONGEST_ANSWER)).decode("utf-8", "replace")
        try:
            messages = [str(each["message"]) for each in json.loads(text)["problems"]]
        except (ValueError, KeyError, TypeError):
            messages = [f"it answers {response.status}: {clipped(text)!r}"]
        # Too many jobs, or a server that is just starting: later it takes the same request.
        if response.status in (429, 502, 503):
            raise RetryableError(" ".join(messages), retry_after(response.headers))
        raise ServerRefused("\n".join(messages))


def _parsed(response: http.client.HTTPResponse) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbers and the data of server-sent events."""
    number, data = 0, ""
    while line := response.readline(LONGEST_LINE):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "id" and value.isdigit():
            number = int(value)
        elif name == "data":
            data += value
        elif not text and data:
            yield number, json.loads(data)
            number, data = 0, ""


def result_files(found: Sequence[dict[str, Any]]) -> list[ResultFile]:
    """Return the files that a server says a job has made."""
    return [{"name": str(one["name"]), "bytes": int(one["bytes"]), "sha256": str(one["sha256"])} for one in found]
