"""A real ComfyUI with this pack installed, on a loopback port and a base folder of its own."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from piying.tests.comfyui.base_folder import FOLDER, make_base


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def request_json(url: str, body: Any = None) -> Any:
    """Answers (status, parsed body); an error status is an answer too."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


class Server:
    """Start, use over HTTP, stop."""

    def __init__(self, checkout: Path, python: str, base: Path, *extra_args: str, folder: str = FOLDER) -> None:
        self.checkout, self.python, self.base, self.folder = checkout, python, base, folder
        self.extra_args = extra_args
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log_file = base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output_dir(self) -> Path:
        return self.base / "output"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def start(self, timeout: float = 180) -> Server:
        make_base(self.base, self.folder)
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.checkout,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )
        self._wait_until_up(time.monotonic() + timeout)
        return self

    def _command(self) -> list[str]:
        port = self.url.rsplit(":", 1)[1]
        database = f"sqlite:///{(self.base / 'comfyui.db').as_posix()}"
        return [
            self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", port, "--disable-auto-launch",
            "--base-directory", str(self.base), "--database-url", database, *self.extra_args,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        # Nothing of the real hub is asked; a test's own hub is named by HF_ENDPOINT.
        offline = "0" if "HF_ENDPOINT" in os.environ else "1"
        return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": offline}

    def _wait_until_up(self, deadline: float) -> None:
        while not self._is_up():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            return bool(request_json(f"{self.url}/object_info")[0] == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def object_info(self) -> dict[str, Any]:
        return dict(request_json(f"{self.url}/object_info")[1])

    def post(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None, client_id: str = "") -> Any:
        """Answers (status, body) of POST /prompt."""
        body = {"prompt": prompt, "extra_data": extra_data or {}, "client_id": client_id}
        return request_json(f"{self.url}/prompt", body)

    def run(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None, timeout: float = 600) -> Any:
        status, body = self.post(prompt, extra_data)
        assert status == 200, json.dumps(body, indent=1)
        return self.wait(body["prompt_id"], timeout)

    def wait(self, prompt_id: str, timeout: float = 600) -> Any:
        """The history entry of a prompt, once it has ended in whatever way."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = request_json(f"{self.url}/history/{prompt_id}")[1].get(prompt_id)
            if entry:
                return entry
            time.sleep(0.25)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout:g} s:\n{self.log[-4000:]}")

    def interrupt(self) -> None:
        request_json(f"{self.url}/interrupt", {})


def named_checkout() -> Path:
    """The ComfyUI that COMFYUI_PATH names; without one the test is skipped."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI checkout")
    return Path(path).resolve()


@contextmanager
def running_server(base: Path, *more: str, folder: str = FOLDER) -> Iterator[Server]:
    """The ComfyUI that COMFYUI_PATH names; without one the test is skipped.

    COMFYUI_ARGS holds further options for it, such as `--front-end-root` of another frontend.
    """
    checkout = named_checkout()
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    options = shlex.split(os.environ.get("COMFYUI_ARGS", ""))
    server = Server(checkout, python, base, *options, *more, folder=folder)
    try:
        yield server.start()
    finally:
        server.stop()
