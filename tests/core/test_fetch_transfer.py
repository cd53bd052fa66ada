"""One file over HTTP, from a server that cuts, stalls, lies and moves: it ends right or absent."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from piying.core.download import partial_file as fetch_part
from piying.core.download import transfer as transfers
from piying.core.download.transfer import DownloadRefused, RemoteFile, fetch_json, transfer
from piying.core.errors import PiyingError
from piying.core.http import Reach, RetryPolicy, is_allowed, may_redirect, reach_of
from piying.tests.install.hub import running_hub

ROOT = Path(__file__).resolve().parents[2]
DATA = random.Random(7).randbytes(300_000)
OTHER = random.Random(8).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = RetryPolicy(timeout=5, pauses=(0, 0, 0))
PATH = "/some/file"


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "models" / "vae" / "file.safetensors"


def remote(hub, **known):
    return RemoteFile(hub.url + PATH, **{"bytes": len(DATA), "sha256": SHA256, "hub": "The Hub", **known})


def fetch(hub, target, policy=QUICK, **known):
    return transfer(remote(hub, **known), target, policy=policy)


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


def ranges(hub):
    return [asked.headers.get("range") for asked in hub.asked_for(PATH)]


def test_a_file_comes_and_nothing_else_stays(hub, target):
    hub.put(PATH, DATA)
    seen = []
    assert transfer(remote(hub), target, progress=seen.append, policy=QUICK) == SHA256
    assert target.read_bytes() == DATA
    assert names(target) == ["file.safetensors"]
    assert seen[0] == 0 and seen[-1] == len(DATA) and seen == sorted(seen)


@pytest.mark.parametrize("seed", range(8))
def test_cut_anywhere_it_goes_on_there(hub, target, seed):
    cuts = [random.Random(seed).randrange(1, 40_000) for _ in range(7)]
    hub.put(PATH, DATA, cuts=list(cuts))
    assert fetch(hub, target) == SHA256
    assert target.read_bytes() == DATA
    begun = [sum(cuts[:number]) for number in range(len(cuts) + 1)]
    assert ranges(hub) == [None, *(f"bytes={start}-" for start in begun[1:])]


@pytest.mark.parametrize("known", [{}, {"sha256": None}, {"sha256": None, "bytes": None}, {"bytes": None}])
def test_stopped_for_good_the_next_run_goes_on(hub, target, known):
    served = hub.put(PATH, DATA, cuts=[100_000, 0, 0, 0])
    with pytest.raises(
        DownloadRefused, match=r"cannot be fetched \(.*100000 of 300000.*\)\. .* goes on where it stopped"
    ):
        fetch(hub, target, **known)
    assert names(target) == ["file.safetensors.part", "file.safetensors.part.json"]
    served.cuts.clear()
    assert fetch(hub, target, **known) == SHA256
    assert hub.asked[-1].headers["range"] == "bytes=100000-"
    assert hub.asked[-1].headers["if-range"] == '"1"'
    assert target.read_bytes() == DATA
    assert names(target) == ["file.safetensors"]


def test_a_stop_by_hand_leaves_what_is_here(hub, target):
    hub.put(PATH, DATA, stalls=[150_000])

    def stop(done):
        if done == 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer(remote(hub), target, progress=stop, policy=QUICK)
    assert names(target) == ["file.safetensors.part", "file.safetensors.part.json"]
    hub.released.set()
    assert fetch(hub, target) == SHA256
    assert hub.asked[-1].headers["range"] == "bytes=150000-"


def test_a_stop_before_the_first_bytes_are_counted_leaves_them(target):
    class Stopped:
        def update(self, chunk):
            raise KeyboardInterrupt

    target.parent.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), fetch_part.PartialFile(target, SHA256) as part:
        part.write_state('"1"')
        part._hash = Stopped()
        part.write(DATA[:1000])
    assert fetch_part.partial_bytes(target) == 1000
    with fetch_part.PartialFile(target, SHA256) as part:
        assert part.size == 1000


def test_silence_is_waited_for_only_so_long(hub, target):
    hub.put(PATH, DATA, stalls=[120_000])
    started = time.monotonic()
    assert fetch(hub, target, RetryPolicy(timeout=0.3, pauses=(0,))) == SHA256
    assert time.monotonic() - started < 3
    assert ranges(hub) == [None, "bytes=120000-"]


def test_a_server_that_always_stalls_is_given_up(hub, target):
    hub.put(PATH, DATA, stalls=[0] * 9)
    with pytest.raises(DownloadRefused, match="timed out"):
        fetch(hub, target, RetryPolicy(timeout=0.2, pauses=(0, 0)))
    assert len(hub.asked) == 3
    assert not target.exists()


def test_a_server_without_ranges_begins_anew(hub, target):
    hub.put(PATH, DATA, ranges=False, cuts=[100_000, 200_000])
    assert fetch(hub, target) == SHA256
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("known", [{}, {"sha256": None}])
def test_a_file_that_changed_meanwhile_is_not_put_together(hub, target, known, if_range):
    served = hub.put(PATH, OTHER, etag='"old"', cuts=[100_000, 0, 0, 0], if_range=if_range)
    with pytest.raises(DownloadRefused):
        fetch(hub, target, **known)
    served.data, served.etag = DATA, '"new"'
    served.cuts.clear()
    assert fetch(hub, target, **known) == SHA256
    assert target.read_bytes() == DATA


def test_a_change_that_no_etag_shows_is_found_by_the_hash(hub, target):
    served = hub.put(PATH, OTHER, cuts=[100_000, 0, 0, 0])
    with pytest.raises(DownloadRefused):
        fetch(hub, target)
    served.data = DATA
    served.cuts.clear()
    assert fetch(hub, target) == SHA256
    assert ranges(hub)[-2:] == ["bytes=100000-", None]


def test_what_nothing_can_prove_is_never_put_together(hub, target):
    served = hub.put(PATH, OTHER, etag=None, cuts=[100_000, 0, 0, 0])
    with pytest.raises(DownloadRefused):
        fetch(hub, target, sha256=None)
    served.data = DATA
    served.cuts.clear()
    assert fetch(hub, target, sha256=None) == SHA256
    assert set(ranges(hub)) == {None}


def test_a_part_of_another_file_is_thrown_away(hub, target):
    hub.put(PATH, DATA)
    target.parent.mkdir(parents=True)
    (target.parent / "file.safetensors.part").write_bytes(OTHER[:5000])
    note = target.parent / "file.safetensors.part.json"
    note.write_text(json.dumps({"sha256": hashlib.sha256(OTHER).hexdigest(), "etag": '"1"'}))
    assert fetch(hub, target) == SHA256
    assert ranges(hub) == [None]


@pytest.mark.parametrize(
    "note", ["{", "[]", '{"sha256": 3, "etag": 4}', '{"sha256": null, "etag": "a\\r\\nX: y"}', ""]
)
def test_a_damaged_note_begins_anew(hub, target, note):
    hub.put(PATH, DATA)
    target.parent.mkdir(parents=True)
    (target.parent / "file.safetensors.part").write_bytes(OTHER[:5000])
    (target.parent / "file.safetensors.part.json").write_text(note)
    assert fetch(hub, target, sha256=None) == SHA256
    assert ranges(hub) == [None]


def test_a_part_that_is_whole_is_not_asked_for_again(hub, target):
    target.parent.mkdir(parents=True)
    (target.parent / "file.safetensors.part").write_bytes(DATA)
    (target.parent / "file.safetensors.part.json").write_text(json.dumps({"sha256": SHA256, "etag": None}))
    assert fetch(hub, target) == SHA256
    assert hub.asked == []
    hub.put(PATH, DATA)
    target.replace(target.parent / "file.safetensors.part")
    (target.parent / "file.safetensors.part.json").write_text(json.dumps({"sha256": SHA256, "etag": None}))
    assert fetch(hub, target, bytes=None) == SHA256
    assert ranges(hub) == ["bytes=300000-"]


@pytest.mark.parametrize("there", [None, b"what was here before"])
@pytest.mark.parametrize(
    ("how", "known", "says"),
    [
        ({"data": OTHER}, {}, f"sha256 is .*, and {SHA256} was expected"),
        ({"data": DATA[:-1]}, {}, "has 299999 bytes at The Hub, not 300000"),
        ({"data": b"<html>log in</html>"}, {}, "or this is no file but a message"),
        ({"claimed": 300_001}, {"bytes": None, "sha256": None}, "cannot be fetched"),
        ({"claimed": -1}, {"bytes": None, "sha256": None}, "does not say how long"),
        ({"always": 404}, {}, r"has no http://.*/some/file \(status 404\)"),
        ({"always": 401}, {"login": "Log in so."}, r"status 401\)\. Log in so\."),
        ({"always": 403}, {"login": "Accept so."}, r"status 403\)\. Accept so\."),
        ({"always": 500}, {}, r"cannot be fetched \(status 500\)"),
        ({"always": 418}, {}, "with status 418"),
        (
            {"redirect": "http://models.example/file"},
            {},
            "redirects to http://models.example/file, which is not HTTPS",
        ),
        ({"redirect": "ftp://127.0.0.1/file"}, {}, "redirects to"),
        ({"redirect": "file:///etc/passwd"}, {}, "redirects to"),
        ({"redirect": "http://[/file"}, {}, "an address that cannot be read"),
        ({"redirect": "/some/file"}, {}, "redirects to .* in a circle"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_is_not_right_leaves_no_trace(hub, target, there, how, known, says):
    if there:
        target.parent.mkdir(parents=True)
        target.write_bytes(there)
    hub.put(PATH, **{"data": DATA, **how})
    with pytest.raises(DownloadRefused, match=says) as caught:
        fetch(hub, target, **known)
    assert "\n" not in str(caught.value)
    assert target.exists() == bool(there)
    if there:
        assert target.read_bytes() == there


def test_a_wrong_file_leaves_no_part(hub, target):
    hub.put(PATH, OTHER)
    with pytest.raises(DownloadRefused):
        fetch(hub, target)
    assert names(target) == []


def test_a_right_file_takes_the_place_of_a_wrong_one(hub, target):
    hub.put(PATH, DATA)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    fetch(hub, target)
    assert target.read_bytes() == DATA


def test_a_busy_server_is_asked_again(hub, target):
    hub.put(PATH, DATA, statuses=[503, 429, 502])
    assert fetch(hub, target) == SHA256


def test_a_long_pause_is_told(hub, target, monkeypatch):
    hub.put(PATH, DATA, statuses=[503, 503, 503])
    slept, told = [], []
    monkeypatch.setattr("piying.core.http.time.sleep", slept.append)
    fetch(hub, target, RetryPolicy(timeout=5, pauses=(1, 3, 8), notify=told.append))
    assert [pause for pause in slept if pause >= 1] == [1, 3, 8]
    assert told == [f"{hub.url}{PATH}: status 503. Trying again in 8 s."]


def test_a_server_that_is_not_there(target):
    with running_hub() as gone:
        pass
    with pytest.raises(DownloadRefused, match="cannot be fetched .*refused"):
        fetch(gone, target)


def test_a_redirect_is_followed_and_the_token_stays_behind(hub, target):
    with running_hub() as store:
        store.put("/stored", DATA, cuts=[50_000])
        hub.put(PATH, b"", redirect=store.url + "/stored?signature=secret")
        assert fetch(hub, target, token="hf_secret") == SHA256
    assert [asked.headers["authorization"] for asked in hub.asked] == ["Bearer hf_secret"] * 2
    assert len(store.asked) == 2
    assert not any("authorization" in asked.headers for asked in store.asked)
    assert store.asked[1].headers["range"] == "bytes=50000-"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_on_the_same_host_takes_the_token_along(hub, target, status):
    hub.put("/renamed", DATA, token="hf_secret")
    hub.put(PATH, b"", redirect="/renamed", redirect_status=status)
    assert fetch(hub, target, token="hf_secret") == SHA256


def test_a_token_opens_what_is_closed(hub, target):
    hub.put(PATH, DATA, token="hf_secret")
    with pytest.raises(DownloadRefused, match="status 401"):
        fetch(hub, target)
    assert fetch(hub, target, token="hf_secret") == SHA256


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://huggingface.co/a", True),
        ("http://huggingface.co/a", False),
        ("http://127.0.0.1:8000/a", True),
        ("http://localhost/a", True),
        ("http://[::1]/a", True),
        ("http://127.0.0.1.example/a", False),
        ("http://localhost@example/a", False),
        ("http://[/a", False),
        ("file:///etc/passwd", False),
        ("ftp://127.0.0.1/a", False),
    ],
)
def test_http_only_on_this_machine(url, allowed):
    assert is_allowed(url) is allowed


def test_an_address_that_is_not_https_is_not_asked(target):
    with pytest.raises(DownloadRefused, match="is not HTTPS"):
        transfer(RemoteFile("http://models.example/file"), target, policy=QUICK)


def test_a_full_disk_keeps_the_part(hub, target, monkeypatch):
    hub.put(PATH, DATA)
    write = fetch_part.PartialFile.write

    class FullFile:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, chunk):
            if self._file.tell() + len(chunk) > 200_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(chunk)

    def full(part, chunk):
        part._file = part._file if isinstance(part._file, FullFile) else FullFile(part._file)
        write(part, chunk)

    monkeypatch.setattr(fetch_part.PartialFile, "write", full)
    hub.files[PATH].cuts = [150_000]
    with pytest.raises(PiyingError, match="disk of .* is full. Make room") as caught:
        fetch(hub, target)
    assert not isinstance(caught.value, DownloadRefused), "no other hub makes room"
    assert not target.exists()
    size = target.with_name(target.name + ".part").stat().st_size
    assert 150_000 <= size <= 200_000
    monkeypatch.setattr(fetch_part.PartialFile, "write", write)
    assert fetch(hub, target) == SHA256
    assert hub.asked[-1].headers["range"] == f"bytes={size}-"


def test_a_folder_that_cannot_be_written(hub, tmp_path):
    hub.put(PATH, DATA)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PiyingError, match="cannot be written"):
        fetch(hub, tmp_path / "file" / "model.safetensors")


OTHER_PROCESS = """
import importlib, pathlib, sys, types
package = types.ModuleType("pack"); package.__path__ = [sys.argv[1]]; sys.modules["pack"] = package
transfer = importlib.import_module("pack.core.download.transfer")
remote = transfer.RemoteFile(sys.argv[2], int(sys.argv[3]), sys.argv[4])
print(transfer.transfer(remote, pathlib.Path(sys.argv[5]), on_wait=lambda: print("waiting", flush=True)))
"""


def test_two_processes_fetch_it_once(hub, target):
    """The first holds the file half done until the second says that it waits."""
    hub.put(PATH, DATA, stalls=[100_000])
    command = [sys.executable, "-c", OTHER_PROCESS, ROOT, hub.url + PATH, str(len(DATA)), SHA256, target]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    deadline = time.monotonic() + 20
    lines: list[str] = []
    readers = [threading.Thread(target=lambda p=p: lines.extend(p.stdout)) for p in processes]
    for reader in readers:
        reader.start()
    while "waiting\n" not in lines and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lines == ["waiting\n"]
    hub.released.set()
    for process, reader in zip(processes, readers, strict=True):
        assert process.wait(20) == 0
        reader.join()
    assert sorted(lines) == sorted([f"{SHA256}\n", f"{SHA256}\n", "waiting\n"])
    assert target.read_bytes() == DATA
    assert names(target) == ["file.safetensors"]
    assert ranges(hub) == [None, "bytes=100000-"]


def test_a_killed_process_leaves_a_part_that_the_next_one_goes_on_with(hub, target):
    hub.put(PATH, DATA, stalls=[100_000])
    command = [sys.executable, "-c", OTHER_PROCESS, ROOT, hub.url + PATH, str(len(DATA)), SHA256, target]
    process = subprocess.Popen(command)
    part = target.with_name(target.name + ".part")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    size = part.stat().st_size
    assert 0 < size <= 100_000
    hub.released.set()
    assert fetch(hub, target) == SHA256
    assert hub.asked[-1].headers["range"] == f"bytes={size}-"
    assert names(target) == ["file.safetensors"]


def test_the_system_tools_agree(hub, target):
    """Our hash is that of the bytes on the disk, counted by another program."""
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("there is no sha256sum here")
    hub.put(PATH, DATA, cuts=[1, 2, 3])
    digest = fetch(hub, target)
    printed = subprocess.run([tool, target], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == digest


def test_headers_without_end_are_not_waited_for(target):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                while connection.send(b"HTTP/1.1 100 Continue\r\n\r\n"):
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(DownloadRefused, match="cannot be fetched"):
            remote = RemoteFile(f"http://127.0.0.1:{server.getsockname()[1]}/file", 3, SHA256)
            transfer(remote, target, policy=RetryPolicy(timeout=0.3, pauses=()))
    assert time.monotonic() - started < 5


def test_a_redirect_leads_to_https_and_from_elsewhere_never_to_this_machine():
    for url, target, allowed in (
        ("https://hub.example/f", "https://cdn.example/f", True),
        ("https://hub.example/f", "http://cdn.example/f", False),
        ("https://hub.example/f", "http://127.0.0.1:8188/restart", False),
        ("https://hub.example/f", "https://localhost/f", False),
        ("https://localhost/f", "http://127.0.0.1/f", False),
        ("http://127.0.0.1/f", "http://127.0.0.1:81/f", True),
        ("http://127.0.0.1/f", "http://hub.example/f", False),
    ):
        assert may_redirect(url, target) is allowed, (url, target)


def test_a_file_of_unknown_length_stops_at_the_size_it_has_to_have(hub, target):
    """The checksum decides whether what came till there is the file; without one nobody could tell."""
    hub.put(PATH, DATA + OTHER, claimed=-1)
    seen = []
    assert transfer(remote(hub), target, progress=seen.append, policy=QUICK) == SHA256
    assert max(seen) == len(DATA) and target.read_bytes() == DATA
    target.unlink()
    for known, reason in ({"sha256": None}, "sends more than the 300000 bytes"), ({"bytes": None}, "not say how long"):
        with pytest.raises(DownloadRefused, match=reason):
            fetch(hub, target, **known)
        assert names(target) == []
    hub.put(PATH, OTHER + DATA, claimed=-1)
    with pytest.raises(DownloadRefused, match="is not the right file"):
        transfer(remote(hub), target, progress=seen.append, policy=QUICK)
    assert max(seen) == len(DATA) and names(target) == []
    assert len(hub.asked) == 4, "what is wrong is not fetched again"


def test_a_file_that_comes_compressed_is_refused(hub, target):
    hub.put(PATH, gzip.compress(DATA), encoding="gzip")
    with pytest.raises(DownloadRefused, match="sends .* compressed as gzip"):
        fetch(hub, target, bytes=None, sha256=None)
    assert names(target) == []


def test_a_hub_that_sends_next_to_nothing_is_given_up(target, monkeypatch):
    """A byte now and then is no progress, however long it goes on."""
    monkeypatch.setattr(transfers, "LONGEST_LISTING", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=drip, args=(connection,), daemon=True).start()

        def drip(connection):
            with contextlib.suppress(OSError):
                connection.recv(1000)
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
                while connection.send(b"x"):
                    time.sleep(0.02)

        threading.Thread(target=serve, daemon=True).start()
        started = time.monotonic()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with pytest.raises(DownloadRefused, match="slower than 1024 bytes per second"):
            transfer(RemoteFile(address, 300_000, SHA256), target, policy=RetryPolicy(timeout=0.2, pauses=(0, 0)))
        with pytest.raises(DownloadRefused, match=r"cannot be fetched \(not whole after 0 seconds\)"):
            fetch_json(RemoteFile(address), RetryPolicy(timeout=1, pauses=()))
    assert time.monotonic() - started < 5


def test_how_far_an_address_reaches():
    machine = "127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1 0.0.0.0 :: 169.254.169.254 fe80::1%eth0 localhost a.localhost."
    network = "10.0.0.1 192.168.1.1 172.16.0.1 100.64.0.1 fd00::1 ::ffff:10.1.1.1 240.0.0.1"
    internet = "93.184.215.14 2606:2800::1 hub.example 198.18.0.7 localhost.example"
    for reach, hosts in zip(Reach, (internet, network, machine), strict=True):
        assert {host: reach_of(host) for host in hosts.split()} == dict.fromkeys(hosts.split(), reach)


@pytest.mark.parametrize("known", [None, SHA256])
def test_a_damaged_partial_file_never_becomes_part_of_a_file(hub, target, known):
    def stop(done):
        if done >= 100_000:
            raise KeyboardInterrupt

    hub.put(PATH, DATA, stalls=[100_000])
    with pytest.raises(KeyboardInterrupt):
        transfer(remote(hub, sha256=known), target, progress=stop, policy=QUICK)
    hub.released.set()
    part = target.with_name(target.name + ".part")
    content = bytearray(part.read_bytes())
    assert len(content) == 100_000
    content[50_000] ^= 4
    part.write_bytes(content)
    assert fetch(hub, target, sha256=known) == SHA256
    assert target.read_bytes() == DATA and names(target) == ["file.safetensors"]
