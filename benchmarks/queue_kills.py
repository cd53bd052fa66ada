"""Jobs on a Ray cluster of several raylets on this machine, whose workers, raylets and server are killed at random.

    python benchmarks/queue_kills.py --out benchmarks/results/queue_kills.json

It fails where a job is lost or done twice, or where its result differs from that of a run by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from machine import ROOT, describe, load_pack, write_json
from queue_server import PICTURE, QueueServer, processes

VIDEO = {
    "PiyingVACESample.steps": 1,
    "PiyingVACESample.num_frames": 5,
    "PiyingVACESample.width": 64,
    "PiyingVACESample.height": 64,
    "PiyingExpandPrompt.max_new_tokens": 1,
}
SAMPLES = ("first frame", "last frame", "red triangle")
SEEDS = 8  # different videos


def bodies(count: int, videos: int) -> list[dict[str, Any]]:
    """Return what is asked for: pictures, and every so often a video."""
    every = max(1, count // max(1, videos))
    found: list[dict[str, Any]] = []
    for number in range(count):
        if number % every == 0 and number // every < videos:
            found.append({"workflow": "t2v", "set": VIDEO, "seed": number // every % SEEDS})
        else:
            found.append({"workflow": PICTURE, "set": {"1.sample": SAMPLES[number % len(SAMPLES)]}})
    return found


def content(path: Path) -> str:
    """Return a checksum of what a file shows: a video's metadata has the seconds that it took."""
    if path.suffix == ".png":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    frames = importlib.import_module("piying.core.media.video").read_frames(path)
    return hashlib.sha256(b"".join(frame.tobytes() for frame in frames)).hexdigest()


def alone(asked: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Return the checksums of runs by themselves, by what was asked."""
    session = importlib.import_module("piying.runner.session").Session(output=folder, device="cpu")
    found: dict[str, str] = {}
    for one in asked:
        key = json.dumps(one, sort_keys=True)
        if key in found:
            continue
        workflow = ROOT / "workflows" / "t2v.json" if one["workflow"] == "t2v" else one["workflow"]
        done = session.run(workflow, set=one.get("set"), seed=one.get("seed"))
        found[key] = content(done.files[0])
    session.close()
    return found


def kill_at_random(chance: random.Random, server: QueueServer, cluster: Any, killed: Counter[str]) -> None:
    """Kill a worker; once, a raylet with its worker, in whose place another one comes."""
    if killed["worker"] == 4 and not killed["raylet"]:
        node = chance.choice(list(cluster.worker_nodes))
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        killed["raylet"] += 1
        return
    workers = processes("ray::PiyingWorker")
    if workers:
        chance.choice(workers).kill()
        killed["worker"] += 1


def main() -> None:
    """Run it, and write the figures."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--jobs", type=int, default=200)
    parse.add_argument("--videos", type=int, default=40)
    parse.add_argument("--nodes", type=int, default=3)
    parse.add_argument("--kills", type=int, default=12)
    parse.add_argument("--every", type=float, default=6.0, help="seconds between kills")
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--port", type=int, default=8290)
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    load_pack()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="queue-cache-")
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="queue-kills-"))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False},
    )
    for _ in range(options.nodes):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    arguments = ("--ray", cluster.address, "--device", "cpu", "--retries", "10", "--per-minute", "100000")
    server = QueueServer(folder, options.port, *arguments)
    asked = bodies(options.jobs, options.videos)
    begun = time.monotonic()
    sent = server.client.submit("/batches", {"name": "kills", "jobs": asked})
    chance, killed, last = random.Random(options.seed), Counter[str](), time.monotonic()
    while True:
        time.sleep(1.0)
        states = Counter(job["state"] for job in server.jobs("kills"))
        print(f"{time.monotonic() - begun:.0f} s: {dict(states)}, killed {dict(killed)}", flush=True)
        if not states["queued"] + states["running"]:
            break
        if sum(killed.values()) < options.kills and time.monotonic() - last > options.every:
            last = time.monotonic()
            if killed["worker"] == options.kills // 2 and not killed["server"]:
                killed["server"] += 1
                server.process.kill()
                server.process.wait()
                server = QueueServer(folder, options.port, *arguments)
            else:
                kill_at_random(chance, server, cluster, killed)
    seconds = time.monotonic() - begun
    jobs = {job["id"]: job for job in server.jobs("kills")}
    server.end()
    cluster.shutdown()

    expected = alone(asked, folder / "alone")
    ids = [job["id"] for job in sent]
    results = {path.name for path in (folder / "results").iterdir() if not path.name.startswith(".")}
    audited = Counter(json.loads(line)["job"] for line in (folder / "state" / "audit.jsonl").read_text().splitlines())
    differing = [
        job_id
        for job_id, one in zip(ids, asked, strict=True)
        if jobs[job_id]["state"] != "done"
        or content(folder / "results" / job_id / jobs[job_id]["files"][0]["name"])
        != expected[json.dumps(one, sort_keys=True)]
    ]
    found = {
        "machine": describe("cpu"),
        "command": "python benchmarks/queue_kills.py " + " ".join(sys.argv[1:]),
        "jobs": len(ids),
        "videos": sum(one["workflow"] == "t2v" for one in asked),
        "raylets": options.nodes + 1,
        "killed": dict(killed),
        "seconds": round(seconds, 1),
        "states": dict(Counter(job["state"] for job in jobs.values())),
        "lost": len(set(ids) - results),
        "done_twice": sum(count > 1 for count in audited.values()) + len(results - set(ids)),
        "attempts": dict(Counter(str(job["attempt"]) for job in jobs.values())),
        "different_from_a_run_alone": len(differing),
        "compared_with": len(expected),
    }
    print(json.dumps(found, indent=1))
    if options.out is not None:
        write_json(options.out, found)
    if found["lost"] or found["done_twice"] or differing:
        raise SystemExit("a job was lost, done twice, or has another result")


if __name__ == "__main__":
    main()
