"""A server that stands in for a ComfyUI, and misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Fault = Callable[["Handler"], None]
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def definitions(*images: str) -> dict[str, Any]:
    """Definitions of a few nodes, as /object_info has them; `images` are the files of the input folder."""

    def node(name: str, inputs: dict[str, Any], output: list[str], is_output: bool = False) -> dict[str, Any]:
        groups = {"required": inputs}
        return {
            "name": name,
            "display_name": name,
            "input": groups,
            "input_order": {"required": list(inputs)},
            "output": output,
            "output_name": output,
            "output_is_list": [False] * len(output),
            "output_node": is_output,
        }

    return {
        "LoadImage": node("LoadImage", {"image": [list(images), {"image_upload": True}]}, ["IMAGE", "MASK"]),
        "Foreign": node("Foreign", {"image": ["IMAGE"], "amount": ["INT", {"min": 0, "max": 9}]}, ["IMAGE"]),
        "SaveImage": node("SaveImage", {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}, [], is_output=True),
    }


def picture_workflow(image: str = "cat.png", amount: int = 1) -> dict[str, Any]:
    """A picture, a node of a pack that is not here, and a saver."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "Foreign", "inputs": {"image": ["1", 0], "amount": amount}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "a"}},
    }


def saved(filename: str, subfolder: str = "", kind: str = "output") -> dict[str, Any]:
    """What a node shows of a file that it saved."""
    return {"filename": filename, "subfolder": subfolder, "type": kind}


def failure(node: str, kind: str, text: str) -> dict[str, Any]:
    """The status of a history entry whose node raised."""
    data = {
        "node_id": node,
        "node_type": "Foreign",
        "exception_type": kind,
        "exception_message": text,
        "traceback": ["  File x\n"],
    }
    return {"status_str": "error", "completed": False, "messages": [["execution_error", data]]}


DONE = {"status_str": "success", "completed": True, "messages": []}


@dataclass
class FakeComfyUI:
    """Attributes that a test may set.

    Attributes:
        outputs, status: of every job, once it is over.
        seconds: that a job takes.
        files: the output folder, by "subfolder/filename".
        input: the input folder, by name.
        busy: jobs of others before the next one.
        events: sent to the client while its job runs; by default the end of one that takes no time.
        faults: by route, what to do in place of an answer; one after the other, the last one `forever` over and over.
        has_jobs: whether it has /api/jobs.
        refusal: status and body of the answer to /prompt, where it takes no job.
        node_errors: what it has against some outputs of a job that it takes.
        authorization: the header that it wants.
    """

    outputs: dict[str, Any] = field(default_factory=lambda: {"3": {"images": [saved("a_00007_.png")]}})
    status: dict[str, Any] = field(default_factory=lambda: DONE)
    seconds: float = 0.0
    files: dict[str, bytes] = field(default_factory=lambda: {"a_00007_.png": b"picture"})
    input: dict[str, bytes] = field(default_factory=dict)
    busy: int = 0
    events: list[tuple[str, dict[str, Any]] | bytes] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    forever: bool = False
    has_jobs: bool = False
    refusal: tuple[int, Any] | None = None
    node_errors: dict[str, Any] = field(default_factory=dict)
    authorization: str | None = None
    definitions: dict[str, Any] = field(default_factory=definitions)

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    sockets: dict[str, queue.Queue[Any]] = field(default_factory=dict)
    url: str = ""

    def is_over(self, job: str) -> bool:
        return job in self.jobs and time.monotonic() >= self.jobs[job]["begun"] + self.seconds

    def entry(self, job: str) -> dict[str, Any]:
        status = self.status
        if job in self.interrupted:
            status = {"status_str": "error", "completed": False, "messages": [["execution_interrupted", {}]]}
        return {"outputs": self.outputs, "status": status}

    def queues(self) -> dict[str, Any]:
        running = [[5, job, {}, {}, []] for job in self.jobs if not self.is_over(job)]
        others = [[number, f"other-{number}", {}, {}, []] for number in range(self.busy)]
        return {"queue_running": others or running, "queue_pending": running if others else []}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeComfyUI

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        route = url.path
        self.fake.asked.append(f"{self.command} {self.path}")
        body = self.sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        faults = self.fake.faults.get(route) or self.fake.faults.get(f"/{route.split('/')[1]}/*")
        if faults:
            fault = faults[0] if self.fake.forever else faults.pop(0)
            fault(self)
            return
        if self.fake.authorization is not None and self.headers.get("Authorization") != self.fake.authorization:
            self.json({"error": "who are you"}, 401)
            return
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        if route == "/ws":
            self._websocket(query["clientId"])
            return
        name = f"{self.command.lower()}_{re.sub(r'[^a-z]', '_', route.strip('/').split('/')[0])}"
        getattr(self, name, lambda *_: self.json({}, 404))(route, query, body)

    def json(self, value: Any, status: int = 200) -> None:
        self.bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def bytes(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # Routes

    def get_object_info(self, route: str, query: dict[str, str], body: bytes) -> None:
        self.json(self.fake.definitions)

    def get_prompt(self, route: str, query: dict[str, str], body: bytes) -> None:
        waiting = self.fake.busy + sum(not self.fake.is_over(job) for job in self.fake.jobs)
        self.json({"exec_info": {"queue_remaining": waiting}})

    def post_prompt(self, route: str, query: dict[str, str], body: bytes) -> None:
        if self.fake.refusal is not None:
            self.json(self.fake.refusal[1], self.fake.refusal[0])
            return
        sent = json.loads(body)
        job = sent["prompt_id"]
        self.fake.jobs[job] = {**sent, "begun": time.monotonic()}
        client = self.fake.sockets.get(sent["client_id"])
        events = self.fake.events or [("execution_success", {})][: self.fake.seconds == 0]
        for event in events if client is not None else ():
            client.put(event if isinstance(event, bytes) else (event[0], {"prompt_id": job, **event[1]}))
        self.json({"prompt_id": job, "number": 5, "node_errors": self.fake.node_errors})

    def get_history(self, route: str, query: dict[str, str], body: bytes) -> None:
        job = route.rpartition("/")[2]
        self.json({job: self.fake.entry(job)} if self.fake.is_over(job) else {})

    def get_queue(self, route: str, query: dict[str, str], body: bytes) -> None:
        self.json(self.fake.queues())

    def post_queue(self, route: str, query: dict[str, str], body: bytes) -> None:
        self.fake.deleted += json.loads(body)["delete"]
        self.bytes(b"")

    def post_interrupt(self, route: str, query: dict[str, str], body: bytes) -> None:
        self.fake.interrupted.append(json.loads(body)["prompt_id"])
        self.bytes(b"")

    def get_api(self, route: str, query: dict[str, str], body: bytes) -> None:
        job = route.rpartition("/")[2]
        if not self.fake.has_jobs or (job != "jobs" and job not in self.fake.jobs):
            self.json({"error": "Job not found"}, 404)
        elif job == "jobs":
            self.json({"jobs": [], "pagination": {}})
        elif not self.fake.is_over(job):
            self.json({"id": job, "status": "in_progress"})
        else:
            entry = self.fake.entry(job)
            error = next((data for kind, data in entry["status"]["messages"] if kind == "execution_error"), None)
            status = "completed" if entry["status"]["completed"] else "failed"
            self.json({"id": job, "status": status, "outputs": entry["outputs"], "execution_error": error})

    def post_api(self, route: str, query: dict[str, str], body: bytes) -> None:
        self.fake.interrupted.append(route.split("/")[3])
        self.json({"cancelled": True})

    def post_upload(self, route: str, query: dict[str, str], body: bytes) -> None:
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)[1:-1]]
        values = {
            re.search(rb' name="([^"]*)"', head)[1]: (head, data.removesuffix(b"\r\n")) for head, _, data in parts
        }
        head, data = values[b"image"]
        name, subfolder = re.search(rb'filename="([^"]*)"', head)[1].decode(), values[b"subfolder"][1].decode()
        stem, dot, suffix = name.rpartition(".")
        place, number = (f"{subfolder}/" if subfolder else ""), 1
        while self.fake.input.get(place + name, data) != data:
            name, number = f"{stem} ({number}){dot}{suffix}", number + 1
        self.fake.input[place + name] = data
        self.json({"name": name, "subfolder": subfolder, "type": "input"})

    def get_view(self, route: str, query: dict[str, str], body: bytes) -> None:
        files = self.fake.input if query["type"] == "input" else self.fake.files
        data = files.get("/".join(filter(None, [query["subfolder"], query["filename"]])))
        self.bytes(b"", 404) if data is None else self.bytes(data)

    def _websocket(self, client: str) -> None:
        accept = hashlib.sha1(f"{self.headers['Sec-WebSocket-Key']}{WEBSOCKET}".encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
        self.end_headers()
        events = self.fake.sockets[client] = queue.Queue()
        self.close_connection = True
        while (event := events.get()) is not None:
            text = isinstance(event, tuple)
            data = json.dumps({"type": event[0], "data": event[1]}).encode() if text else event
            size = len(data)
            length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
            self.wfile.write(bytes([0x81 if text else 0x82]) + length + data)


# Faults


def status(code: int, body: Any = None, **headers: str) -> Fault:
    """Answer with a status."""
    return lambda handler: handler.bytes(json.dumps(body or {}).encode(), code, headers)


def raw(data: bytes, claimed: int | None = None) -> Fault:
    """Answer with some bytes, and end the connection; `claimed` are the bytes that it says to send, -1 for none."""

    def fault(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        if claimed != -1:
            handler.send_header("Content-Length", str(len(data) if claimed is None else claimed))
        handler.end_headers()
        handler.wfile.write(data)

    return fault


def drop(handler: Handler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def hang(handler: Handler) -> None:
    """Give no answer for longer than anybody waits."""
    handler.close_connection = True
    handler.fake.hanging.wait(30)


@contextmanager
def fake_comfyui(**given: Any) -> Iterator[FakeComfyUI]:
    """A fake that listens, made of what is given."""
    fake = FakeComfyUI(**given)
    fake.hanging = threading.Event()
    handler = type("Bound", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def stop() -> None:
        """End as a process that is killed: nothing listens any more, and connections are cut."""
        fake.hanging.set()
        for events in fake.sockets.values():
            events.put(None)
        server.shutdown()
        server.server_close()

    fake.stop = stop
    try:
        yield fake
    finally:
        stop()
