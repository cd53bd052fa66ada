"""Disk cache: no flipped bit and no cut gets through, in any of the caches; the least recently used entry goes."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time

import pytest
import torch
from piying.core import disk_cache
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.disk_cache import STALE_SECONDS, DiskCache, entry_name
from piying.core.executor.retry import FailedPlans
from piying.core.executor.tensor_cache import TensorCache
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.expand import AnswerCache
from piying.core.wan.family import WAN_VACE
from piying.core.wan.long.window_cache import FinishedWindow, WindowCache
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample

KEY = {"model": "umt5", "prompt": "一只红色的球", "sizes": (1, 2)}
DATA = random.Random(0).randbytes(3000)


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", ".bin", max_entries=3)


def test_what_was_put_comes_back(cache):
    for data in (DATA, b"", b"\0"):
        cache.put("name", data)
        assert cache.get("name") == data
        assert cache.find("name").read_bytes()[: len(data)] == data
    assert cache.get("other") is None and cache.find("other") is None


def test_a_name_is_that_of_the_values_in_any_order():
    assert entry_name({"a": 1, "b": (1, 2)}) == entry_name({"b": [1, 2], "a": 1})
    assert len({entry_name({"a": value}) for value in (1, "1", None, [1], 1.5)}) == 5
    assert len(entry_name({})) == 64


def flips(data, count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        bad = bytearray(data)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        yield bytes(bad)


def cuts(data, count, seed=0):
    return [data[: random.Random(seed + number).randrange(len(data))] for number in range(count)]


def test_no_flipped_bit_and_no_cut_gets_through(cache):
    cache.put("name", DATA)
    path = cache.path("name")
    good = path.read_bytes()
    for bad in (*flips(good, 500), *cuts(good, 100), good + b"\0", b"", good + good, DATA):
        for look in (cache.get, cache.find):
            path.write_bytes(bad)
            assert look("name") is None
            assert not path.exists(), "what is damaged is deleted"


def test_no_flipped_bit_of_several_chunks_gets_through(cache, monkeypatch):
    monkeypatch.setattr(disk_cache, "CHUNK", 256)
    cache.put("name", DATA)
    path = cache.path("name")
    good = path.read_bytes()
    assert cache.get("name") == DATA and cache.find("name") == path
    swapped = good[256:512] + good[:256] + good[512:]
    for bad in (swapped, *flips(good, 100)):
        for look in (cache.get, cache.find):
            path.write_bytes(bad)
            assert look("name") is None


@pytest.mark.skipif(os.name == "nt", reason="pipes in folders are Unix's")
def test_an_empty_folder_in_the_place_of_an_entry_makes_room(cache):
    cache.path("name").mkdir(parents=True)
    assert cache.get("name") is None
    cache.put("name", DATA)
    assert cache.get("name") == DATA


def test_what_is_no_file_is_absent_and_never_waited_for(cache):
    cache.folder.mkdir()
    os.mkfifo(cache.path("pipe"))
    cache.path("folder").mkdir()
    cache.path("loop").symlink_to(cache.path("loop"))
    for name in ("pipe", "folder", "loop"):
        assert cache.get(name) is None and cache.find(name) is None


def test_an_entry_does_not_pass_for_another(cache):
    cache.put("name", DATA)
    cache.path("name").rename(cache.path("other"))
    assert cache.get("other") is None


def test_a_large_entry_is_not_read_into_memory(tmp_path):
    DiskCache(tmp_path, ".bin").put("name", DATA)
    assert DiskCache(tmp_path, ".bin", largest=len(DATA)).get("name") == DATA
    assert DiskCache(tmp_path, ".bin", largest=len(DATA) - 1).get("name") is None


# Each kind of cache, as the pack uses it


def embeddings(folder):
    cache, tensors = TensorCache(folder, 8), {"states": torch.randn(4, 8, dtype=torch.bfloat16), "mask": torch.ones(4)}
    cache.put(KEY, tensors)

    def read():
        found = cache.get(KEY)
        return None if found is None else all(torch.equal(found[name], tensors[name]) for name in tensors)

    return read


def answers(folder):
    cache = AnswerCache(folder)
    cache.put(KEY, "a red ball 红球")

    def read():
        found = cache.get(KEY)
        return None if found is None else found == "a red ball 红球"

    return read


class Card:
    name, vram_total, vram_free = "card", 8 << 30, 7 << 30


def failures(folder):
    cache = FailedPlans(folder, Card(), ())
    cache.add("decode: fp32, resident")
    return lambda: cache.load() == {"decode: fp32, resident"} or None


def windows(folder):
    shelf, draw = WindowCache(folder), torch.Generator().manual_seed(0)
    window = FinishedWindow(
        torch.randint(0, 255, (5, 16, 16, 3), dtype=torch.uint8, generator=draw), torch.ones(1, 2, 3)
    )
    shelf.put("k", window)

    def read():
        if not shelf.has("k", 5, latents=True):
            return None
        found = shelf.get("k")
        return torch.equal(found.frames, window.frames) and torch.equal(found.latents, window.latents)

    return read


@pytest.mark.parametrize(
    ("make", "count"),
    [(embeddings, 200), (answers, 200), (failures, 200), (windows, 60)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_flipped_bit_makes_an_entry_of_any_kind_absent(tmp_path, make, count):
    read = make(tmp_path)
    assert read() is True
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        for bad in (*flips(good, count), *cuts(good, 10)):
            path.write_bytes(bad)
            assert read() is None
        path.write_bytes(good)
        assert read() is True


def test_latents_that_are_gone_make_a_window_that_needs_them_absent(tmp_path):
    windows(tmp_path)
    (tmp_path / "k.safetensors").unlink()
    assert WindowCache(tmp_path).has("k", 5)
    assert not WindowCache(tmp_path).has("k", 5, latents=True)


def test_a_tensor_file_of_an_earlier_version_is_absent(tmp_path):
    from safetensors.torch import save

    path = tmp_path / f"{entry_name(KEY)}.safetensors"
    path.write_bytes(save({"states": torch.ones(2)}))
    assert TensorCache(tmp_path, 2).get(KEY) is None


# What leaves


def aged(cache, *names):
    """Put entries, the first named the oldest, and return the names of those that are there."""
    for age, name in enumerate(names):
        cache.put(name, DATA)
        with_time(cache.path(name), age)


def with_time(path, seconds):
    os.utime(path, (seconds, seconds))


def names(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def test_the_least_recently_used_goes(cache):
    aged(cache, "a", "b", "c")
    assert cache.get("a") == DATA
    cache.put("d", DATA)
    assert names(cache) == ["a.bin", "c.bin", "d.bin"]


def test_bytes_are_counted_and_some_entries_stay(tmp_path):
    cache = DiskCache(tmp_path, ".bin", max_bytes=2 * (len(DATA) + disk_cache.TRAILER_BYTES))
    unlimited = DiskCache(tmp_path, ".bin")
    aged(unlimited, "a", "b", "c", "d", "e")
    (tmp_path / "other.txt").write_text("not of this cache")
    assert sorted(cache.evict(keep=["a"])) == ["b", "c"]
    assert names(cache) == ["a.bin", "d.bin", "e.bin", "other.txt"]


def test_what_a_killed_process_left_is_swept_up(cache):
    cache.put("a", DATA)
    old, new = (cache.folder / f".piying-1-{name}.unfinished" for name in ("old", "new"))
    old.touch()
    new.touch()
    with_time(old, time.time() - STALE_SECONDS - 60)
    cache.evict()
    assert names(cache) == [new.name, "a.bin"]


# What cannot be written


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "folder", ".bin", max_entries=1)
    cache.put("name", DATA)
    assert cache.get("name") is None and cache.find("name") is None and cache.evict() == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(cache, monkeypatch, error):
    def fail(*arguments):
        raise error

    cache.put("old", DATA)
    monkeypatch.setattr(disk_cache, "_trailer", fail)
    if isinstance(error, OSError):
        cache.put("name", DATA)
    else:
        with pytest.raises(KeyboardInterrupt):
            cache.put("name", DATA)
    with pytest.raises(type(error)), cache.writing("name") as path:
        path.write_bytes(DATA)
    assert names(cache) == ["old.bin"]


@pytest.mark.parametrize("changed", ["tokenizer", "scheduler"])
def test_what_else_decides_a_video_is_noticed_when_it_changes(tmp_path, changed):
    """Embeddings and latents of a run before are those of the tokenizer and the noise schedule that made them."""
    folder = tmp_path / "diffusers" / "mine"
    shutil.copytree(built_in("wan_vace").path, folder)
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu", cache=tmp_path / "cache")
    request = WanRequest("a red circle moves right", "", 32, 32, 5, steps=4, cfg=4.0, shift=5.0, seed=3)
    handle = ModelHandle(WAN_VACE, "diffusers/mine", precision="fp32")
    first = sample(handle, request, host)[0]
    if changed == "tokenizer":
        file = folder / "tokenizer" / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        words = content["model"]["vocab"]
        content["model"]["vocab"] = [*words[:10], *reversed(words[10:])]
    else:
        file = folder / "scheduler" / "scheduler_config.json"
        content = json.loads(file.read_text(encoding="utf-8")) | {"solver_order": 1}
    file.write_text(json.dumps(content), encoding="utf-8")
    found = sample(handle, request, host)[0]
    fresh_host = HeadlessHost(models=[tmp_path], chosen_device="cpu", cache=tmp_path / "empty")
    expected = sample(handle, request, fresh_host)[0]
    assert torch.equal(found, expected)
    assert not torch.equal(found, first)
