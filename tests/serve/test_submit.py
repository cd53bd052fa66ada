"""`python -m runner submit`, against the routes of a server on this machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from piying.core.errors import PiyingError
from piying.serve import client as module
from piying.serve import submit
from piying.serve.client import Client
from piying.serve.submit import parser, read_rows, requests

from .conftest import PICTURE


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.json"
    path.write_text(json.dumps(PICTURE))
    return path


def bodies(*arguments):
    return list(requests(parser().parse_args([*map(str, arguments), "--to", "http://127.0.0.1:1"])))


def test_values_of_rows_win_over_those_of_all_jobs(tmp_path, picture):
    rows = tmp_path / "rows.csv"
    rows.write_text("\ufeff2.filename_prefix,seed,prompt\na,7,\n,,red circle\n", encoding="utf-8")
    ((path, body),) = bodies(picture, "--csv", rows, "--set", "2.filename_prefix=x", "--seed", 3)
    assert path == "/batches" and body["workflow"] == PICTURE and body["name"].startswith("picture-")
    values = [{key: job[key] for key in ("set", "seed", "prompt") if key in job} for job in body["jobs"]]
    assert values == [
        {"set": {"2.filename_prefix": "a"}, "seed": 7},
        {"set": {"2.filename_prefix": "x"}, "seed": 3, "prompt": "red circle"},
    ]
    assert len({job["id"] for job in body["jobs"]}) == 2


def test_a_folder_is_one_batch_in_requests_that_the_server_takes(tmp_path, monkeypatch):
    folder = tmp_path / "flows"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.json").write_text(json.dumps({**PICTURE, "9": {"text": "x" * 1000}}))
    (folder / ".hidden").touch()
    monkeypatch.setattr(submit, "MOST_BYTES", 3000)
    found = [body for _, body in bodies(folder)]
    assert [len(body["jobs"]) for body in found] == [2, 2, 1] and len({body["name"] for body in found}) == 1
    assert bodies("t2v")[0][1]["workflow"] == "t2v", "the name of one that the server has"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("5.seed\n", "has no row below its header"),
        ("sed\n1\n", "the column 'sed' is neither NODE.INPUT, prompt nor seed"),
        ("1.a,1.a\n1,2\n", "two columns are called '1.a'"),
        ("1.a,1.b\n1\n", "row 1 has 1 cells, the header 2"),
        ("seed\nx\n", "row 1: seed is 'x', no whole number"),
        ('1.a\n"x\n', "unexpected end of data"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, said):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(PiyingError, match=said):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing.json",), "missing.json: cannot be read"),
        (("t2v", "--set", "x"), "write it as NODE.INPUT=VALUE"),
        (("t2v", "--to", "ftp://x"), "is no address"),
        (("t2v", "--to", "http://192.0.2.1"), "without HTTPS anybody on the way reads the token"),
        (("t2v", "--token-file", "missing"), "no such file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(capsys, arguments, said):
    address = () if "--to" in arguments else ("--to", "http://127.0.0.1:1")
    assert submit.main([*arguments, *address]) == 2
    assert said in capsys.readouterr().err


@contextmanager
def listening(folder, **settings):
    uvicorn = pytest.importorskip("uvicorn", reason='python -m pip install "ray[serve]" adds it')
    for name in ("fastapi", "prometheus_client", "httpx"):
        pytest.importorskip(name)
    from .test_app import serving

    with serving(folder, **settings) as client:
        server = uvicorn.Server(uvicorn.Config(client.app, lifespan="off", log_level="warning"))
        sock = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield SimpleNamespace(url=f"http://127.0.0.1:{sock.getsockname()[1]}", service=client.app.state.service)
        server.should_exit = True
        thread.join()


def test_a_batch_is_shown_and_its_files_fetched(tmp_path, picture, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("1.sample,2.filename_prefix\nfirst frame,one/a\nlast frame,one/a\nred triangle,b\n")
    with listening(tmp_path) as server:
        assert submit.main([str(picture), "--to", server.url, "--csv", str(rows)]) == 0
        ids = capsys.readouterr().out.split()
        assert len(ids) == 3
        output = tmp_path / "fetched"
        again = [str(picture), "--to", server.url, "--csv", str(rows), "--wait", "--output", str(output)]
        assert submit.main(again) == 0
        captured = capsys.readouterr()
        names = ["b_00001_.png", "one/a_00001_.png", "one/a_00002_.png"]
        assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.png")) == names
        assert sorted(captured.out.split()) == [str(output / name) for name in names]
        assert "Job 3 of 3" in captured.err and "Done in" in captured.err
        assert submit.main([str(picture), "--to", server.url, "--wait", "--json", "--output", str(output)]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [event["event"] for event in events][-2:] == ["saved", "done"] and len(events[0]["job"]) == 32
        # Refused with the sentence, and the code, of the command line.
        assert submit.main([str(picture), "--to", server.url, "--set", "2.filename_prefix=../a"]) == 2
        assert "leads out of a folder" in capsys.readouterr().err


def test_a_job_that_fails_ends_with_its_code_and_the_others_are_fetched(tmp_path, capsys):
    flows = tmp_path / "flows"
    flows.mkdir()
    # What comes through a wire is known when it runs.
    wired = {"3": {"class_type": "PrimitiveString", "inputs": {"value": "../a"}}}
    saving = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": ["3", 0]}}
    (flows / "1.json").write_text(json.dumps({**PICTURE, **wired, "2": saving}))
    (flows / "2.json").write_text(json.dumps(PICTURE))
    with listening(tmp_path) as server:
        output = tmp_path / "fetched"
        code = submit.main([str(flows), "--to", server.url, "--wait", "--output", str(output)])
        err = capsys.readouterr().err
    assert code == 1 and "error: Save Image (node 2): filename_prefix '../a' holds '..'" in err
    assert len(list(output.rglob("*.png"))) == 1


def test_a_connection_that_breaks_is_taken_up_again(tmp_path, picture, monkeypatch):
    """The events go on after the last one seen, and a job that is sent again is one job."""
    with listening(tmp_path) as server:
        client = Client(server.url)
        body = {"workflow": PICTURE, "id": "a" * 32}
        assert client.submit("/jobs", body)["id"] == client.submit("/jobs", body)["id"]
        monkeypatch.setattr("piying.core.http.time.sleep", lambda seconds: None)
        broken = iter([1])
        original = module._parsed

        def breaking(response):
            for number, one in enumerate(original(response)):
                if number == 1 and next(broken, None):
                    raise ConnectionResetError
                yield one

        monkeypatch.setattr(module, "_parsed", breaking)
        kinds = [event["event"] for event in client.events("a" * 32)]
        assert kinds == ["queued", "started", "node", "executed", "node", "executed", "saved", "done"]


def test_a_result_that_leads_out_of_the_folder_is_not_written(tmp_path, monkeypatch):
    """Whoever answers at the address."""
    with listening(tmp_path) as server:
        client = Client(server.url)
        job = client.submit("/jobs", {"workflow": PICTURE})
        list(client.events(job["id"]))
        (file,) = client.show(job["id"])["files"]
        monkeypatch.setattr(Client, "_at", lambda self, path: f"{server.url}/jobs/{job['id']}/results/{file['name']}")
        with pytest.raises(PiyingError, match="leads out of a folder"):
            client.fetch(job["id"], {**file, "name": "../../a.png"}, tmp_path / "fetched")
        monkeypatch.setattr("piying.core.http.time.sleep", lambda seconds: None)
        with pytest.raises(PiyingError, match="came incomplete"):
            client.fetch(job["id"], {**file, "sha256": "0"}, tmp_path / "fetched")
        assert list((tmp_path / "fetched").rglob("*")) == []
