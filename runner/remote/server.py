"""Client of one ComfyUI server: its routes, and how much of an answer is read."""

from __future__ import annotations

import http.client
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import PiyingError, clipped, explain_os_errors
from ...core.http import (
    TRANSIENT_STATUSES,
    HttpClient,
    HttpError,
    Request,
    RetryableError,
    RetryPolicy,
    fast_enough,
    read_limited,
    retry,
    retry_after,
    without_query,
)
from ...core.media.naming import writing
from ..definitions import ObjectInfo, checked_object_info
from ..errors import WorkflowError
from . import timeouts
from .address import AUTHORIZATION, ServerAddress
from .answers import (
    JOB_STATES,
    REASON,
    FileProblem,
    JobRefused,
    JobState,
    OutputFile,
    Refusal,
    ended_state,
    listed,
    read_refusal,
    table,
)

# No proxy of the system sees what is sent, and no redirect takes it elsewhere.
CLIENT = HttpClient(redirects=False, proxies=False, plain_http=True)
LARGEST_JSON = 64 << 20  # bytes; /object_info of a ComfyUI with hundreds of packs has 20 MiB
CHUNK = 1 << 20
LARGEST_FILE = 4 << 30  # bytes
LONGEST_ID = 100


class ServerError(Exception):
    """A server cannot be reached, or does not answer as a ComfyUI does; the text is a sentence that names it.

    Attributes:
        is_refused: nothing listens at its address.
    """

    def __init__(self, text: str, is_refused: bool = False) -> None:
        super().__init__(text)
        self.is_refused = is_refused


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
        count = table(table(self._json("/prompt")).get("exec_info")).get("queue_remaining")
        if not isinstance(count, int):
            raise ServerError(f"{self}: does not say how long its queue is. Is it a ComfyUI?")
        return count

    def before(self, job: str) -> int:
        """Return how many jobs run or wait before one; 0 too where the server does not say."""
        if self._has_jobs:
            jobs = self._ask("/api/jobs", {"status": "pending,in_progress"}).get("jobs")
            items = [[table(each).get("priority"), table(each).get("id")] for each in listed(jobs)]
        else:
            found = self._ask("/queue")
            items = [each for name in ("queue_running", "queue_pending") for each in listed(found.get(name))]
        # [number, id, …]: a smaller number is before a larger one, whatever their order here.
        known = [each for each in map(listed, items) if len(each) > 1 and isinstance(each[0], int | float)]
        own = next((each[0] for each in known if each[1] == job), None)
        return 0 if own is None else sum(each[0] < own for each in known)

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
        refusal = read_refusal(found)
        if status == http.client.BAD_REQUEST:
            raise JobRefused(refusal)
        # Older servers choose the id themselves.
        given = table(found).get("prompt_id")
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
                JOB_STATES.get(str(found.get("status")), "absent"),
                table(found.get("outputs")),
                table(found.get("execution_error")),
            )
        entry = self._ask(f"/history/{job}").get(job)
        if isinstance(entry, dict):
            return ended_state(entry)
        queues = self._ask("/queue")
        if _is_among(job, queues.get("queue_running")):
            return JobState("running")
        return JobState("pending" if _is_among(job, queues.get("queue_pending")) else "absent")

    def cancel(self, job: str) -> None:
        """Take a job out of the queue, or interrupt it where it runs; other jobs are left alone."""
        if self._has_jobs and "cancelled" in self._ask(f"/api/jobs/{job}/cancel", body=b"{}", timeout=timeouts.CANCEL):
            return
        self._ask("/queue", body=json.dumps({"delete": [job]}).encode(), timeout=timeouts.CANCEL)
        # Older servers do not look at the id, and interrupt whatever runs.
        if _is_among(job, self._ask("/queue", timeout=timeouts.CANCEL).get("queue_running")):
            self._ask("/interrupt", body=json.dumps({"prompt_id": job}).encode(), timeout=timeouts.CANCEL)

    def watch(self, client: str) -> None:
        """Have Piying's nodes there send the phases of their work to a client; other servers have no such route."""
        self._ask("/piying/watch", body=json.dumps({"client": client, "moving": False, "page": False}).encode())

    def upload(self, path: Path, name: str) -> str:
        """Put a file into the input folder, and return the name that it has there.

        A file of that name and another content stays, and the new one is called otherwise; that is the server's doing.

        Args:
            name: with its subfolders.
        """
        with explain_os_errors(f"{path} cannot be read"):
            status = path.stat()
        key = (str(path), name, status.st_size, status.st_mtime_ns)
        with self._lock:
            known = self._uploaded.get(key)
        if known is not None and self._has_input(known, status.st_size):
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
                    seconds=status.st_size / timeouts.SLOWEST_UPLOAD,
                )
            except RetryableError as error:
                raise RetryableError(f"while {path.name} was uploaded ({size >> 20} MiB): {error}") from error

        code, found = self._retried(attempt, accepted=(http.client.REQUEST_ENTITY_TOO_LARGE,))
        if code == http.client.REQUEST_ENTITY_TOO_LARGE:
            raise ServerError(
                f"{self}: takes no file as large as {path.name} ({status.st_size >> 20} MiB). Start that ComfyUI with "
                "a larger --max-upload-size (MB), or use a smaller file."
            )
        given = [table(found).get(part) for part in ("subfolder", "name")]
        if not all(isinstance(part, str) for part in given) or not given[1]:
            raise ServerError(f"{self}: took {path.name} and did not say what it is called there.")
        there = "/".join(part for part in given if part)
        with self._lock:
            self._uploaded[key] = there
        return there

    def _has_input(self, name: str, size: int) -> bool:
        """Return whether a file that was uploaded is still there; somebody may tidy the folder up."""
        subfolder, _, plain = name.rpartition("/")
        query = {"filename": plain, "subfolder": subfolder, "type": "input"}
        try:
            with self._open("/view", query) as response:
                return response.status == http.client.OK and response.getheader("Content-Length") == str(size)
        except (RetryableError, HttpError):
            return False

    def fetch(self, file: OutputFile, folder: Path) -> Path:
        """Fetch an output file into a folder, numbered as the files of a run here, and return its path.

        It comes whole, or nothing of it is left.

        Raises:
            FileProblem: it cannot be had.
            PiyingError: the folder cannot be written.
        """
        place = file.place()
        try:
            return retry(lambda: self._fetch(file, folder, place), RetryPolicy(pauses=timeouts.PAUSES), str(self))
        except RetryableError as error:
            raise self._unreachable(error) from error
        except HttpError as error:
            raise FileProblem(f"the server {str(error).rstrip('.')}") from error

    def _fetch(self, file: OutputFile, folder: Path, place: tuple[str, str]) -> Path:
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": "output"}
        doing = f"Cannot save {file} in {folder}"
        with writing(folder, *place) as output, output.path.open("wb") as unfinished:
            with self._open("/view", query) as response:
                if response.status in TRANSIENT_STATUSES:
                    raise RetryableError(f"HTTP {response.status}")
                if response.status != http.client.OK:
                    raise FileProblem(f"the server answered with HTTP {response.status}")
                expected, size = _expected_size(response), 0
                for chunk in fast_enough(read_limited(response, LARGEST_FILE), timeouts.SILENCE):
                    with explain_os_errors(doing):
                        unfinished.write(chunk)
                    size += len(chunk)
                if size != expected:
                    raise RetryableError(f"{file} ended after {size} of {expected} bytes")
            with explain_os_errors(doing):
                unfinished.close()  # what is still in its buffer may not fit the disk
        return output.path

    # Requests

    def _json(self, route: str) -> Any:
        return self._retried(lambda: self._once(route), pauses=timeouts.PAUSES[:1])[1]

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
            lambda: self._once(route, query=query, body=body, timeout=timeout), accepted=accepted, pauses=()
        )
        return found if status == http.client.OK and isinstance(found, dict) else {}

    def _retried(
        self,
        attempt: Callable[[], tuple[int, Any]],
        accepted: tuple[int, ...] = (),
        pauses: tuple[float, ...] | None = None,
    ) -> tuple[int, Any]:
        """Return status and answer; statuses besides 200 and those accepted are errors."""
        try:
            status, found = retry(
                attempt, RetryPolicy(pauses=timeouts.PAUSES if pauses is None else pauses), str(self)
            )
        except RetryableError as error:
            raise self._unreachable(error) from error
        except PiyingError as error:
            raise ServerError(f"{self}: {error}") from error
        if status == http.client.OK or status in accepted:
            return status, found
        raise ServerError(f"{self} {self._reason(status, found)}")

    def _unreachable(self, error: RetryableError) -> ServerError:
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
        with self._open(route, query, body=body, headers=headers, timeout=timeout, seconds=seconds) as response:
            status = response.status
            data = b"".join(read_limited(response, LARGEST_JSON, seconds=4 * (timeout or timeouts.SILENCE)))
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
        with CLIENT.open(request, timeout or timeouts.SILENCE) as response:
            coding = response.getheader("Content-Encoding") or "identity"
            if coding != "identity":
                raise HttpError(f"answered in {coding!r}, and was asked for no compression. Switch it off.")
            yield response


def _expected_size(response: http.client.HTTPResponse) -> int:
    text = response.getheader("Content-Length") or ""
    if not text.isascii() or not text.isdigit():
        raise FileProblem("the server does not say how large it is, so whether it is whole cannot be told")
    if int(text) > LARGEST_FILE:
        raise FileProblem(f"it has {int(text) >> 20} MiB; at most {LARGEST_FILE >> 20} MiB are fetched")
    return int(text)


def _is_among(job: str, items: Any) -> bool:
    """Return whether a queue has a job; its items begin with a number and the id."""
    return any(job in listed(each)[1:2] for each in listed(items))


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
