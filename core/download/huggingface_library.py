"""Hugging Face through huggingface_hub: its endpoint, login, listings and metadata, and its Xet storage.

Bytes come from Xet in order, or over our own HTTP client, as listings do: it follows no redirect into a private
network. The library's own `hf_hub_download` deletes what it has of a file when it is stopped, compares no checksum,
and cannot be cancelled while Xet is at work: a download of 17 GB would restart from zero each time.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..http import RetryableError, RetryPolicy, certificate_error, same_origin
from .hubs import HubFile, HuggingFace
from .manifest import Source
from .partial_file import PartialFile
from .transfer import Body, DownloadRefused, RemoteFile, open_http, status_error

LIBRARY = "piying"
POLL_SECONDS = 0.1  # until Ctrl-C or a cancel is seen while nothing comes
CHUNKS_AHEAD = 16  # that Xet may have ready, of some hundred kB each

# Its errors descend from those of the HTTP library below it, which differs from version to version.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_INVALID_URL: type[Exception] = getattr(
    importlib.import_module(_HTTP_ERROR.__module__.partition(".")[0]), "InvalidURL", ValueError
)


class HuggingFaceLibrary(HuggingFace):
    """huggingface.co, or what HF_ENDPOINT names, as huggingface_hub is set up to reach it."""

    def __init__(self) -> None:
        self.endpoint = constants.ENDPOINT.rstrip("/")
        self.token = get_token()
        self._xet_failed = False

    def remote(self, source: Source, file: HubFile) -> RemoteFile:
        """Return where a file of a repository is."""
        return replace(super().remote(source, file), opener=self._open)

    def listing(self, source: Source, policy: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; git LFS keeps a sha256 of the large ones."""
        _check_online(f"{self.endpoint}/{source.repo}")
        return super().listing(source, policy)

    @contextlib.contextmanager
    def _open(self, remote: RemoteFile, part: PartialFile, timeout: float) -> Iterator[Body]:
        """Yield the rest of a partial file."""
        _check_online(remote.place)
        # Nothing says which version Xet has but the checksum, which is why one has to be known.
        if remote.sha256 and not self._xet_failed and _has_xet():
            with _library_errors(remote):
                found = get_hf_file_metadata(
                    remote.url, token=self.token or False, timeout=timeout, library_name=LIBRARY
                )
            if found.xet_file_data and found.size is not None:
                chunks = self._xet_chunks(found.xet_file_data, found.size, part.size, timeout)
                with contextlib.closing(chunks):
                    yield Body(part.size, found.size, None, chunks)
                return
        with open_http(remote, part, timeout) as body:
            yield body

    def _xet_chunks(self, file: Any, size: int, start: int, timeout: float) -> Generator[bytes, None, None]:
        """Yield the bytes of a file from `start` on; after a failure the next attempt goes over HTTP."""
        from hf_xet import XetFileInfo, XetSession

        if start >= size:
            return
        may_know = bool(self.token) and same_origin(file.refresh_route, self.endpoint)
        headers = {"authorization": f"Bearer {self.token}"} if may_know else {}

        def open_stream() -> Any:
            group = XetSession().new_download_stream_group(
                token_refresh_url=file.refresh_route, token_refresh_headers=headers
            )
            return group.download_stream(XetFileInfo(file.file_hash, size), start=start)

        try:
            yield from _XetReader(open_stream).chunks(timeout)
        except (OSError, RuntimeError, ValueError) as error:
            self._xet_failed = True
            raise RetryableError(f"Xet: {' '.join(str(error).split())}") from error


class _XetReader:
    """Opens and reads a stream of Xet in a thread: no signal reaches Python while Xet waits for a server."""

    def __init__(self, open_stream: Callable[[], Any]) -> None:
        self._open_stream = open_stream
        self._stream: Any = None
        self._chunks: queue.Queue[bytes | Exception | None] = queue.Queue(CHUNKS_AHEAD)
        self._stopped = threading.Event()

    def chunks(self, timeout: float) -> Iterator[bytes]:
        """Yield the bytes; raises what the stream raises, and TimeoutError where nothing comes for so many seconds."""
        threading.Thread(target=self._read, name="piying-xet", daemon=True).start()
        deadline = time.monotonic() + timeout
        try:
            while time.monotonic() < deadline:
                try:
                    item = self._chunks.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
                deadline = time.monotonic() + timeout
            raise TimeoutError("timed out")
        finally:
            self._stopped.set()
            if self._stream is not None:
                self._stream.cancel()

    def _read(self) -> None:
        try:
            self._stream = self._open_stream()
            for chunk in self._stream:
                self._put(chunk)
                if self._stopped.is_set():
                    return
            self._put(None)
        except (OSError, RuntimeError, ValueError) as error:
            self._put(error)

    def _put(self, item: bytes | Exception | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._chunks.put(item, timeout=POLL_SECONDS)
                break


def _check_online(place: str) -> None:
    """Accept the library's settings where they let the hub be asked; raises DownloadRefused."""
    if constants.HF_HUB_OFFLINE:
        raise DownloadRefused(
            f"{place} is not asked for: HF_HUB_OFFLINE is set. Unset it, or choose --source modelscope."
        )


def _has_xet() -> bool:
    if constants.HF_HUB_DISABLE_XET:
        return False
    try:
        from hf_xet import XetSession
    except ImportError:
        return False
    return hasattr(XetSession, "new_download_stream_group")


@contextlib.contextmanager
def _library_errors(remote: RemoteFile) -> Iterator[None]:
    """Turn what the library raises into a sentence, or into a `RetryableError`."""
    try:
        yield
    except HfHubHTTPError as error:
        raise status_error(error.response.status_code, error.response.headers, remote) from error
    except (_INVALID_URL, ValueError) as error:
        raise DownloadRefused(
            f"{remote.place} is or redirects to an address that cannot be read ({error})."
        ) from error
    except (OSError, _HTTP_ERROR) as error:
        untrusted = certificate_error(error, remote.url)
        if untrusted is not None:
            raise untrusted from error
        raise RetryableError(" ".join(str(error).split()) or type(error).__name__) from error
