"""`python -m runner serve` as its owner starts it, on a Ray cluster of this machine; processes are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from piying.core.media.video import read_frames
from piying.runner.session import Session

from .conftest import PICTURE

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0  # for a start on a busy machine
VIDEO = {"PiyingVACESample.steps": 2, "PiyingVACESample.num_frames": 5, "PiyingExpandPrompt.max_new_tokens": 4}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Serving:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        places = ("--output", folder / "results", "--state", folder / "state", "--port", self.port)
        command = [sys.executable, "-m", "runner", "serve", *map(str, places), *arguments]
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log)
        self.children: list[psutil.Process] = []
        self.until(lambda: self.ask("/health")["workers"] > 0)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def ask(self, path: str, body: object = None) -> object:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def until(self, is_so, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                if is_so():
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if one.is_running() and "PiyingWorker" in " ".join(one.cmdline())]

    def states(self) -> list[str]:
        return [job["state"] for job in self.ask("/jobs?limit=1000")]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        code = self.process.wait(60)
        # Ray's agents notice only after a while that their server is gone.
        _, alive = psutil.wait_procs(self.children, 5)
        for one in alive:
            one.kill()
        return code


@contextmanager
def serving(folder, *arguments):
    server = Serving(folder, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()
        server.log.close()


def test_no_job_is_lost_when_workers_and_the_server_are_killed(tmp_path):
    with serving(tmp_path, "--retries", "5") as server:
        rows = [{"seed": seed, "set": VIDEO} for seed in range(4)]
        jobs = server.ask("/batches", {"name": "b", "workflow": "t2v", "jobs": rows})
        server.until(lambda: "running" in server.states())
        for worker in server.workers():
            worker.kill()
        server.until(lambda: server.states().count("done") >= 1)
        server.until(lambda: "running" in server.states())
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with serving(tmp_path) as server:
        server.until(lambda: set(server.states()) == {"done"})
        found = {job["id"]: job for job in server.ask("/jobs")}
        assert found.keys() == {job["id"] for job in jobs}
        assert max(job["lost"] for job in found.values()) == 1
        text = urllib.request.urlopen(server.url + "/metrics").read().decode()
        assert re.search(r"^piying_workers\{state=\"idle\"\} 1.0$", text, re.MULTILINE)
        assert server.end() == 130
    folders = {path.name for path in (tmp_path / "results").iterdir()} - {".unfinished"}
    assert folders == found.keys()
    audited = [json.loads(line)["job"] for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert sorted(audited) == sorted(found)
    checksums = {job["seed"]: found[one["id"]]["files"][0]["sha256"] for job, one in zip(rows, jobs, strict=True)}
    assert len(set(checksums.values())) == 4


def test_only_who_has_a_token_gets_in(tmp_path, monkeypatch):
    monkeypatch.setenv("PIYING_TOKEN", "0123456789abcdef")
    with serving(tmp_path) as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.ask("/jobs", {"workflow": PICTURE})
        picture = tmp_path / "picture.json"
        picture.write_text(json.dumps(PICTURE))
        command = [sys.executable, "-m", "runner", "submit", picture, "--to", server.url, "--wait"]
        done = subprocess.run([*command, "--output", tmp_path / "o"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and (tmp_path / "o" / "a_00001_.png").is_file(), done.stderr
        monkeypatch.delenv("PIYING_TOKEN")
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 2 and "Authorization: Bearer TOKEN" in refused.stderr
    assert "0123456789abcdef" not in (tmp_path / "log").read_text() + (tmp_path / "state" / "log.jsonl").read_text()


def test_another_worker_goes_on_with_a_long_video(tmp_path):
    """With the cache in a folder that the machines share; the video is the one that is made without a break."""
    long_video = {"PiyingVACELongVideo.steps": 4, "PiyingVACEExtend.num_frames": 53}
    with serving(tmp_path, "--cache", str(tmp_path / "cache")) as server:
        job = server.ask("/jobs", {"workflow": "long_video", "set": long_video})["id"]
        events = urllib.request.urlopen(f"{server.url}/jobs/{job}/events", timeout=SECONDS)
        assert any(b"window 3 of 4" in line for line in events)
        for worker in server.workers():
            worker.kill()
        # The second one goes to disk while the third is made, and may not be there yet.
        assert any(re.search(rb"[12] finished windows are kept from a run before", line) for line in events)
        server.until(lambda: server.states() == ["done"])
        assert server.ask(f"/jobs/{job}")["lost"] == 1
    (broken,) = (tmp_path / "results" / job / "video").iterdir()
    Session(output=tmp_path / "alone", device="cpu").run(ROOT / "workflows" / "long_video.json", set=long_video)
    (whole,) = (tmp_path / "alone" / "video").iterdir()
    assert np.array_equal(list(read_frames(broken)), list(read_frames(whole)))


def test_each_card_of_a_machine_has_a_worker_that_sees_it_alone(tmp_path):
    """Ray is told of two cards that are not there: which one a worker may use is told to it in the same way."""
    import ray
    from piying.serve.pool import WorkerReady
    from piying.serve.ray_pool import RayPool
    from piying.serve.settings import Folders

    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    pool = RayPool(Folders(str(tmp_path), (), str(tmp_path / "results")), {"device": "cpu"})
    try:
        ready, deadline = [], time.monotonic() + SECONDS
        while len(ready) < 2:
            ready += [report for report in pool.poll(1.0) if isinstance(report, WorkerReady)]
            assert time.monotonic() < deadline
        assert not pool.poll(3.0), "no third one"
        actors = [actor.handle for actor in pool._actors.values()]
        cards = [actor.__ray_call__.remote(lambda self: os.environ["CUDA_VISIBLE_DEVICES"]) for actor in actors]
        assert sorted(ray.get(cards)) == ["0", "1"]
    finally:
        pool.close()
        ray.shutdown()


def test_a_server_that_was_killed_is_followed_by_another_on_a_cluster_that_lives_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with serving(tmp_path, "--ray", cluster.address) as first:
            rows = [{"seed": seed, "set": VIDEO} for seed in range(3)]
            jobs = first.ask("/batches", {"name": "b", "workflow": "t2v", "jobs": rows})
            with pytest.raises(AssertionError, match=f"has a server already, the process {first.process.pid}"):
                Serving(tmp_path, "--ray", cluster.address)
            first.until(lambda: "running" in first.states())
            first.end(signal.SIGKILL)
        with serving(tmp_path, "--ray", cluster.address) as second:
            second.until(lambda: set(second.states()) == {"done"})
            assert {job["id"] for job in second.ask("/jobs")} == {job["id"] for job in jobs}
    finally:
        cluster.shutdown()


def test_a_machine_that_is_told_to_stop_ends_its_job_and_begins_none(tmp_path, monkeypatch):
    """Ray waits for its workers, but for half a minute at most, and they would take job after job till then."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    start = ("start", "--address", cluster.address, "--num-cpus=1", "--block", "--disable-usage-stats")
    machine = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *start], stdout=subprocess.DEVNULL)
    try:
        with serving(tmp_path, "--ray", cluster.address) as server:
            rows = [{"seed": seed, "set": VIDEO | {"PiyingVACESample.steps": 20}} for seed in range(20)]
            server.ask("/batches", {"name": "b", "workflow": "t2v", "jobs": rows})
            server.until(lambda: "running" in server.states())
            machine.terminate()
            machine.wait(25)
            server.until(lambda: server.ask("/health")["workers"] == 0)
            assert set(server.states()) == {"done", "queued"}
            assert {job["lost"] for job in server.ask("/jobs")} == {0}
    finally:
        machine.kill()
        cluster.shutdown()
