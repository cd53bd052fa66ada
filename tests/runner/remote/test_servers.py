"""`--server`: a workflow on ComfyUI servers, and on servers that fail in every way."""

from __future__ import annotations

import io
import json
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from piying.core.process import DONE, WRONG
from piying.runner import cli
from piying.runner.display import EventDisplay, Plain, Terminal
from piying.runner.errors import JobFailed, NodeFailed, WorkflowError
from piying.runner.graph import parse_graph
from piying.runner.remote import address, event_stream, timeouts
from piying.runner.remote.command import run_on_servers
from piying.runner.remote.job import RemoteJob
from piying.runner.remote.job_display import JobDisplay
from piying.runner.remote.pool import Pool
from piying.tests.runner.remote.fake_comfyui import (
    FakeComfyUI,
    Handler,
    definitions,
    drop,
    failure,
    fake_comfyui,
    hang,
    picture_workflow,
    raw,
    saved,
    status,
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """What takes seconds and minutes takes tenths of seconds."""
    short = {
        "SILENCE": 0.5,
        "CANCEL": 0.5,
        "PAUSES": (0.02, 0.02),
        "POLL": 0.02,
        "BETWEEN_QUESTIONS": (0.02,),
        "WITH_EVENTS": 0.1,
        "REFUSED_AFTER": 0.2,
        "LOST_AFTER": 0.8,
        "OTHERS": 0.3,
    }
    for name, value in short.items():
        monkeypatch.setattr(timeouts, name, value)
    monkeypatch.delenv(address.AUTHORIZATION, raising=False)


@pytest.fixture
def fake():
    with fake_comfyui() as one:
        yield one


@dataclass
class Ran:
    """A run of the command: its exit code, or the error that it ended with, and what was shown."""

    code: int | None = None
    error: Exception | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> str:
        return "\n".join(event["text"] for event in self.events if event["event"] == "message")

    def kinds(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(event.get(name) for name in ("event", *names)) for event in self.events]


@dataclass
class Runner:
    """Runs `--server` in this process, on a workflow in a folder of its own."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def __call__(self, workflow: dict[str, Any], *fakes: FakeComfyUI | str, options: tuple[str, ...] = ()) -> Ran:
        path = self.folder / "workflow.json"
        path.write_text(json.dumps(workflow), encoding="utf-8")
        urls = [each if isinstance(each, str) else each.url for each in fakes]
        given = [part for url in urls for part in ("--server", url)]
        folders = ["--input", str(self.folder / "input"), "--output", str(self.output)]
        parsed = cli.parser().parse_args([str(path), *given, *folders, *options])
        ran = Ran()
        display = EventDisplay(ran.events.append)
        try:
            ran.code = run_on_servers(parsed, display, lambda: None, lambda option, value: None)
        except (WorkflowError, NodeFailed, JobFailed) as error:
            ran.error = error
        return ran

    def files(self) -> dict[str, bytes]:
        """What is under the output folder, hidden files too."""
        return {
            path.relative_to(self.output).as_posix(): path.read_bytes()
            for path in self.output.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def run(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "cat.png").write_bytes(b"cat")
    return Runner(tmp_path)


# What goes well


@pytest.mark.parametrize("has_jobs", [False, True], ids=["history", "jobs"])
def test_a_workflow_runs_there_and_its_files_come_here(run, fake, has_jobs):
    fake.has_jobs = has_jobs
    fake.outputs = {
        "1": {"images": [saved("preview_00001_.png", kind="temp")]},
        "3": {"gifs": [saved("b_00001_.mp4", "sub/deep")], "images": [saved("a_00007_.png")], "animated": [True]},
    }
    fake.files["sub/deep/b_00001_.mp4"] = b"video"
    ran = run(picture_workflow(), fake)
    assert (ran.code, ran.error) == (DONE, None)
    assert run.files() == {"a_00001_.png": b"picture", "sub/deep/b_00001_.mp4": b"video"}
    assert fake.input == {"cat.png": b"cat"}
    (job,) = fake.jobs.values()
    assert job["prompt"]["1"]["inputs"] == {"image": "cat.png"}
    assert not any("preview" in asked for asked in fake.asked), "a temporary file was fetched"
    assert ("saved", str(run.output / "a_00001_.png")) in ran.kinds("path")


def test_files_are_numbered_as_those_of_a_run_here(run, fake):
    for _ in range(2):
        assert run(picture_workflow(), fake).code == DONE
    assert list(run.files()) == ["a_00001_.png", "a_00002_.png"]


def test_an_input_that_is_another_file_there_stays_and_ours_is_renamed(run, fake):
    fake.input["cat.png"] = b"their cat"
    assert run(picture_workflow(), fake).code == DONE
    assert fake.input == {"cat.png": b"their cat", "cat (1).png": b"cat"}
    (job,) = fake.jobs.values()
    assert job["prompt"]["1"]["inputs"]["image"] == "cat (1).png"


def test_inputs_in_subfolders_and_the_servers_own(run, fake):
    (run.folder / "input" / "sub").mkdir()
    (run.folder / "input" / "sub" / '狗 "1".png').write_bytes(b"dog")
    fake.definitions = definitions("theirs.png")
    workflow = picture_workflow('sub/狗 "1".png [input]') | {
        "4": {"class_type": "LoadImage", "inputs": {"image": "theirs.png"}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "b"}},
    }
    assert run(workflow, fake).code == DONE
    assert fake.input == {"sub/狗 _1_.png": b"dog"}
    (job,) = fake.jobs.values()
    assert job["prompt"]["1"]["inputs"]["image"] == "sub/狗 _1_.png"
    assert job["prompt"]["4"]["inputs"]["image"] == "theirs.png"


def test_events_are_shown_as_those_of_a_run_here(run, fake):
    pytest.importorskip("aiohttp")
    text = (3).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"2a fox"
    fake.seconds = 0.3
    fake.events = [
        ("execution_cached", {"nodes": ["1"]}),
        ("executing", {"node": "2"}),
        ("piying.progress", {"node": "2", "phase": "Sampling", "done": 0, "total": 4, "seconds_left": 8}),
        ("piying.progress", {"node": "2", "phase": "Sampling", "done": 4, "total": 4}),
        ("progress", {"node": "2", "value": 4, "max": 4}),
        text,
        (1).to_bytes(4, "big") + b"\xff\xd8 a preview",
        ("progress", {"node": "2", "value": -1, "max": 1e30}),
        ("progress", {"node": "9", "prompt_id": "another", "value": 1, "max": 2}),
        ("executing", {"node": "3"}),
        ("executed", {"node": "3", "output": {"images": [saved("a_00007_.png")], "text": "one"}}),
        ("execution_success", {}),
    ]
    ran = run(picture_workflow(), fake)
    assert ran.code == DONE
    assert ran.kinds("node", "phase", "value", "max", "text", "cached")[1:-1] == [
        ("node", "2", None, None, None, None, None),
        ("progress", "2", "Sampling", 4, 4, None, None),
        ("text", "2", "Sampling", None, None, "a fox", None),
        ("executed", "2", None, None, None, None, False),
        ("node", "3", None, None, None, None, None),
        ("executed", "3", None, None, None, None, False),
        ("executed", "1", None, None, None, None, True),
    ]
    assert ran.events[-3]["output"]["text"] == ["one"]
    assert [line for line in fake.asked if "piying/watch" in line] == ["POST /piying/watch"]


def test_a_websocket_that_is_cut_off_costs_nothing(run, fake):
    pytest.importorskip("aiohttp")
    fake.seconds = 0.6
    fake.events = [("executing", {"node": "2"})]
    threading.Timer(0.4, lambda: [events.put(None) for events in fake.sockets.values()]).start()
    fake.faults["/ws"] = []
    ran = run(picture_workflow(), fake)
    assert ran.code == DONE and list(run.files()) == ["a_00001_.png"]


@pytest.mark.parametrize("fault", [status(403), status(302, Location="http://127.0.0.1:9/ws"), raw(b"no"), drop])
def test_without_a_websocket_the_state_is_asked_for(run, fake, fault):
    pytest.importorskip("aiohttp")
    fake.faults["/ws"] = [fault] * 20
    ran = run(picture_workflow(), fake)
    assert ran.code == DONE
    assert "its events cannot be received" in ran.messages


def test_without_aiohttp_the_state_is_asked_for(run, fake, monkeypatch):
    monkeypatch.setattr(event_stream.importlib.util, "find_spec", lambda name: None)
    ran = run(picture_workflow(), fake)
    assert ran.code == DONE and "pip install aiohttp" in ran.messages
    assert not any("/ws" in asked for asked in fake.asked)


def test_a_file_of_the_servers_output_folder_is_the_servers_to_find(run, fake):
    declared = ["COMBO", {"image_upload": True, "image_folder": "output", "remote": {"route": "/internal"}}]
    fake.definitions["LoadImage"]["input"]["required"]["image"] = declared
    assert run(picture_workflow("cat.png"), fake).code == DONE
    assert run(picture_workflow("dog.png [output]"), fake).code == DONE
    assert fake.input == {}


# What is refused


def test_a_missing_input_file_is_refused_before_anything_is_sent(run, fake):
    ran = run(picture_workflow("dog.png"), fake)
    assert str(ran.error).startswith("LoadImage (node 1): image is 'dog.png', which is neither in ")
    assert not fake.jobs and not fake.input


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "link.png"])
def test_no_file_outside_the_input_folder_is_uploaded(run, fake, name):
    (run.folder / "secret.png").write_bytes(b"secret")
    (run.folder / "input" / "link.png").symlink_to(run.folder / "secret.png")
    run(picture_workflow(name), fake)
    assert fake.input == {}


def test_classes_that_the_server_lacks_are_named_with_it(run, fake):
    del fake.definitions["Foreign"]
    ran = run(picture_workflow(), fake)
    text = f"Foreign (node 2): the node class 'Foreign' is not known to {fake.url}. Install the packs that it lacks"
    assert str(ran.error).startswith(text)
    assert not fake.jobs


def test_what_only_the_server_can_judge_is_sent_and_its_answer_told_in_our_words(run, fake):
    """The class may check the amount itself; a refusal of it has the sentence of a run here."""
    assert run(picture_workflow(amount=10), fake).code == DONE
    error = {"type": "value_bigger_than_max", "message": "Value 10 bigger", "extra_info": {"input_name": "amount"}}
    odd = {"type": "custom_validation_failed", "message": "Custom", "details": "image - it is blue"}
    odd["extra_info"] = {"input_name": "image"}
    fake.refusal = (400, {"error": {"message": "bad"}, "node_errors": {"2": {"errors": [error, odd, odd]}}})
    ran = run(picture_workflow(amount=10), fake)
    assert str(ran.error) == "Foreign (node 2): amount is 10. It must be at most 9.\nForeign (node 2): it is blue."
    ran = run(picture_workflow(amount=10), fake, options=("--check",))
    assert str(ran.error) == "Foreign (node 2): amount is 10. It must be at most 9."


def test_outputs_that_the_server_leaves_out(run, fake):
    error = {"type": "x", "message": "no", "details": "blue", "extra_info": {"input_name": "images"}}
    fake.node_errors = {"3": {"errors": [error], "class_type": "SaveImage"}}
    ran = run(picture_workflow(), fake)
    assert str(ran.error) == "SaveImage (node 3): no: blue."
    assert list(fake.jobs) == fake.deleted, "a job that is not wanted like this goes on"
    ran = run(picture_workflow(), fake, options=("--partial",))
    assert ran.code == WRONG and "left out: SaveImage (node 3): no: blue." in ran.messages
    assert list(run.files()) == ["a_00001_.png"]


@pytest.mark.parametrize("body", [{"error": "no outputs", "node_errors": []}, {"error": {"message": "no outputs"}}])
def test_a_refusal_that_names_no_node(run, fake, body):
    fake.refusal = (400, body)
    assert str(run(picture_workflow(), fake).error) == f"{fake.url}: does not take the workflow: no outputs."


# What fails there


def test_a_node_that_raises_is_told_as_in_a_run_here(run, fake):
    fake.status = failure("2", "piying.PiyingError", "the mask has 49 frames.")
    ran = run(picture_workflow(), fake)
    assert isinstance(ran.error, NodeFailed) and str(ran.error) == "Foreign (node 2): the mask has 49 frames."
    fake.status, fake.has_jobs = failure("2.0.0.1", "torch.OutOfMemoryError", "on device"), True
    error = run(picture_workflow(), fake).error
    assert str(error) == "Foreign (node 2.0.0.1): OutOfMemoryError: on device"
    assert error.cause.traceback == "  File x\n"


def test_a_job_that_is_stopped_or_removed_there(run, fake):
    fake.status = {"status_str": "error", "completed": False, "messages": [["execution_interrupted", {}]]}
    assert "the job was stopped there" in str(run(picture_workflow(), fake).error)
    fake.seconds = 30
    threading.Timer(0.3, fake.jobs.clear).start()
    threading.Timer(0.35, fake.jobs.clear).start()
    ran = run(picture_workflow(), fake)
    assert isinstance(ran.error, JobFailed) and "Somebody removed it from the queue there" in str(ran.error)


def test_a_failure_without_words(run, fake):
    fake.status = {"status_str": "error", "messages": None}
    assert "the server does not say why" in str(run(picture_workflow(), fake).error)


@pytest.mark.parametrize(
    ("filename", "subfolder"),
    [
        ("../../evil.png", ""),
        ("evil.png", "../.."),
        ("evil.png", "a/../../b"),
        ("/tmp/evil.png", ""),
        ("evil.png", "/tmp"),
        ("evil.png", "C:\\windows"),
        ("..\\evil.png", ""),
        ("..", ""),
        ("evil\x00.png", ""),
        ("evil\n.png", ""),
    ],
)
def test_names_that_lead_out_of_the_output_folder(run, fake, filename, subfolder):
    fake.outputs = {"3": {"images": [saved(filename, subfolder), saved("a_00007_.png")]}}
    before = {*run.folder.rglob("*"), run.folder / "workflow.json"}
    ran = run(picture_workflow(), fake)
    assert isinstance(ran.error, JobFailed) and "its name leads out of the output folder" in str(ran.error)
    assert run.files() == {"a_00001_.png": b"picture"}, "one bad name costs the other files"
    assert {path for path in run.folder.rglob("*") if run.output not in path.parents} == before | {run.output}
    assert not Path("/tmp/evil.png").exists()


def test_odd_names_are_made_safe(run, fake):
    names = ["-rf.png", "con.png", "%year%_00001_.png", "x" * 190 + ".png", "no ending", "a_00007_.png"]
    fake.outputs = {"3": {"images": [saved(name) for name in names]}}
    fake.files = dict.fromkeys(names, b"picture")
    assert run(picture_workflow(), fake).code == DONE
    made = ["-", "_con", "_year_", "x" * 190, "no ending", "a"]
    assert sorted(run.files()) == sorted(
        f"{stem if stem != '-' else '_-rf'}_00001_{'' if stem == 'no ending' else '.png'}" for stem in made
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (raw(b"pict", claimed=7), "cannot be used now"),
        (raw(b"", claimed=10 << 30), "it has 10240 MiB; at most 4096 MiB are fetched"),
        (raw(b"picture", claimed=-1), "does not say how large it is"),
        (status(404), "HTTP 404"),
        (status(500), "HTTP 500"),
        (status(302, Location="http://127.0.0.1:9/x"), "HTTP 302"),
        (drop, "cannot be used now"),
        (hang, "cannot be used now"),
    ],
    ids=["cut", "huge", "endless", "missing", "broken", "redirected", "dropped", "hanging"],
)
def test_a_file_comes_whole_or_not_at_all(run, fake, fault, says):
    fake.faults["/view"], fake.forever = [fault], True
    ran = run(picture_workflow(), fake)
    assert isinstance(ran.error, JobFailed) and says in str(ran.error), ran.error
    assert run.files() == {}


def test_a_file_that_comes_at_the_second_attempt(run, fake):
    fake.faults["/view"] = [raw(b"pict", claimed=7), status(503)]
    assert run(picture_workflow(), fake).code == DONE
    assert run.files() == {"a_00001_.png": b"picture"}


@pytest.mark.parametrize(
    ("route", "fault", "says"),
    [
        ("/object_info", raw(b"<html>"), "its answer to /object_info is no JSON"),
        ("/object_info", status(200, ["no", "nodes"]), "is no /object_info response of a ComfyUI server"),
        ("/object_info", raw(b"[" * 100_000), "its answer to /object_info is no JSON"),
        ("/object_info", hang, "cannot be used now (timed out)"),
        ("/prompt", status(404), "answered with HTTP 404"),
        ("/prompt", status(401), "asks for credentials"),
        ("/prompt", status(200, {"hello": 1}), "does not say how long its queue is"),
        ("/prompt", status(301, Location="https://elsewhere.example/prompt?key=1"), "redirects to https://elsewhere"),
        ("/prompt", status(503, **{"Retry-After": "0"}), "cannot be used now (HTTP 503)"),
    ],
)
def test_a_server_that_is_no_comfyui(run, fake, route, fault, says):
    fake.faults[route], fake.forever = [fault], True
    ran = run(picture_workflow(), fake)
    assert isinstance(ran.error, JobFailed) and says in str(ran.error), ran.error
    assert "key=1" not in str(ran.error)


def test_answers_of_any_shape_while_a_job_runs(run, fake):
    """One bad answer is asked for again; the job goes on meanwhile."""
    fake.faults["/history/*"] = [raw(b"{"), status(500), status(200, [1]), drop, status(200, {"a": 1})]
    fake.faults["/queue"] = [status(200, {"queue_running": 1, "queue_pending": [1, [], {}]})]
    assert run(picture_workflow(), fake).code == DONE


def test_an_answer_to_prompt_that_is_lost_does_not_run_the_job_twice(run, fake):
    fake.faults["/prompt"] = [lambda handler: handler.get_prompt("", {}, b""), queued_without_an_answer]
    assert run(picture_workflow(), fake).code == DONE
    assert len(fake.jobs) == 1 and fake.asked.count("POST /prompt") == 1


def queued_without_an_answer(handler):
    handler.fake.jobs[json.loads(handler.sent)["prompt_id"]] = {"begun": time.monotonic()}
    drop(handler)


def test_an_upload_that_is_too_large_for_the_server(run, fake):
    fake.faults["/upload/image"], fake.forever = [status(413)], True
    ran = run(picture_workflow(), fake)
    assert "takes no file as large as cat.png" in str(ran.error) and "--max-upload-size" in str(ran.error)


# Several servers


def test_the_shortest_queue_that_can_run_it_is_taken(run):
    with fake_comfyui(busy=3) as busy, fake_comfyui(busy=1) as free, fake_comfyui() as lacking:
        del lacking.definitions["Foreign"]
        ran = run(picture_workflow(), "http://127.0.0.1:9", busy, lacking, free)
        assert ran.code == DONE
        assert [len(each.jobs) for each in (busy, free, lacking)] == [0, 1, 0]
    assert "http://127.0.0.1:9: nothing listens there" in ran.messages
    assert f"Runs on {free.url}, behind 1 in its queue." in ran.messages


def test_a_job_goes_on_to_the_next_server_when_its_own_is_lost(run):
    with fake_comfyui(seconds=30) as first, fake_comfyui(busy=1) as second:
        threading.Timer(0.4, first.stop).start()
        ran = run(picture_workflow(), first, second)
    assert ran.code == DONE
    assert len(first.jobs) == len(second.jobs) == 1
    assert f"{first.url}: nothing listens there." in ran.messages
    assert "The job was not finished there. It goes to another server." in ran.messages
    assert list(run.files()) == ["a_00001_.png"]


def test_a_server_that_hangs_with_a_job_is_lost(run):
    with fake_comfyui(seconds=30) as first, fake_comfyui(busy=1) as second:

        def hang_from_now_on() -> None:
            first.forever = True
            first.faults |= {"/history/*": [hang], "/queue": [hang]}

        threading.Timer(0.3, hang_from_now_on).start()
        ran = run(picture_workflow(), first, second)
    assert ran.code == DONE and len(second.jobs) == 1, ran.error
    assert "(timed out). The job was not finished there." in ran.messages


def test_a_server_that_takes_long_to_answer_is_not_waited_for(run):
    with fake_comfyui(forever=True) as slow, fake_comfyui(busy=2) as other:
        slow.faults["/object_info"] = [hang]
        begun = time.monotonic()
        ran = run(picture_workflow(), slow, other)
        assert time.monotonic() - begun < 5
    assert ran.code == DONE and f"{slow.url}: does not answer in time. It is left out." in ran.messages


def test_where_every_server_is_lost_or_unable_each_is_told(run):
    with fake_comfyui() as lacking, fake_comfyui(seconds=30) as lost:
        del lacking.definitions["Foreign"]
        threading.Timer(0.4, lost.stop).start()
        ran = run(picture_workflow(), lacking, lost)
    first, *others = str(ran.error).splitlines()
    assert isinstance(ran.error, JobFailed) and first == "No server could do it:"
    assert [line for line in others if line.startswith(f"- {lost.url}: nothing listens there")]
    assert [line for line in others if "is not known to" in line]


def test_a_server_that_was_started_again_has_lost_the_job(run):
    with fake_comfyui(seconds=30) as first, fake_comfyui(busy=1) as second:

        def restart() -> None:
            first.faults["/history/*"] = [drop, drop]
            first.jobs.clear()

        threading.Timer(0.3, restart).start()
        ran = run(picture_workflow(), first, second)
    assert ran.code == DONE and "was started again" in ran.messages


def test_an_uploaded_file_that_was_tidied_up_is_uploaded_again(tmp_path, fake):
    (tmp_path / "cat.png").write_bytes(b"cat")
    pool = Pool([address.read_server_address(fake.url)])
    job = RemoteJob(source=picture_workflow(), input=tmp_path, output=tmp_path / "output")
    for expected in (1, 1, 2):
        pool.run(job, EventDisplay(lambda event: None))
        assert fake.asked.count("POST /upload/image") == expected
        if expected == 1 and len(fake.jobs) == 2:
            fake.input.clear()
    assert fake.input == {"cat.png": b"cat"}


SHAPES = [None, True, -1, 1e300, "x", [], [[]], [1, [2]], {}, {"a": []}, [{"b": None}]]


def mutated(value, rng, depth=0):
    """JSON with something else in one of its places."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15 * depth:
        return rng.choice(SHAPES)
    changed = value.copy()
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    changed[key] = mutated(value[key], rng, depth + 1)
    return changed


@pytest.mark.parametrize("route", ["/object_info", "get /prompt", "post /prompt", "/history/*", "/queue", "/api/*"])
def test_answers_of_any_shape_end_in_a_sentence(run, fake, route, monkeypatch):
    """Whatever a server answers, the run ends with files, or with an error that is one of ours."""
    rng = random.Random(7)
    fake.has_jobs = route.startswith("/api")
    monkeypatch.setattr(timeouts, "LOST_AFTER", 0.1)
    kept = Handler.json
    refusal = {"error": {"message": "bad"}, "node_errors": {"2": {"errors": [{"type": "x", "extra_info": {}}]}}}

    def json_of(handler, value, status=200):
        asked = f"{handler.command.lower()} {handler.path.partition('?')[0]}"
        if re.match(route.replace("*", ".*"), asked if " " in route else asked.partition(" ")[2]):
            if route.startswith("post") and rng.random() < 0.5:
                value, status = refusal, 400
            value = mutated(value, rng)
        kept(handler, value, status)

    monkeypatch.setattr(Handler, "json", json_of)
    ends = {run(picture_workflow(), fake, options=("--partial",)[: rng.random() < 0.3]).code for _ in range(25)}
    assert ends <= {None, DONE, WRONG}


def test_events_of_any_shape_are_shown_or_left_out():
    events = [
        ("execution_cached", {"nodes": ["1"]}),
        ("executing", {"node": "2", "display_node": "2"}),
        ("piying.progress", {"node": "2", "phase": "Sampling", "done": 0, "total": 4, "seconds_left": 8}),
        ("progress", {"node": "2", "value": 4, "max": 4}),
        ("progress_text", {"node": "2", "text": "a fox"}),
        ("progress_state", {"nodes": {"2": {"state": "running", "value": 1, "max": 3, "display_node_id": "2"}}}),
        ("executed", {"node": "3", "output": {"images": [1], "text": ["one"]}}),
    ]
    for seed in range(300):
        rng, out = random.Random(seed), io.StringIO()
        shown = JobDisplay((Plain, Terminal)[seed % 2](out, out), parse_graph(picture_workflow()), "job")
        for kind, data in rng.choices(events, k=12):
            changed = rng.choice([data, mutated(data, rng), {**data, "seconds_left": float("nan")}])
            if isinstance(changed, dict):
                shown.show(event_stream.ServerEvent(kind, changed))
        outputs = mutated({"3": {"text": ["x"]}, "1": {"text": "ab"}}, rng)
        shown.end(outputs if isinstance(outputs, dict) else {})


def test_many_jobs_from_threads_are_spread(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"cat")
    with fake_comfyui(seconds=0.3) as one, fake_comfyui(seconds=0.3) as two:
        pool = Pool([address.read_server_address(each.url) for each in (one, two)])
        job = RemoteJob(source=picture_workflow(), input=tmp_path, output=tmp_path / "output")
        fetched = []
        threads = [
            threading.Thread(target=lambda: fetched.append(pool.run(job, EventDisplay(lambda event: None))))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join(20)
        assert len(fetched) == 6 and len({path for each in fetched for path in each.files}) == 6
        assert sorted(len(each.jobs) for each in (one, two)) in ([2, 4], [3, 3])


# Cancelling


@pytest.mark.parametrize("has_jobs", [False, True], ids=["history", "jobs"])
def test_a_cancelled_run_cancels_its_job_and_no_other(tmp_path, fake, has_jobs):
    fake.seconds, fake.has_jobs = 30, has_jobs
    events: list[dict[str, Any]] = []

    def check() -> None:
        if fake.jobs:
            time.sleep(0.1)
            raise KeyboardInterrupt

    (tmp_path / "cat.png").write_bytes(b"cat")
    job = RemoteJob(source=picture_workflow(), input=tmp_path, output=tmp_path / "output")
    with pytest.raises(KeyboardInterrupt):
        Pool([address.read_server_address(fake.url)]).run(job, EventDisplay(events.append), check)
    assert fake.interrupted == list(fake.jobs)
    assert any("the job is cancelled there" in event.get("text", "") for event in events)


def test_a_cancelled_job_that_waits_interrupts_nobody(tmp_path, fake):
    fake.seconds, fake.busy = 30, 2
    events: list[dict[str, Any]] = []

    def check() -> None:
        if any("before this one" in event.get("text", "") for event in events):
            raise KeyboardInterrupt

    (tmp_path / "cat.png").write_bytes(b"cat")
    job = RemoteJob(source=picture_workflow(), input=tmp_path, output=tmp_path / "output")
    with pytest.raises(KeyboardInterrupt):
        Pool([address.read_server_address(fake.url)]).run(job, EventDisplay(events.append), check)
    assert fake.deleted == list(fake.jobs) and fake.interrupted == []
    assert any("2 jobs are before this one" in event.get("text", "") for event in events)
