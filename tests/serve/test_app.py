"""The routes, with one worker of this process that runs real workflows."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason='python -m pip install "ray[serve]" adds it')
pytest.importorskip("prometheus_client", reason='python -m pip install "ray[serve]" adds it')
pytest.importorskip("httpx", reason="starlette's test client needs it")

from piying.serve.app import BODY_BYTES, build_app
from piying.serve.job_runner import JobRunner
from piying.serve.limits import Limits, Tokens, token_checksum
from piying.serve.pool import Ended, Forecasted, Happened, Report, WorkerReady
from piying.serve.service import Service
from piying.serve.settings import Folders, Settings
from starlette.testclient import TestClient

from .conftest import PICTURE

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {"ana": "ana-0123456789abc", "ben": "ben-0123456789abc"}


class OwnProcess:
    """A worker of this process, with a thread of its own."""

    def __init__(self, folders: Folders) -> None:
        self._runner = JobRunner(folders, device="cpu")
        self._reports: queue.Queue[Report] = queue.Queue()
        self._calls: queue.Queue = queue.Queue()
        self._reports.put(WorkerReady("here", self._runner.machine()))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._reports.put(call())

    def run(self, worker, task):
        def emit(event):
            self._reports.put(Happened(worker, task.job_id, event))

        def call():
            outcome = self._runner.run(task.job_id, task.attempt, task.asked, models=task.models, emit=emit)
            return Ended(worker, task.job_id, task.attempt, outcome)

        self._calls.put(call)

    def forecast(self, worker, costs_like, asked):
        self._calls.put(lambda: Forecasted(worker, costs_like, self._runner.forecast(asked)))

    def cancel(self, worker, job_id):
        self._runner.cancel(job_id)

    def kill(self, worker):
        raise AssertionError("the job did not stop")

    def poll(self, seconds: float) -> Sequence[Report]:
        try:
            found = [self._reports.get(timeout=seconds)]
            while True:
                try:
                    found.append(self._reports.get_nowait())
                except queue.Empty:
                    return found
        except queue.Empty:
            return []

    def close(self):
        self._calls.put(None)
        self._thread.join()
        self._runner.close()


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[TestClient]:
    for name in ("input", "models"):
        (folder / name).mkdir(exist_ok=True)
    folders = Folders(str(folder / "input"), (str(folder / "models"),), str(folder / "results"))
    made = Settings(str(folder / "state"), folders, workflows=(str(ROOT / "workflows"),), **settings)
    with TestClient(build_app(Service(made, lambda: OwnProcess(folders)))) as client:
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve")) as client:
        client.folder = Path(client.app.state.service.settings.state).parent
        yield client


def submitted(client, workflow=PICTURE, **values):
    answer = client.post("/jobs", json={"workflow": workflow, **values})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def followed(client, job_id, **headers):
    lines = client.get(f"/jobs/{job_id}/events", headers=headers).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def problems(answer):
    return answer.json()["problems"]


def test_a_job_from_submission_to_its_file(client):
    job_id = submitted(client)
    events = followed(client, job_id)
    assert [event["event"] for event in events] == [
        *("queued", "started", "node", "executed", "node", "executed", "saved", "done")
    ]
    assert [event["event"] for event in followed(client, job_id, **{"Last-Event-ID": "6"})] == ["saved", "done"]
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["attempt"], job["measured"]["nodes"]) == ("done", 1, 2)
    (file,) = client.get(f"/jobs/{job_id}/results").json()
    answer = client.get(f"/jobs/{job_id}/results/{file['name']}")
    assert answer.content.startswith(b"\x89PNG") and len(answer.content) == file["bytes"]
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a_00001_.png"
    assert client.get("/history").json()[0]["id"] == job_id
    line = json.loads((client.folder / "state" / "audit.jsonl").read_text().splitlines()[-1])
    assert (line["job"], line["owner"], line["state"], line["files"]) == (job_id, "local", "done", [file])
    assert line["workflow"] == job["checksum"]
    logged = [json.loads(one) for one in (client.folder / "state" / "log.jsonl").read_text().splitlines()]
    assert {"job": job_id, "attempt": 1}.items() <= logged[-1].items()


def test_the_same_workflow_twice_gives_the_same_file_twice(client):
    """The session has the node's result in its cache, and the second job has a folder of its own."""
    made = []
    for _ in range(2):
        job_id = submitted(client)
        followed(client, job_id)
        made.append(client.get(f"/jobs/{job_id}").json()["files"])
    assert made[0] == made[1] and len(made[0]) == 1


def test_a_video_by_name_counts_in_the_metrics_and_keeps_its_model(client):
    values = {
        "PiyingVACESample.steps": 1,
        "PiyingVACESample.num_frames": 5,
        "PiyingExpandPrompt.max_new_tokens": 4,
    }
    loads = []
    for seed in (1, 2):
        job_id = submitted(client, "t2v", set=values, seed=seed)
        followed(client, job_id)
        job = client.get(f"/jobs/{job_id}").json()
        assert job["state"] == "done", job
        loads.append(job["measured"]["model_loads"])
    assert job["files"][0]["name"].endswith(".mp4") and set(job["measured"]["phases"]) >= {"sample", "decode"}
    assert loads[0] > 0 and loads[1] == 0
    text = client.get("/metrics").text
    for name in ("piying_jobs_over_total", "piying_phase_seconds_count", "piying_model_requests_total"):
        assert any(float(line.split()[-1]) > 0 for line in text.splitlines() if line.startswith(name)), name


def test_a_running_job_is_cancelled(client):
    job_id = submitted(client, "t2v", set={"PiyingVACESample.steps": 1000, "PiyingExpandPrompt.max_new_tokens": 4})
    seen = []
    # Step by step, as a client that follows: the test client gives what came when it is over.
    service = client.app.state.service
    while not any(event["event"] == "progress" and event["phase"] == "Sampling" for event in seen):
        seen = [event for _, event in service.events.after(job_id, 0)[0]]
        assert not service.queue.find(job_id).is_over
    assert client.delete(f"/jobs/{job_id}").json()["is_cancelling"]
    assert followed(client, job_id)[-1] == {
        "event": "error",
        "message": "stopped; no unfinished file is left.",
        "exit_code": 130,
        "node": None,
    }
    assert client.get(f"/jobs/{job_id}").json()["state"] == "cancelled"
    assert list((client.folder / "results").glob(f"**/*{job_id}*")) == []


def loading(name):
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
    }


def saving(prefix):
    return {**PICTURE, "2": {**PICTURE["2"], "inputs": {"images": ["1", 0], "filename_prefix": prefix}}}


EXPAND = {"preset": "text_to_video", "max_new_tokens": 4, "temperature": 0.7, "seed": 1}
PROMPT_SERVER = {
    "1": {"class_type": "PiyingPromptServer", "inputs": {"url": "http://127.0.0.1:1/v1", "model": "m", "timeout": 5}},
    "2": {"class_type": "PiyingExpandPrompt", "inputs": {"model": ["1", 0], "prompt": "a", **EXPAND}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
}


@pytest.mark.parametrize(
    ("workflow", "said", "node"),
    [
        (loading("../secret.png"), "is not a file in the input folder", "1"),
        (loading("/etc/passwd"), "is not a file in the input folder", "1"),
        (loading("link.png"), "is not a file in the input folder", "1"),
        (loading("..\\secret.png"), "is not a file in the input folder", "1"),
        (loading("a.png [output]"), "is not a file in the output folder", "1"),
        (saving("../a"), "leads out of a folder", "2"),
        (saving("/tmp/a"), "is an absolute path", "2"),
        (saving("a/../../b"), "leads out of a folder", "2"),
        ({"1": {"class_type": "EvalCode", "inputs": {}}}, "'EvalCode' is not known here", None),
        (PROMPT_SERVER, "No server is allowed here", "1"),
        ("../t2v", "workflow '../t2v' is not known here", None),
        ("/etc/passwd", "is not known here", None),
        ({}, "no nodes", None),
    ],
)
def test_what_leads_out_of_the_folders_is_refused(client, workflow, said, node):
    (client.folder / "secret.png").write_bytes(b"secret")
    link = client.folder / "input" / "link.png"
    if not link.is_symlink():
        link.symlink_to(client.folder / "secret.png")
    answer = client.post("/jobs", json={"workflow": workflow})
    assert answer.status_code == 422, answer.text
    found = problems(answer)
    assert any(said in one["message"] and one["node"] == node for one in found), found


def test_a_model_outside_the_folders_is_refused(client):
    answer = client.post("/jobs", json={"workflow": "t2v", "set": {"PiyingLoadWanVACE.model": "../../secret"}})
    assert answer.status_code == 422
    (found,) = problems(answer)
    assert "../../secret" in found["message"] and found["node"] == "2"


def test_workflows_are_named_within_their_folders_alone(tmp_path, client):
    names = client.get("/workflows").json()
    assert "t2v" in names
    (tmp_path / "flows").mkdir()
    (tmp_path / "secret.json").write_text(json.dumps(PICTURE))
    (tmp_path / "flows" / "link.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "flows" / "own.json").write_text(json.dumps(PICTURE))
    intake = type(client.app.state.service.intake)(client.app.state.service.intake.session, (tmp_path / "flows",))
    assert intake.names() == ["own"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "JSON decode error"),
        ("[" * 100_000, "There was an error parsing the body"),
        ("[]", "valid dictionary"),
        ('{"workflow": {}, "wrong": 1}', "body.wrong: Extra inputs are not permitted"),
        ('{"workflow": 5}', "body.workflow"),
        ('{"workflow": {}, "id": "../x"}', "body.id: String should match pattern"),
        ('{"workflow": "t2v", "seed": NaN}', "body.seed"),
        ('{"workflow": "t2v", "set": {"nothing": 1}}', "No node"),
    ],
)
def test_bodies_that_are_none_are_refused(client, body, said):
    answer = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert said in " ".join(one["message"] for one in problems(answer))


def test_bodies_that_are_too_large_are_not_read(client):
    """Not through the test client, which reads all of a body before it sends any."""
    assert client.post("/jobs", content=bytes(BODY_BYTES + 1)).status_code == 413
    chunks, sent = [], []

    async def receive():
        chunks.append(1)
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/jobs", "raw_path": b"/jobs", "query_string": b""}
    asyncio.run(client.app({**scope, "headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send))
    assert sent[0]["status"] == 413 and len(chunks) <= (BODY_BYTES >> 20) + 1


def test_a_batch_is_taken_whole_or_not_at_all(client):
    wrong = [{"seed": 1}, {"set": {"2.filename_prefix": "../b"}}]
    before = len(client.get("/jobs?limit=1000").json())
    answer = client.post("/batches", json={"name": "two", "workflow": PICTURE, "jobs": [{}, wrong[1]]})
    assert problems(answer)[0]["message"].startswith("job 2: Save Image (node 2): filename_prefix '../b'")
    assert len(client.get("/jobs?limit=1000").json()) == before
    answer = client.post("/batches", json={"name": "two", "jobs": [{}]})
    assert problems(answer)[0]["message"] == "job 1: has no workflow, and the batch has none."
    rows = [{"set": {"1.sample": name}} for name in ("first frame", "last frame")]
    jobs = client.post("/batches", json={"name": "two", "workflow": PICTURE, "jobs": rows}).json()
    for job in jobs:
        followed(client, job["id"])
    done = client.get("/jobs?batch=two&state=done").json()
    assert {job["id"] for job in done} == {job["id"] for job in jobs}
    assert len({job["files"][0]["sha256"] for job in done}) == 2


def test_a_request_that_is_sent_again_makes_no_second_job(client):
    job_id = "f" * 32
    for _ in range(2):
        assert submitted(client, id=job_id) == job_id
    assert [job["id"] for job in client.get("/jobs").json()].count(job_id) == 1
    assert client.post("/jobs", json={"workflow": PICTURE, "id": job_id, "partial": True}).status_code == 409
    followed(client, job_id)


@pytest.mark.parametrize(
    "name", ["../../state/jobs.sqlite", "..%2F..%2Fstate%2Fjobs.sqlite", "result.json", "%00", "a/"]
)
def test_only_files_of_the_job_are_given_out(client, name):
    job_id = submitted(client)
    followed(client, job_id)
    assert client.get(f"/jobs/{job_id}/results/{name}").status_code == 404


def test_the_page_of_the_routes(client):
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/jobs", "/batches", "/jobs/{job_id}/events", "/history", "/health", "/metrics"} <= paths.keys()
    assert client.get("/health").json()["workers"] == 1


def test_a_token_sees_its_own_jobs_alone(tmp_path):
    tokens = Tokens({name: token_checksum(token) for name, token in TOKENS.items()})
    with serving(tmp_path, tokens=tokens, limits=Limits(queued=2, per_minute=3)) as client:
        ana, ben = ({"Authorization": f"Bearer {token}"} for token in TOKENS.values())
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for path in ("/jobs", "/metrics", "/workflows", f"/jobs/{'0' * 32}"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and "Authorization: Bearer TOKEN" in problems(answer)[0]["message"]
            assert client.post("/jobs", json={"workflow": PICTURE}, headers=headers).status_code == 401
        assert client.get("/health").status_code == 200
        job_id = client.post("/jobs", json={"workflow": PICTURE}, headers=ana).json()["id"]
        followed(client, job_id, **ana)
        assert client.get(f"/jobs/{job_id}", headers=ben).status_code == 404
        assert client.get(f"/jobs/{job_id}/events", headers=ben).status_code == 404
        assert client.delete(f"/jobs/{job_id}", headers=ben).status_code == 404
        assert client.get(f"/jobs/{job_id}/results/a_00001_.png", headers=ben).status_code == 404
        assert client.get("/jobs", headers=ben).json() == []
        body = {"name": "many", "workflow": PICTURE, "jobs": [{}] * 3}
        answer = client.post("/batches", json=body, headers=ana)
        assert answer.status_code == 429 and int(answer.headers["Retry-After"]) > 0
        assert "at most 2 may wait" in problems(answer)[0]["message"]
        for _ in range(2):
            followed(client, client.post("/jobs", json={"workflow": PICTURE}, headers=ana).json()["id"], **ana)
        answer = client.post("/jobs", json={"workflow": PICTURE}, headers=ana)
        assert answer.status_code == 429 and "at most 3 jobs a minute" in problems(answer)[0]["message"]
        assert client.post("/jobs", json={"workflow": PICTURE}, headers=ben).status_code == 202
    written = "".join(path.read_text() for path in (tmp_path / "state").glob("*.jsonl"))
    assert '"owner": "ana"' in written and TOKENS["ana"] not in written
