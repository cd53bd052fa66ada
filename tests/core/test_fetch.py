"""Whole models: which hub is asked, what is remembered, and what a person is told."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path

import pytest
from piying.core.download import hub_session
from piying.core.download import jobs as fetching
from piying.core.download.checksums import LEDGER, Ledger, LedgerEntry, edit_ledger, file_lock
from piying.core.download.cli import Console, size_text, time_text
from piying.core.download.hub_session import HubSession
from piying.core.download.hubs import HubFile, HuggingFace, ModelScope
from piying.core.download.jobs import fetch
from piying.core.download.manifest import ListedFile, ListedModel, Source, safe_path
from piying.core.download.transfer import DownloadRefused
from piying.core.download.verify import is_whole_safetensors
from piying.core.errors import PiyingError
from piying.core.http import RetryPolicy
from piying.tests.install.hub import running_hub

DATA, OTHER = (random.Random(seed).randbytes(20_000) for seed in (1, 2))
QUICK = RetryPolicy(timeout=5, pauses=(0,))
FILE = "/Org/Model/resolve/main/weights.safetensors"
REPOSITORY = "/Org/Folder/resolve/main/"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(hub_session, "hugging_face", HuggingFace)
    monkeypatch.setenv("HF_HOME", "/nowhere")
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url + "/scope")
        yield running


def model(*files):
    return ListedModel("model", "wan_vace", "model", "Model", "MIT", 6, files)


def one_file(size=None, sha256=None):
    return model(
        ListedFile(
            "vae/x.safetensors", size, sha256, {"huggingface": Source("Org/Model", "main", "weights.safetensors")}
        )
    )


def repository(*patterns):
    return model(
        ListedFile("LLM/Folder/", None, None, {"huggingface": Source("Org/Folder", "main")}, patterns or ("*",))
    )


class Log:
    def __init__(self):
        self.lines, self.steps = [], []

    def message(self, line):
        self.lines.append(line)

    def progress(self, name, done, total):
        self.steps.append((name, done, total))


def test_the_progress_and_the_files_are_told(hub, tmp_path):
    hub.put(FILE, DATA)
    log = Log()
    assert fetch([one_file()], tmp_path, listener=log, policy=QUICK) == [tmp_path / "vae/x.safetensors"]
    assert log.steps[-1] == ("vae/x.safetensors", len(DATA), len(DATA))
    assert log.lines[-1] == f"1 files are in {tmp_path}, 1 of them new."


def test_a_report_may_stop_it(hub, tmp_path):
    hub.put(FILE, DATA)

    class Cancelled(Exception):
        pass

    class Impatient(Log):
        def progress(self, name, done, total):
            if done:
                raise Cancelled

    with pytest.raises(Cancelled):
        fetch([one_file()], tmp_path, listener=Impatient(), policy=QUICK)
    assert (tmp_path / "vae/x.safetensors.part").stat().st_size > 0
    fetch([one_file()], tmp_path, policy=QUICK)
    assert (tmp_path / "vae/x.safetensors").read_bytes() == DATA


@pytest.mark.parametrize("free", [10_000, 20_000, 0])
def test_a_disk_without_room_is_found_before(hub, tmp_path, monkeypatch, free):
    hub.put(FILE, DATA)
    monkeypatch.setattr(fetching, "SPARE_BYTES", 1000)
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(PiyingError, match=r"0\.0 GB are to come and the disk of .* has .* free. Make room"):
        fetch([one_file()], tmp_path / "new" / "folder", policy=QUICK)
    assert hub.asked_for(FILE) == []
    usage.free = 21_000
    assert fetch([one_file()], tmp_path / "new" / "folder", policy=QUICK)


def test_what_is_here_of_a_file_needs_no_room(hub, tmp_path, monkeypatch):
    hub.put(FILE, DATA, cuts=[15_000, 0])
    with pytest.raises(DownloadRefused):
        fetch([one_file()], tmp_path, policy=QUICK)
    monkeypatch.setattr(fetching, "SPARE_BYTES", 0)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5_000}))
    assert fetch([one_file()], tmp_path, policy=QUICK)


def test_the_first_hash_is_held_against_what_comes_later(hub, tmp_path):
    served = hub.put(FILE, DATA, sha256=None)
    fetch([one_file()], tmp_path, policy=QUICK)
    first = Ledger.read(tmp_path).files["vae/x.safetensors"]
    served.data = OTHER
    (tmp_path / "vae/x.safetensors").unlink()
    with pytest.raises(DownloadRefused, match=f"and {first.sha256} was expected"):
        fetch([one_file()], tmp_path, policy=QUICK)
    served.sha256 = ""
    with pytest.raises(DownloadRefused, match=f"is another file at Hugging Face .* remove its entry from {LEDGER}"):
        fetch([one_file()], tmp_path, policy=QUICK)
    assert not (tmp_path / "vae/x.safetensors").exists()
    with edit_ledger(tmp_path) as ledger:
        del ledger.files["vae/x.safetensors"]
    fetch([one_file()], tmp_path, policy=QUICK)
    assert (tmp_path / "vae/x.safetensors").read_bytes() == OTHER


def test_the_manifest_is_held_above_the_hub(hub, tmp_path):
    """Whoever changes the repository changes its listing too."""
    hub.put(FILE, OTHER)
    with pytest.raises(DownloadRefused, match="is not the right file"):
        fetch([one_file(len(DATA), "0" * 64)], tmp_path, policy=QUICK)


@pytest.mark.parametrize(
    "name",
    [
        *("../escape", "/etc/passwd", "a/../../b", "C:/windows", "a\\..\\b", "", "a\0b", "con:stream", "//h/s"),
        *(
            "CON",
            "aux.json",
            "a/nul",
            "a/CONOUT$",
            "a/com¹.safetensors",
            "lpt9 .txt/x",
            "a ",
            "a.",
            "b./a",
            "a\nb",
            "\x1b]0;p\x07.json",
            "\u202ea",
            "\ud800",
            "a" * 5000,
        ),
        *("x.part", "a/x.part.json", "x.part.lock", LEDGER),
    ],
)
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(PiyingError, match="leaves its folder"):
        safe_path(name)


def test_a_listing_that_leaves_the_folder_fetches_nothing(hub, tmp_path, monkeypatch):
    hub.put(REPOSITORY + "good.json", b"{}")
    monkeypatch.setattr(HuggingFace, "listing", lambda *_: [HubFile("a", 1, None), HubFile("../b", 1, None)])
    with pytest.raises(PiyingError, match="leaves its folder"):
        fetch([repository()], tmp_path, policy=QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"siblings": 3}',
        b'{"siblings": [{"size": 1}]}',
        b'{"siblings": ["x"]}',
        b'{"siblings": [{"rfilename": 3}]}',
        b"[" * 200_000,
    ],
)
def test_a_listing_that_is_none(hub, tmp_path, answer):
    hub.put("/api/models/Org/Folder/revision/main", answer)
    with pytest.raises(DownloadRefused, match="Hugging Face"):
        fetch([repository()], tmp_path, policy=QUICK)


def test_a_repository_without_what_is_needed(hub, tmp_path):
    hub.put(REPOSITORY + "README.md", b"moved")
    with pytest.raises(DownloadRefused, match="lists no file of Org/Folder that is needed"):
        fetch([repository("*.safetensors")], tmp_path, policy=QUICK)


def test_a_hub_that_refuses_is_named_before_the_next_is_asked(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    hub.put("/api/models/Org/Folder/revision/main", b"{}")
    hub.put("/models/Org/Folder/resolve/master/config.json", b"{}")
    (file,) = repository("*.json").files
    both = replace(file, sources={**file.sources, "modelscope": Source("Org/Folder", "master")})
    told = []
    policy = replace(QUICK, notify=told.append)
    (found,) = fetching.downloads_of(both, HubSession(policy=policy), tmp_path, Ledger.read(tmp_path))
    assert found.path.endswith("config.json")
    assert len(told) == 1 and told[0].startswith("Hugging Face") and told[0].endswith("Asking the next hub.")


def test_a_hub_that_was_not_chosen_is_not_asked(hub, tmp_path):
    hub.put(FILE, DATA)
    with pytest.raises(PiyingError, match="is not on ModelScope. Leave --source out"):
        fetch([one_file()], tmp_path, source="modelscope", policy=QUICK)
    assert hub.asked == []


def test_modelscope_lists_a_hash_for_every_file(hub, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    served = hub.put("/models/Org/Folder/resolve/master/config.json", b"{}")
    (file,) = ModelScope().listing(Source("Org/Folder", "master"), QUICK)
    assert file == HubFile("config.json", 2, served.listed_hash())


def test_a_damaged_list_of_hashes_is_said_and_kept(hub, tmp_path):
    (tmp_path / LEDGER).write_text('{"files": {"a": 1}}')
    with pytest.raises(PiyingError, match="cannot be read .*Bring it back"):
        fetch([one_file()], tmp_path, policy=QUICK)
    assert (tmp_path / LEDGER).read_text() == '{"files": {"a": 1}}'


def test_no_flipped_bit_changes_what_the_ledger_says_of_a_file(tmp_path, caplog):
    """The entry is left out, which is said, or the ledger is refused; other entries stay as they are."""
    sizes = {"vae/wan.safetensors": 7, "LLM/a/config.json": 1234, "loras/x.safetensors": 10**9}
    entries = {name: LedgerEntry(size, "0f" * 32, "huggingface:Org/Model") for name, size in sizes.items()}
    with edit_ledger(tmp_path) as ledger:
        ledger.files.update(entries)
        ledger.repositories["LLM/a/"] = ["config.json"]
    path, draw, refused = tmp_path / LEDGER, random.Random(0), 0
    good = path.read_bytes()
    assert Ledger.read(tmp_path).files == entries
    for _ in range(500):
        damaged = bytearray(good)
        damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        caplog.clear()
        try:
            found = Ledger.read(tmp_path).files
        except PiyingError:
            refused += 1
            continue
        assert found.items() <= entries.items()
        assert len(found) == len(entries) or (len(found) == len(entries) - 1 and "is left out" in caplog.text)
    assert refused < 250


def test_a_ledger_of_an_earlier_version_is_read(tmp_path):
    entry = LedgerEntry(3, "0f" * 32, "modelscope:Org/Model")
    stored = {"bytes": 3, "sha256": "0f" * 32, "source": "modelscope:Org/Model"}
    content = {"schema": 1, "files": {"vae/x.safetensors": stored}, "repositories": {}}
    (tmp_path / LEDGER).write_text(json.dumps(content))
    assert Ledger.read(tmp_path).files == {"vae/x.safetensors": entry}


def _add(root, number):
    for index in range(20):
        with edit_ledger(Path(root)) as ledger:
            ledger.files[f"{number}/{index}"] = LedgerEntry(1, "0" * 64, "here")


def test_processes_that_remember_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    workers = [context.Process(target=_add, args=(str(tmp_path), number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert len(Ledger.read(tmp_path).files) == 60
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]


def test_a_lock_is_let_go_where_its_holder_fails(tmp_path):
    with pytest.raises(ValueError, match="inside"), file_lock(tmp_path / "lock"):
        raise ValueError("inside")
    with file_lock(tmp_path / "lock", on_wait=lambda: pytest.fail("nobody holds it")):
        pass


def tensors(data_bytes, claimed=None, header=None):
    entry = {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, claimed or data_bytes]}
    text = header if header is not None else json.dumps({"__metadata__": {"a": "b"}, "x": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (tensors(100), True),
        (tensors(100)[:-1], False),
        (tensors(100) + b"x", False),
        (tensors(100, claimed=101), False),
        (b"", False),
        (b"\0" * 8, False),
        ((1 << 63).to_bytes(8, "little") + b"{}", False),
        (tensors(5, header=b"[1]"), False),
        (tensors(5, header=b'{"x": {"data_offsets": []}}'), False),
        (tensors(5, header=b"not json"), False),
        (tensors(0, header=b"[" * 100_000), False),
    ],
)
def test_a_safetensors_file_is_whole_or_not(tmp_path, content, whole):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert is_whole_safetensors(path) is whole


# The line that moves


class Screen:
    def __init__(self, is_terminal):
        self.text, self.now = "", 100.0
        self.console = Console(self.write, is_terminal, lambda: self.now)

    def write(self, text):
        self.text += text


def test_a_terminal_shows_speed_and_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    screen = Screen(is_terminal=True)
    for done in range(0, 1_000_000_000, 50_000_000):
        screen.console.progress("vae/x.safetensors", done, 4_000_000_000)
        screen.now += 0.5
    states = screen.text.split("\r")
    assert states[0] == ""
    assert states[-1].split("  ")[:5] == [
        "vae/x.safetensors",
        "23 %",
        "950.0 MB of 4.0 GB",
        "100.0 MB/s",
        "0:30 left",
    ]
    assert {len(state) for state in states[1:]} == {99}
    screen.console.message("done")
    assert screen.text.endswith("\r" + " " * 99 + "\rdone\n")


def test_the_speed_is_that_of_the_last_seconds():
    screen = Screen(is_terminal=True)
    for done, seconds in ((0, 0), (1000, 1), (1000, 100), (2000, 5), (4000, 5)):
        screen.now += seconds
        screen.console.progress("x", done, 10_000)
    assert "300 bytes/s" in screen.text.split("\r")[-1]


def test_a_pipe_gets_a_line_now_and_then():
    screen = Screen(is_terminal=False)
    for _ in range(130):
        screen.console.progress("x", round(screen.now - 100) * 1000, 1_000_000)
        screen.now += 0.5
    assert len(screen.text.splitlines()) == 2
    assert "\r" not in screen.text
    assert screen.text.startswith("x  3 %  30.0 kB of 1.0 MB  1.0 kB/s")


def test_a_file_that_begins_anew_shows_no_backward_speed():
    screen = Screen(is_terminal=True)
    screen.console.progress("x", 500_000, 1_000_000)
    screen.now += 1
    screen.console.progress("x", 0, 1_000_000)
    assert "-" not in screen.text


def test_sizes_and_times():
    sizes = (None, 0, 999, 1000, 253_815_318, 34_675_323_640)
    assert [size_text(size) for size in sizes] == ["?", "0 bytes", "999 bytes", "1.0 kB", "253.8 MB", "34.7 GB"]
    assert [time_text(seconds) for seconds in (0, 59.6, 3599, 3600, 36_061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "10:01:01",
    ]
