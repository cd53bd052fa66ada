"""Loads the pack the way its two hosts do: by path, under a name of the host's choosing."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Many tests compare bits. Without this MKL chooses its kernels by where the operands lie, on AMD's processors at
# least, and a weight that is a view of a mapped file then gives other last bits than the same numbers elsewhere.
os.environ.setdefault("MKL_CBWR", "AVX2")

# Under pytest-xdist each worker has a core: more threads than cores take turns.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore SIGINT, what `nohup` starts SIGHUP, and so do their children: tests end them so.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def load_pack(name: str = "piying") -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if "piying" not in sys.modules:
    load_pack()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """With -n auto one worker for each core, hyperthreads included, as far as their memory goes."""
    return max(1, min(os.cpu_count() or 1, 4, psutil.virtual_memory().total // (4 << 30)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one worker: they share what they made."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """Leave out what takes tens of GB of disk and many minutes, unless it is asked for by its name."""
    if "realsize" in (config.getoption("-m") or ""):
        return
    reason = "models of the published sizes take tens of GB and many minutes: python -m pytest -m realsize"
    for item in items:
        if item.get_closest_marker("realsize"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """What a session's fixtures run keeps nothing for the person's own runs, and takes nothing from them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A result kept by one test must not stand in for the work of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


IDLE_READING = 0.017  # seconds of processor time that reading() takes on an idle core of an Intel Xeon


def reading(text: str) -> float:
    """Return the processor time in which Python reads some JSON and looks through it."""
    begun = time.process_time()
    sum(len(entry["name"].split(".")) for entry in json.loads(text))
    return time.process_time() - begun


@pytest.fixture
def slowness():
    """Return how many times longer than on an idle machine of ours Python takes now, at least 1."""
    text = json.dumps([{"name": f"block.{i}.weight", "shape": [i, 4], "at": i / 3} for i in range(20_000)])
    return lambda: max(1.0, min(reading(text) for _ in range(5)) / IDLE_READING)


@pytest.fixture
def within(slowness):
    """Hold a block to seconds of processor time of an idle machine; what other tests left is not looked through."""

    @contextlib.contextmanager
    def block(seconds: float):
        gc.collect()
        gc.freeze()
        before = slowness()
        begun = time.process_time()
        try:
            yield
            used = time.process_time() - begun
        finally:
            gc.unfreeze()
        assert used < seconds * max(before, slowness())

    return block
