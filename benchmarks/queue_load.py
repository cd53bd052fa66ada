"""Requests of many clients to a server of jobs on this machine: how many a second, how long each takes, what it holds.

python benchmarks/queue_load.py --out benchmarks/results/queue_load.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from machine import describe, load_pack, write_json
from queue_server import PICTURE, QueueServer, processes

IDLE = 1000


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[float, int, bytes]:
    """Return the seconds of a request, its status and the answer."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return time.perf_counter() - begun, answer.status, data


def load(port: int, seconds: float, clients: int, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    """Return what a number of clients get that send one request after the other."""
    times: list[float] = []
    statuses: set[int] = set()
    deadline = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < deadline:
            took, status, _ = request(port, method, path, body)
            times.append(took)
            statuses.add(status)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - begun
    times.sort()
    return {
        "clients": clients,
        "requests": len(times),
        "per_second": round(len(times) / spent, 1),
        "p50_ms": round(1000 * statistics.median(times), 1),
        "p99_ms": round(1000 * times[int(0.99 * (len(times) - 1))], 1),
        "statuses": sorted(statuses),
    }


def memory(pid: int) -> dict[str, int]:
    """Return the MB that the parts of the server hold."""
    import psutil

    names = {"queue": "ray::ServeReplica:piying", "proxy": "ray::ProxyActor", "worker": "ray::PiyingWorker"}
    found = {name: processes(text)[-1].memory_info().rss >> 20 for name, text in names.items()}
    return {"front": psutil.Process(pid).memory_info().rss >> 20, **found}


def main() -> None:
    """Run it, and write the figures."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--seconds", type=float, default=20.0, help="of each kind of request")
    parse.add_argument("--clients", type=int, default=8)
    parse.add_argument("--jobs", type=int, default=3000, help="jobs that run before memory is looked at again")
    parse.add_argument("--minutes", type=float, default=0.0, help="in which the jobs are sent, evenly; 0: at once")
    parse.add_argument("--port", type=int, default=8291)
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    load_pack()
    folder = Path(tempfile.mkdtemp(prefix="queue-load-"))
    most = ("--max-queued", "100000", "--per-minute", "1000000", "--keep", "500")
    server = QueueServer(folder, options.port, "--device", "cpu", *most)
    body = json.dumps({"workflow": PICTURE}).encode()
    job = json.loads(request(options.port, "POST", "/jobs", body)[2])["id"]
    found: dict[str, Any] = {
        "machine": describe("cpu"),
        "command": "python benchmarks/queue_load.py " + " ".join(sys.argv[1:]),
        "show a job": load(options.port, options.seconds, options.clients, "GET", f"/jobs/{job}"),
        "submit a job": load(options.port, options.seconds, options.clients, "POST", "/jobs", body),
    }
    idle = [socket.create_connection(("127.0.0.1", options.port)) for _ in range(IDLE)]
    found[f"show a job beside {IDLE} idle connections"] = load(
        options.port, options.seconds / 2, options.clients, "GET", f"/jobs/{job}"
    )
    for one in idle:
        one.close()
    too_large = b"0" * 100_000_000
    found["100 MB"] = request(options.port, "POST", "/jobs", too_large)[1]
    memories, done = [], 0
    begun = time.monotonic()
    jobs = [{"set": {"1.sample": ("first frame", "last frame")[number % 2]}} for number in range(100)]
    while done < options.jobs:
        time.sleep(max(0.0, begun + 60 * options.minutes * done / options.jobs - time.monotonic()))
        sent = server.client.submit("/batches", {"name": f"b{done}", "workflow": PICTURE, "jobs": jobs})
        while any(job["state"] in ("queued", "running") for job in server.jobs(f"b{done}")):
            time.sleep(0.2)
        done += len(sent)
        memories.append({"jobs": done, "seconds": round(time.monotonic() - begun, 1), **memory(server.process.pid)})
        print(memories[-1], flush=True)
    time.sleep(max(0.0, begun + 60 * options.minutes - time.monotonic()))
    memories.append({"jobs": done, "seconds": round(time.monotonic() - begun, 1), **memory(server.process.pid)})
    found["memory_mb"] = memories
    if not options.minutes:
        found["jobs_per_second"] = round(done / (time.monotonic() - begun), 1)
    server.end()
    print(json.dumps(found, indent=1))
    if options.out is not None:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
