"""Hosts with a cache folder of their own, folders of toy models, and a server with scripted answers."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.family import PROMPT
from piying.core.prompting.server import ServerHandle


@pytest.fixture
def host(tmp_path):
    return HeadlessHost(chosen_device="cpu", cache=tmp_path / "cache")


@pytest.fixture
def built_in():
    return ModelHandle(PROMPT, "built-in")


@pytest.fixture
def models(tmp_path):
    """A models folder with the toy prompt model under the name of a real one."""
    shutil.copytree(BUILT_IN_ROOT / "prompt", tmp_path / "models" / "LLM" / "Qwen3-0.6B")
    return tmp_path / "models"


class Handler(BaseHTTPRequestHandler):
    """Records the request, then answers as the server's script says."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        with contextlib.suppress(OSError):  # the other side may have hung up
            self.server.behave(self, len(self.server.requests))
        self.close_connection = True

    def begin(self, kind="text/event-stream", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def event(self, text, reason=None):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

    def log_message(self, *arguments):
        pass


class FakeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server on this machine."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.behave = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, *texts):
        """Answer the requests with these texts in turn, the last one over and over, a word at a time."""

        def behave(handler, number):
            handler.begin()
            for piece in texts[min(number, len(texts)) - 1].split(" "):
                handler.event(f"{piece} ")
            handler.event("", "stop")
            handler.wfile.write(b"data: [DONE]\n\n")

        self.behave = behave

    def handle(self, **options):
        return ServerHandle(self.url, "toy", **{"timeout": 20, **options})


@pytest.fixture
def server():
    fake = FakeServer()
    threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield fake
    fake.shutdown()
    fake.server_close()
