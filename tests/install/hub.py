"""A server that stands in for Hugging Face or ModelScope, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Served:
    """A file, and how it is given.

    Attributes:
        data: its bytes.
        etag: None sends none.
        ranges, if_range: whether these two headers are understood.
        cuts: for each answer in turn, after how many bytes of it the connection ends.
        stalls: for each answer in turn, after how many bytes nothing more comes.
        statuses: for each answer in turn, a status in place of the file; 0 is the file.
        always: a status for every answer.
        redirect, redirect_status: where to go instead, and with which status.
        claimed: a Content-Length that is not true; -1 sends none.
        token: what a client has to show.
        sha256: what listings say; None where they do not know it.
        encoding: a Content-Encoding.
        xet: the hash of the same bytes in Xet storage, which HEAD tells.
    """

    data: bytes
    etag: str | None = '"1"'
    ranges: bool = True
    if_range: bool = True
    cuts: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    always: int = 0
    redirect: str = ""
    redirect_status: int = 302
    claimed: int | None = None
    token: str = ""
    sha256: str | None = ""
    xet: str = ""
    encoding: str = ""

    def listed_hash(self) -> str | None:
        return hashlib.sha256(self.data).hexdigest() if self.sha256 == "" else self.sha256


@dataclass
class Asked:
    """A request that came: its path and its headers, in lower case."""

    path: str
    headers: dict[str, str]
    method: str = "GET"


class Hub:
    """A running server, its files by path, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self.xet_store = self.xet_route = ""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, path: str, data: bytes, **how: object) -> Served:
        self.files[path] = Served(data, **how)  # type: ignore[arg-type]
        return self.files[path]

    def asked_for(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    def listing(self, path: str, query: dict[str, list[str]]) -> object | None:
        """Answer as the APIs of the two hubs do."""
        if match := re.fullmatch(r"/api/models/(.+)/revision/(\w+)", path):
            files = self._below(f"/{match[1]}/resolve/{match[2]}/")
            return (
                {
                    "id": match[1],
                    "sha": "c0ffee",
                    "siblings": [hugging_face_entry(name, file) for name, file in files.items()],
                }
                if files
                else None
            )
        if match := re.fullmatch(r"/api/v1/models/(.+)/repo/files", path):
            files = self._below(f"/models/{match[1]}/resolve/{query['Revision'][0]}/")
            entries = [model_scope_entry(name, file) for name, file in files.items()]
            return {"Code": 200, "Data": {"Files": [{"Type": "tree", "Path": "vae"}, *entries]}} if files else None
        return None

    def _below(self, prefix: str) -> dict[str, Served]:
        return {path.removeprefix(prefix): file for path, file in self.files.items() if path.startswith(prefix)}

    def answer(self, path: str, query: str) -> Served | bytes | None:
        """Return what is at an address: a file, a listing, the front page, or nothing."""
        if path in self.files:
            return self.files[path]
        if path == "/xet-token":
            return json.dumps({"accessToken": "toy", "exp": 2**32, "casUrl": self.xet_store}).encode()
        listing = self.listing(path, parse_qs(query))
        if listing is not None:
            return json.dumps(listing).encode()
        return b"welcome" if path == "/" else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.close_connection = True
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(path, headers, self.command))
        answer = self.hub.answer(path, parts.query)
        if isinstance(answer, Served):
            self.give(answer)
        else:
            self.send(404 if answer is None else 200, answer or b"no such thing")

    def do_HEAD(self) -> None:
        """Tell of a file as Hugging Face does, without giving its bytes."""
        self.do_GET()

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def give(self, served: Served) -> None:
        status = served.always or (served.statuses.pop(0) if served.statuses else 0)
        if served.token and self.headers.get("Authorization") != f"Bearer {served.token}":
            status = 401
        if served.redirect:
            self.send(served.redirect_status, b"", Location=served.redirect)
        elif status:
            self.send(status, b"<html>sorry</html>", Retry_After="0")
        elif self.command == "HEAD":
            route = self.hub.xet_route or f"{self.hub.url}/xet-token"
            xet = {"X_Xet_Hash": served.xet, "X_Xet_Refresh_Route": route} if served.xet else {}
            etag = {"ETag": served.etag} if served.etag else {}
            self.send(200, served.data, X_Repo_Commit="c0ffee", **etag, **xet)
        else:
            self.pour(served, self.start_of(served))

    def start_of(self, served: Served) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = not served.if_range or self.headers.get("If-Range") in (None, served.etag)
        return int(match[1]) if match and served.ranges and same else 0

    def pour(self, served: Served, start: int) -> None:
        size = len(served.data)
        if start >= size and start:
            self.send(416, b"", Content_Range=f"bytes */{size}")
            return
        body = served.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if served.claimed != -1:
            self.send_header("Content-Length", str(len(body) if served.claimed is None else served.claimed))
        if served.etag:
            self.send_header("ETag", served.etag)
        if served.encoding:
            self.send_header("Content-Encoding", served.encoding)
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else len(body)
        stall = served.stalls.pop(0) if served.stalls else None
        self.wfile.write(body[: cut if stall is None else stall])
        if stall is not None:
            self.wfile.flush()
            self.hub.released.wait(10)

    def log_message(self, *arguments: object) -> None:
        pass


def hugging_face_entry(name: str, file: Served) -> dict[str, object]:
    sha256 = file.listed_hash()
    lfs = {"lfs": {"sha256": sha256, "size": len(file.data), "pointerSize": 135}} if sha256 else {}
    return {"rfilename": name, "size": len(file.data), "blobId": "0" * 40, **lfs}


def model_scope_entry(name: str, file: Served) -> dict[str, object]:
    return {"Type": "blob", "Path": name, "Size": len(file.data), "Sha256": file.listed_hash() or ""}


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()
