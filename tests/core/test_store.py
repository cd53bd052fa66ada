"""What is kept between runs saves time, and never stands in the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from piying.core import disk_cache
from piying.core.executor import model_cache
from piying.core.executor.placement import resident
from piying.core.executor.tensor_cache import TensorCache
from piying.core.host.headless import HeadlessHost

KEY = {"encoder": "umt5", "prompt": "一只红色的球"}


def test_what_was_put_comes_back(tmp_path):
    store = TensorCache(tmp_path / "a" / "b", 4)
    states = torch.randn(2, 3, dtype=torch.bfloat16).T
    store.put(KEY, {"states": states})
    assert torch.equal(TensorCache(tmp_path / "a" / "b", 4).get(KEY)["states"], states)
    assert store.get({**KEY, "prompt": "一只蓝色的球"}) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_file_counts_as_absent(tmp_path, content):
    store = TensorCache(tmp_path, 4)
    store.put(KEY, {"states": torch.ones(2)})
    next(tmp_path.glob("*.safetensors")).write_bytes(content)
    assert not store.get(KEY)
    store.put(KEY, {"states": torch.ones(2)})
    assert torch.equal(store.get(KEY)["states"], torch.ones(2))


def test_the_least_recently_used_goes(tmp_path):
    store = TensorCache(tmp_path, 2)
    for age, name in enumerate("abc"):
        store.put({"prompt": name}, {"states": torch.ones(1)})
        for path in tmp_path.glob("*.safetensors"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
        if age == 1:
            assert store.get({"prompt": "a"}) is not None
    assert [name for name in "abc" if store.get({"prompt": name})] == ["a", "c"]


def test_a_folder_that_cannot_be_made_is_gone_without(tmp_path):
    (tmp_path / "file").write_text("")
    store = TensorCache(tmp_path / "file" / "folder", 2)
    store.put(KEY, {"states": torch.ones(1)})
    assert store.get(KEY) is None


def test_a_full_disk_costs_nothing_but_time(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_cache, "_trailer", full)
    TensorCache(tmp_path, 2).put(KEY, {"states": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    store = TensorCache(tmp_path, 2)
    monkeypatch.setattr(Path, "replace", full)
    store.put(KEY, {"states": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_resident_gives_the_same_tensors_back():
    """The device is torch's meta device: a place that is not host memory, on every machine."""
    layer = torch.nn.Linear(3, 2)
    layer.register_buffer("table", torch.ones(2))
    before = {name: tensor.data_ptr() for name, tensor in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), resident([layer], "meta", HeadlessHost()):
        assert all(tensor.is_meta for tensor in layer.state_dict().values())
        raise RuntimeError("stop")
    assert {name: tensor.data_ptr() for name, tensor in layer.state_dict().items()} == before


class Shelf:
    """The slots as one test sees them."""

    def __init__(self):
        self.read = []

    def get(self, slot, key, size=0, beside=0):
        return model_cache.cached_model(
            slot, key, lambda: self.read.append((slot, key)) or torch.nn.Linear(2, 2), size=size, beside=beside
        )


@pytest.fixture
def shelf():
    model_cache.evict_models()
    yield Shelf()
    model_cache.evict_models()


def test_one_model_a_slot(shelf):
    first = shelf.get("a", 1)
    assert shelf.get("a", 1) is first
    shelf.get("a", 2)
    assert shelf.get("a", 1) is not first
    assert shelf.read == [("a", 1), ("a", 2), ("a", 1)]
    assert model_cache.cached_bytes() == 6 * 4


def test_others_make_room_for_the_work_with_a_model_that_is_there(shelf, monkeypatch):
    import psutil

    free = iter([100, 100, 10, 100])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": next(free)}))
    shelf.get("a", 1, 50)
    shelf.get("b", 1, 50)
    shelf.get("c", 1, 50)
    shelf.get("b", 1, 50, beside=30)
    assert shelf.read == [("a", 1), ("b", 1), ("c", 1)]
    free = iter([100])
    shelf.get("a", 1, 50)
    assert shelf.read[-1] == ("a", 1)


def test_the_least_recently_used_slot_makes_room(shelf, monkeypatch):
    import psutil

    free = iter([100, 10, 100])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": next(free)}))
    shelf.get("a", 1, 50)
    shelf.get("b", 1, 50)
    shelf.get("a", 1, 50)
    shelf.get("c", 1, 50)
    shelf.get("a", 1)
    assert shelf.read == [("a", 1), ("b", 1), ("c", 1)]
    free = iter([100])
    shelf.get("b", 1, 50)
    assert shelf.read[-1] == ("b", 1)
