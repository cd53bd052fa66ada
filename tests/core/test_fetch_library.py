"""Hugging Face through huggingface_hub: the same promises as without it, and Xet storage."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from piying.core import http
from piying.core.download import hub_session, hubs
from piying.core.download.hub_session import choose_hubs
from piying.core.download.hubs import HubFile
from piying.core.download.jobs import fetch
from piying.core.download.manifest import ListedFile, ListedModel, Source
from piying.core.download.transfer import DownloadRefused, transfer
from piying.core.http import RetryPolicy
from piying.tests.install.hub import running_hub

library = pytest.importorskip("huggingface_hub")

from piying.core.download import huggingface_library  # noqa: E402

DATA, OTHER = (random.Random(seed).randbytes(300_000) for seed in (1, 2))
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = RetryPolicy(timeout=5, pauses=(0, 0, 0))
SOURCE = Source("Org/Model", "main", "weights.safetensors")
FILE = "/Org/Model/resolve/main/weights.safetensors"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as running:
        monkeypatch.setattr(library.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_library, "get_token", lambda: "hf_secret")
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url + "/scope")
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "models" / "file.safetensors"


def remote():
    return hub_session.hugging_face().remote(SOURCE, HubFile("weights.safetensors", len(DATA), SHA256))


def asked(hub, method="GET"):
    return [request for request in hub.asked if request.method == method]


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_the_library_is_used_where_it_is_installed(hub, monkeypatch):
    (first, second) = choose_hubs("auto")
    assert isinstance(first, huggingface_library.HuggingFaceLibrary) and second.key == "modelscope"
    assert first.endpoint == hub.url
    monkeypatch.setitem(sys.modules, "piying.core.download.huggingface_library", None)
    assert type(choose_hubs("huggingface")[0]) is hubs.HuggingFace


def test_a_model_is_listed_and_comes(hub, tmp_path):
    hub.put("/Org/Folder/resolve/main/config.json", b"{}", sha256=None)
    hub.put("/Org/Folder/resolve/main/a/weights.safetensors", DATA)
    (chosen,) = choose_hubs("huggingface")
    assert chosen.listing(Source("Org/Folder", "main"), QUICK) == [
        HubFile("config.json", 2, None),
        HubFile("a/weights.safetensors", len(DATA), SHA256),
    ]
    files = (ListedFile("LLM/F/", None, None, {"huggingface": Source("Org/Folder", "main")}, ("*",)),)
    model = ListedModel("m", "prompt", "model", "M", "MIT", 6, files)
    assert len(fetch([model], tmp_path, source="huggingface", policy=QUICK)) == 2
    assert (tmp_path / "LLM/F/a/weights.safetensors").read_bytes() == DATA
    of_the_model = [request for request in hub.asked if "Org/Folder" in request.path]
    assert [request.method for request in of_the_model].count("HEAD") == 1, "Xet has files of known checksums alone"
    assert len(of_the_model) == 5, "two listings and two files"
    assert {request.headers["authorization"] for request in of_the_model} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b'{"siblings": 3}',
        b'{"siblings": ["x"]}',
        b'{"siblings": [{"rfilename": 3}]}',
        b"[" * 200_000,
    ],
)
def test_a_listing_that_is_none(hub, answer):
    hub.put("/api/models/Org/Folder/revision/main", answer)
    with pytest.raises(DownloadRefused, match="Hugging Face"):
        hub_session.hugging_face().listing(Source("Org/Folder", "main"), QUICK)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"always": 404}, r"has no http://.* \(status 404\)"),
        ({"always": 401}, r"status 401\)\. Open .*/Org/Model, accept its licence"),
        ({"always": 403}, r"status 403\)\. Open"),
        ({"always": 500}, r"cannot be fetched \(status 500\)"),
        ({"data": OTHER}, f"sha256 is .*, and {SHA256} was expected"),
        ({"data": DATA[:-1]}, "has 299999 bytes at Hugging Face, not 300000"),
        ({"redirect": "http://models.example/file"}, "redirects to http://models.example/file, which is not HTTPS"),
        ({"redirect": "file:///etc/passwd"}, "redirects to"),
        ({"redirect": "http://[/file"}, "an address that cannot be read"),
    ],
)
def test_what_is_not_right_leaves_no_trace(hub, target, how, says):
    hub.put(FILE, **{"data": DATA, **how})
    with pytest.raises(DownloadRefused, match=says):
        transfer(remote(), target, policy=QUICK)
    assert names(target) == []


def test_a_server_that_is_not_there(target, monkeypatch):
    with running_hub() as gone:
        pass
    monkeypatch.setattr(library.constants, "ENDPOINT", gone.url)
    with pytest.raises(DownloadRefused, match="cannot be fetched .*refused"):
        transfer(remote(), target, policy=QUICK)
    with pytest.raises(DownloadRefused, match="cannot be fetched .*refused"):
        hub_session.hugging_face().listing(SOURCE, QUICK)


def test_offline_mode_asks_nobody(hub, target, monkeypatch):
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadRefused, match="HF_HUB_OFFLINE is set"):
        transfer(remote(), target, policy=QUICK)
    assert hub.asked == []


@pytest.mark.parametrize("seed", range(3))
def test_cut_anywhere_it_goes_on_there(hub, target, seed):
    cuts = [random.Random(seed).randrange(1, 40_000) for _ in range(5)]
    hub.put(FILE, DATA, cuts=list(cuts))
    assert transfer(remote(), target, policy=QUICK) == SHA256
    assert target.read_bytes() == DATA
    begun = [sum(cuts[:number]) for number in range(len(cuts) + 1)]
    assert [one.headers.get("range") for one in asked(hub)] == [None, *(f"bytes={start}-" for start in begun[1:])]


def test_the_token_stays_with_the_hub(hub, target):
    with running_hub() as store:
        store.put("/stored", DATA)
        hub.put(FILE, b"", redirect=store.url + "/stored?signature=secret", token="hf_secret")
        assert transfer(remote(), target, policy=QUICK) == SHA256
    assert [request.headers["authorization"] for request in hub.asked] == ["Bearer hf_secret"] * 2
    assert len(store.asked) == 1 and not any("authorization" in request.headers for request in store.asked)


def test_a_redirect_by_a_name_that_leads_to_this_machine_is_not_followed(hub, target, monkeypatch):
    with running_hub() as local:
        monkeypatch.setattr(http, "peer_address", lambda sock: peer(sock, hub))
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        for path in (FILE, "/api/models/Org/Model/revision/main"):
            hub.put(path, DATA, redirect=f"https://innocent.example:{local.server.server_port}/restart")
        with pytest.raises(DownloadRefused, match=r"redirects to 127\.0\.0\.1, which is on this machine"):
            transfer(remote(), target, policy=QUICK)
        with pytest.raises(DownloadRefused, match=r"redirects to 127\.0\.0\.1, which is on this machine"):
            hub_session.hugging_face().listing(SOURCE, QUICK)
        assert local.asked == []


def peer(sock, hub):
    """Return the address at the other end; the hub counts as on the internet."""
    address, port = sock.getpeername()[:2]
    return "93.184.215.14" if port == hub.server.server_port else address


def resolve(host, port, *_, **__):
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]


def test_the_token_goes_to_no_other_place_that_hands_out_keys_for_xet(hub, xet, target):
    with running_hub() as other:
        other.xet_store, hub.xet_route = hub.xet_store, f"{other.url}/xet-token"
        assert transfer(remote(), target, policy=QUICK) == SHA256
        assert {request.path for request in other.asked} == {"/xet-token"}
        assert not any("authorization" in request.headers for request in other.asked)


# Xet


@pytest.fixture
def xet(hub, tmp_path):
    """The file in Xet storage, a folder of this machine; the hub's own copy is another file."""
    storage = pytest.importorskip("hf_xet")
    hub.xet_store = f"local://{tmp_path / 'store'}"
    (tmp_path / "store").mkdir()
    commit = storage.XetSession().new_upload_commit(endpoint=hub.xet_store)
    commit.start_upload_bytes(DATA, name="weights.safetensors")
    (uploaded,) = commit.wait_to_finish().uploads.values()
    return hub.put(FILE, DATA, xet=uploaded.xet_info.hash, token="hf_secret")


def test_bytes_come_from_xet(hub, xet, target):
    seen = []
    assert transfer(remote(), target, progress=seen.append, policy=QUICK) == SHA256
    assert target.read_bytes() == DATA
    assert seen[-1] == len(DATA)
    assert (hub.asked[0].method, hub.asked[0].path) == ("HEAD", FILE)
    assert {request.path for request in asked(hub)} == {"/xet-token"}
    assert hub.asked[-1].headers["authorization"] == "Bearer hf_secret"
    assert names(target) == ["file.safetensors"]


def test_xet_is_resumed_where_it_was_cut_and_over_http_too(hub, xet, target, monkeypatch):
    def stop(done):
        if done >= 100_000:
            raise KeyboardInterrupt

    xet.xet, xet.cuts = (storage_hash := xet.xet) and "", [100_000]
    with pytest.raises(KeyboardInterrupt):
        transfer(remote(), target, progress=stop, policy=QUICK)
    size = target.with_name("file.safetensors.part").stat().st_size
    assert size == 100_000
    xet.xet, starts = storage_hash, []
    begin = huggingface_library.HuggingFaceLibrary._xet_chunks
    monkeypatch.setattr(
        huggingface_library.HuggingFaceLibrary,
        "_xet_chunks",
        lambda self, file, size, start, timeout: starts.append(start) or begin(self, file, size, start, timeout),
    )
    assert transfer(remote(), target, policy=QUICK) == SHA256
    assert starts == [100_000]
    assert target.read_bytes() == DATA


def test_where_xet_fails_http_goes_on(hub, xet, target):
    hub.xet_store = "http://127.0.0.1:9"
    assert transfer(remote(), target, policy=QUICK) == SHA256
    assert [request.path for request in asked(hub)][-1] == FILE


def test_a_stream_of_xet_that_says_nothing_is_given_up(monkeypatch):
    class Silent:
        cancelled = False

        def __iter__(self):
            yield b"first"
            time.sleep(0.6)

        def cancel(self):
            Silent.cancelled = True

    chunks = huggingface_library._XetReader(Silent).chunks(0.3)
    assert next(chunks) == b"first"
    with pytest.raises(TimeoutError):
        next(chunks)
    assert Silent.cancelled


def test_a_stream_of_xet_that_does_not_begin_is_given_up():
    ended = threading.Event()
    with pytest.raises(TimeoutError):
        next(huggingface_library._XetReader(lambda: ended.wait(20) and ()).chunks(0.2))
    ended.set()


INSTALLED = """
import importlib, pathlib, sys, types
package = types.ModuleType("pack"); package.__path__ = [sys.argv[1]]; sys.modules["pack"] = package
hubs = importlib.import_module("pack.core.download.hubs")
hub_session = importlib.import_module("pack.core.download.hub_session")
manifest = importlib.import_module("pack.core.download.manifest")
transfer = importlib.import_module("pack.core.download.transfer")
source = manifest.Source("Org/Model", "main", "weights.safetensors")
remote = hub_session.hugging_face().remote(source, hubs.HubFile("weights.safetensors", int(sys.argv[2]), sys.argv[3]))
print(type(remote.opener.__self__).__name__, flush=True)
transfer.transfer(remote, pathlib.Path(sys.argv[4]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_control_c_leaves_what_the_next_run_goes_on_with(hub, target):
    """HF_ENDPOINT, as a user sets it, leads the library to the toy hub."""
    hub.put(FILE, DATA, stalls=[100_000])
    command = [sys.executable, "-c", INSTALLED, ROOT, str(len(DATA)), SHA256, target]
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    part = target.with_name(target.name + ".part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert output == "HuggingFaceLibrary\n"
    size = part.stat().st_size
    assert 0 < size <= 100_000
    hub.released.set()
    assert transfer(remote(), target, policy=QUICK) == SHA256
    assert asked(hub)[-1].headers["range"] == f"bytes={size}-"
