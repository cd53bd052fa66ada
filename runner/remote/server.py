"""Client of one ComfyUI server: its routes, what they answer, and how much of it and how long is waited for."""

from __future__ import annotations

import http.client
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.errors import PiyingError, clipped
from ...core.http import (
    TRANSIENT_STATUSES,
    HttpClient,
    HttpError,
    Request,
    RetryableError,
    RetryPolicy,
    read_limited,
    retry,
    retry_after,
    without_query,
)
from ..definitions import ObjectInfo, checked_object_info
from ..errors import WorkflowError
from .address import AUTHORIZATION, ServerAddress

# No proxy of the system sees what is sent, and no redirect takes it elsewhere.
CLIENT = HttpClient(redirects=False, proxies=False, plain_http=True)
TIMEOUT = 30.0  # seconds without a byte
CANCEL_TIMEOUT = 4.0  # of a request of a run that is being stopped
PAUSES = (0.5, 1, 2, 4)  # seconds before each further attempt
LARGEST_JSON = 64 << 20  # bytes; /object_info of a ComfyUI with hundreds of packs has 20 MiB
SLOWEST_UPLOAD = 64 << 10  # bytes per second
CHUNK = 1 << 20
REASON = 300  # characters of what a server says that are repeated
LONGEST_ID = 100

State = Literal["pending", "running", "done", "failed", "stopped", "absent"]
JOB_STATES: dict[Any, State] = {  # of /api/jobs
    "pending": "pending",
    "in_progress": "running",
    "completed": "done",
    "failed": "failed",
    "cancelled": "stopped",
}


class ServerError(Exception):
    """A server cannot be reached, or does not answer as a ComfyUI does; the text is a sentence that names it.

    Attributes:
        is_refused: nothing listens at its address.
    """

    def __init__(self, text: str, is_refused: bool = False) -> None:
        super().__init__(text)
        self.is_refused = is_refused


@dataclass(frozen=True)
class JobState:
    """How far a job is.

    Attributes:
        state: absent where the server knows no such job.
        outputs: what its nodes showed, {node id: {key: entries}}, once it is over.
        error: of a failed job, the data of ComfyUI's `execution_error`.
    """

    state: State
    outputs: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """What a server has against a job, or against some of its outputs.

    Attributes:
        message: of the whole.
        nodes: ComfyUI's errors, {node id: [error]}.
    """

    message: str
    nodes: dict[str, list[dict[str, Any]]]


class ComfyServer:
    """One server; the methods may be called from several threads.

    All of them raise `ServerError`.
    """

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.reserved = 0  # jobs on their way to it
        self._has_jobs: bool | None = None  # whether it has /api/jobs; None before the first question
        self._uploaded: dict[tuple[str, str, int, int], str] = {}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.address)

    def definitions(self) -> ObjectInfo:
        """Return the definitions of its node classes."""
        found = self._json("/object_info")
        try:
            return checked_object_info(found, str(self))
        except WorkflowError as error:
            raise ServerError(str(error)) from error

    def waiting(self) -> int:
        """Return how many jobs run or wait there."""
        found = self._json("/prompt")
        info = found.get("exec_info") if isinstance(found, dict) else None
        count = info.get("queue_remaining") if isinstance(info, dict) else None
        if not isinstance(count, int):
            raise ServerError(f"{self}: does not say how long its queue is. Is it a ComfyUI?")
        return count

    def before(self, job: str) -> int:
        """Return how many jobs run or wait before one; 0 too where the server does not say."""
        found = self._json("/queue", attempts=1)
        queues = [found.get(f"queue_{name}") for name in ("running", "pending")] if isinstance(found, dict) else []
        items = [each for queue in queues if isinstance(queue, list) for each in queue]
        # [number, id, …]: a smaller number is before a larger one, whatever their order here.
        numbers = {each[1]: each[0] for each in items if isinstance(each, list) and len(each) > 1}
        own = numbers.get(job)
        return sum(number < own for number in numbers.values()) if isinstance(own, int | float) else 0

    def submit(self, api: dict[str, Any], extra: dict[str, Any], *, client: str, job: str) -> tuple[str, Refusal]:
        """Queue a job; return its id there, and what the server has against some of its outputs.

        Raises:
            JobRefused: it takes none of it.
        """
        body = {"prompt": api, "client_id": client, "prompt_id": job, "extra_data": {"extra_pnginfo": extra}}
        data = json.dumps(body).encode()

        def attempt() -> tuple[int, Any]:
            try:
                return self._once("/prompt", body=data)
            except RetryableError:
                # The answer may be lost and the job be there: a second one would run twice.
                if self.state(job).state != "absent":
                    return http.client.OK, {"prompt_id": job}
                raise

        status, found = self._retried(attempt, accepted=(http.client.BAD_REQUEST,))
        refusal = _refusal(found)
        if status == http.client.BAD_REQUEST:
            raise JobRefused(refusal)
        # Before version 0.3.50 a server chose the id itself.
        given = found.get("prompt_id") if isinstance(found, dict) else None
        if not isinstance(given, str) or not re.fullmatch(rf"[\w-]{{1,{LONGEST_ID}}}", given):
            raise ServerError(f"{self}: took the job and gave it no id. Is it a ComfyUI?")
        return given, refusal

    def state(self, job: str) -> JobState:
        """Return how far a job is, from a single attempt."""
        if self._has_jobs is None:
            self._has_jobs = isinstance(self._ask("/api/jobs", {"limit": "1"}).get("jobs"), list)
        if self._has_jobs:
            found = self._ask(f"/api/jobs/{job}")
            return JobState(
                JOB_STATES.get(found.get("status"), "absent"),
                _table(found.get("outputs")),
                _table(found.get("execution_error")),
            )
        entry = self._ask(f"/history/{job}").get(job)
        if isinstance(entry, dict):
            return _ended(entry)
        queues = self._ask("/queue")
        if _is_among(job, queues.get("queue_running")):
            return JobState("running")
        return JobState("pending" if _is_among(job, queues.get("queue_pending")) else "absent")

    def cancel(self, job: str) -> None:
        """Take a job out of the queue, or interrupt it where it runs; other jobs are left alone."""
        if self._has_jobs and "cancelled" in self._ask(f"/api/jobs/{job}/cancel", body=b"{}", timeout=CANCEL_TIMEOUT):
            return
        self._ask("/queue", body=json.dumps({"delete": [job]}).encode(), timeout=CANCEL_TIMEOUT)
        # Servers of before 2025-09 do not look at the id, and interrupt whatever runs.
        if _is_among(job, self._ask("/queue", timeout=CANCEL_TIMEOUT).get("queue_running")):
            self._ask("/interrupt", body=json.dumps({"prompt_id": job}).encode(), timeout=CANCEL_TIMEOUT)

    def watch(self, client: str) -> None:
        """Have Piying's nodes there send the phases of their work to a client; other servers have no such route."""
        self._ask("/piying/watch", body=json.dumps({"client": client, "moving": False, "page": False}).encode())

    def upload(self, path: Path, name: str) -> str:
        """Put a file into the input folder, and return the name that it has there.

        A file of that name and another content stays, and the new one is called otherwise; that is the server's doing.

        Args:
            name: with its subfolders.
        """
        status = path.stat()
        key = (str(path), name, status.st_size, status.st_mtime_ns)
        with self._lock:
            known = self._uploaded.get(key)
        if known is not None:
            return known
        subfolder, _, plain = name.rpartition("/")
        boundary = uuid.uuid4().hex
        fields = {"type": "input", "subfolder": subfolder}
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{each}"\r\n\r\n{value}\r\n'
            for each, value in fields.items()
        )
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{plain}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        first, last = head.encode(), f"\r\n--{boundary}--\r\n".encode()
        size = len(first) + status.st_size + len(last)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}

        def attempt() -> tuple[int, Any]:
            try:
                return self._once(
                    "/upload/image",
                    body=_file_body(first, path, status.st_size, last),
                    headers=headers,
                    seconds=status.st_size / SLOWEST_UPLOAD,
                )
            except RetryableError as error:
                raise RetryableError(f"while {path.name} was uploaded ({size >> 20} MiB): {error}") from error

        code, found = self._retried(attempt, accepted=(http.client.REQUEST_ENTITY_TOO_LARGE,))
        if code == http.client.REQUEST_ENTITY_TOO_LARGE:
            raise ServerError(
                f"{self}: takes no file as large as {path.name} ({status.st_size >> 20} MiB). Start that ComfyUI with "
                "a larger --max-upload-size (MB), or use a smaller file."
            )
        given = [found.get(part) for part in ("subfolder", "name")] if isinstance(found, dict) else []
        if not all(isinstance(part, str) for part in given) or not (given and given[1]):
            raise ServerError(f"{self}: took {path.name} and did not say what it is called there.")
        there = "/".join(part for part in given if part)
        with self._lock:
            self._uploaded[key] = there
        return there

    @contextmanager
    def view(self, filename: str, subfolder: str) -> Iterator[http.client.HTTPResponse]:
        """Yield the response with an output file.

        Raises:
            RetryableError: it broke off, at any time until the block ends.
        """
        query = {"filename": filename, "subfolder": subfolder, "type": "output"}
        with self._open("/view", query) as response:
            yield response

    # Requests

    def _json(self, route: str, attempts: int = len(PAUSES) + 1) -> Any:
        return self._retried(lambda: self._once(route), attempts=attempts)[1]

    def _ask(
        self,
        route: str,
        query: dict[str, str] | None = None,
        *,
        body: bytes | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Return the object that a single attempt gives; empty where the server has no such route, job or answer."""
        accepted = (http.client.BAD_REQUEST, http.client.NOT_FOUND, http.client.METHOD_NOT_ALLOWED)
        status, found = self._retried(
            lambda: self._once(route, query=query, body=body, timeout=timeout), accepted=accepted, attempts=1
        )
        return found if status == http.client.OK and isinstance(found, dict) else {}

    def _retried(
        self, attempt: Callable[[], tuple[int, Any]], accepted: tuple[int, ...] = (), attempts: int = len(PAUSES) + 1
    ) -> tuple[int, Any]:
        """Return status and answer; statuses besides 200 and those accepted are errors."""
        try:
            status, found = retry(attempt, RetryPolicy(timeout=TIMEOUT, pauses=PAUSES[: attempts - 1]), str(self))
        except RetryableError as error:
            raise self.unreachable(error) from error
        except PiyingError as error:
            raise ServerError(f"{self}: {error}") from error
        if status == http.client.OK or status in accepted:
            return status, found
        raise ServerError(f"{self} {self._reason(status, found)}")

    def unreachable(self, error: RetryableError) -> ServerError:
        """Return the error for a request that came to nothing."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConnectionRefusedError):
            cause = cause.__cause__
        if cause is not None:
            return ServerError(f"{self}: nothing listens there. Start ComfyUI, or check the address.", True)
        return ServerError(f"{self}: cannot be used now ({clipped(str(error), REASON)}).")

    def _reason(self, status: int, found: Any) -> str:
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            return (
                f"asks for credentials, or does not take these (HTTP {status}). Set {AUTHORIZATION} to the header "
                "that it wants, or write USER:PASSWORD@ before the host."
            )
        if 300 <= status < 400:
            return f"redirects to {found or 'another address'}, which is not followed. Give --server that address."
        return f"answered with HTTP {status} ({clipped(str(found), REASON)}). Is it a ComfyUI?"

    def _once(
        self,
        route: str,
        *,
        query: dict[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        seconds: float = 0.0,
    ) -> tuple[int, Any]:
        """Return status and decoded answer of a request; of a redirect, where to.

        Raises:
            RetryableError: a second attempt may give more.
            HttpError: none would.
        """
        with self._open(
            route, query, body=body, headers=headers, timeout=timeout or TIMEOUT, seconds=seconds
        ) as response:
            status = response.status
            data = b"".join(read_limited(response, LARGEST_JSON, seconds=4 * (timeout or TIMEOUT)))
            if status in TRANSIENT_STATUSES:
                raise RetryableError(f"HTTP {status}", retry_after(response.headers))
            if 300 <= status < 400:
                return status, without_query(response.getheader("Location") or "")
        try:
            return status, json.loads(data) if data else {}
        except (ValueError, RecursionError) as error:
            if status != http.client.OK:
                return status, " ".join(data.decode("utf-8", "replace").split())
            raise RetryableError(f"its answer to {route} is no JSON") from error

    @contextmanager
    def _open(
        self,
        route: str,
        query: dict[str, str] | None = None,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        seconds: float = 0.0,
    ) -> Iterator[http.client.HTTPResponse]:
        given = {"Content-Type": "application/json", **(headers or {})} if body is not None else {}
        if self.address.authorization is not None:
            given["Authorization"] = self.address.authorization
        request = Request(self.address.to(route, query), given, body, seconds=seconds)
        with CLIENT.open(request, timeout or TIMEOUT) as response:
            coding = response.getheader("Content-Encoding") or "identity"
            if coding != "identity":
                raise HttpError(f"answered in {coding!r}, and was asked for no compression. Switch it off.")
            yield response


class JobRefused(Exception):
    """A server does not take a job; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _refusal(found: Any) -> Refusal:
    """Return what an answer to /prompt has against nodes, whatever form it has."""
    answer = _table(found)
    error = answer.get("error")
    texts = [error.get("message"), error.get("details")] if isinstance(error, dict) else [error]
    message = ": ".join(str(text) for text in dict.fromkeys(texts) if text)
    nodes = {
        str(node): [each for each in _table(entry).get("errors") or [] if isinstance(each, dict)]
        for node, entry in _table(answer.get("node_errors")).items()
        if isinstance(_table(entry).get("errors"), list)
    }
    return Refusal(clipped(message, REASON), nodes)


def _ended(entry: dict[str, Any]) -> JobState:
    """Return the state of an entry of /history."""
    status, outputs = _table(entry.get("status")), _table(entry.get("outputs"))
    if status.get("status_str") != "error":
        return JobState("done", outputs)
    messages = status.get("messages")
    told = {
        each[0]: _table(each[1])
        for each in (messages if isinstance(messages, list) else [])
        if isinstance(each, list) and len(each) == 2 and isinstance(each[0], str)
    }
    if "execution_interrupted" in told:
        return JobState("stopped", outputs)
    return JobState("failed", outputs, told.get("execution_error", {}))


def _is_among(job: str, items: Any) -> bool:
    """Return whether a queue has a job; its items begin with a number and the id."""
    return isinstance(items, list) and any(isinstance(each, list) and job in each[1:2] for each in items)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _file_body(first: bytes, path: Path, size: int, last: bytes) -> Iterator[bytes]:
    """Yield a file between two texts; one that changes its size meanwhile breaks the request off."""
    yield first
    left = size
    with path.open("rb") as file:
        while left and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
    if left:
        raise OSError(f"{path} became shorter while it was read")
    yield last
