"""A server of jobs in a process of its own, for the benchmarks of the queue."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from machine import ROOT, load_pack

SECONDS = 300.0  # for a start on a busy machine
PICTURE = {
    "1": {"class_type": "PiyingSampleImage", "inputs": {"sample": "first frame"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
}


class QueueServer:
    """`python -m runner serve`, started in a folder.

    Attributes:
        client: a client of it.
    """

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        load_pack()
        self.folder = folder
        places = ("--output", folder / "results", "--state", folder / "state", "--port", port)
        command = [sys.executable, "-m", "runner", "serve", *map(str, places), *arguments]
        self._log = (folder / "log").open("ab")
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=self._log)
        self.client = importlib.import_module("piying.serve.client").Client(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + SECONDS
        while not (found := self.health()) or not found["workers"]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not start: {(folder / 'log').read_text()}")
            time.sleep(0.5)

    def health(self) -> dict[str, Any]:
        """Return what the server says of itself; nothing while it cannot be reached."""
        try:
            with urllib.request.urlopen(f"{self.client.url}/health", timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
        except OSError:
            return {}
        return found

    def jobs(self, batch: str) -> list[dict[str, Any]]:
        """Return the jobs of a batch."""
        found: list[dict[str, Any]] = self.client.get(f"/jobs?limit=1000&batch={batch}")
        return found

    def end(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(120)
        self._log.close()


def processes(name: str) -> list[Any]:
    """Return the processes of this machine whose command line has a text in it, by their age."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if name in " ".join(process.info["cmdline"] or ()):
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])
