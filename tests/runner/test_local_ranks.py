"""Ranks that a process starts beside itself: what they make, how long they stay, and what becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.executor.model_cache import evict_models
from piying.core.parallel import local_ranks
from piying.core.parallel.cards import SHARE_VARIABLE, local_cards
from piying.core.wan.prediction import Prediction
from piying.runner.errors import NodeFailed
from piying.runner.session import Session
from piying.tests.runner.conftest import ROOT
from piying.tests.runner.ranks_driver import frames_of, vace
from piying.tests.runner.test_parallel import ENVIRONMENT, ROUNDING

pytestmark = pytest.mark.skipif(
    os.name == "nt" or not torch.distributed.is_available(), reason="signals of Unix, and torch.distributed"
)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that are started
    torch.set_num_threads(1)
    session = Session(device="cpu", output=tmp_path, input=tmp_path, cache=tmp_path / "alone")
    yield session
    session.close()


@pytest.fixture
def shared(tmp_path, alone):
    """A session whose runs two ranks share by prompts, and what it calls while it runs."""
    calls = []
    session = Session(
        device="cpu",
        output=tmp_path,
        input=tmp_path,
        cache=tmp_path / "shared",
        cards=local_cards(2, "prompts", "cpu"),
        check_cancelled=lambda: calls and calls[0](),
    )
    yield session, calls
    session.close()
    assert running() == []


def running() -> list[psutil.Process]:
    """Return the ranks that this process has started."""
    return [one for one in psutil.Process().children() if "local_rank.py" in " ".join(one.cmdline())]


def wait_until(is_so, seconds=30.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def acting(act) -> Any:
    """Return predictions that act once, in the middle of a step."""
    predict, done = Prediction.flows_of, []

    def flows_of(self, step, state, when, branches):
        if step.index == 1 and not done:
            done.append(step)
            act()
        return predict(self, step, state, when, branches)

    return flows_of


def test_what_they_make_and_how_long_they_stay(alone, shared, monkeypatch):
    session, calls = shared
    assert torch.equal(frames_of(session, vace(seed=1)), frames_of(alone, vace(seed=1)))
    (rank,) = running()
    assert torch.equal(frames_of(session, vace(seed=2)), frames_of(alone, vace(seed=2)))
    assert running() == [rank]
    evict_models()  # as ComfyUI's button that frees memory
    assert running() == [] and not torch.distributed.is_initialized()

    def fill() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    # Out of memory, while the other rank waits: both go on with the next plan, of which the weights are of a byte.
    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "flows_of", acting(fill))
        made = frames_of(session, vace(seed=3))
    assert 0 < (made - frames_of(alone, vace(seed=3))).abs().max() < 0.2
    (rank,) = running()

    def cancel() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Prediction, "flows_of", acting(lambda: calls.append(cancel)))
        frames_of(session, vace(seed=4))
    assert running() == [] and not rank.is_running()
    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(NodeFailed, match=r"Rank 1 of 2 \(cpu, process \d+\) has died"):
        patch.setattr(Prediction, "flows_of", acting(lambda: running()[0].kill()))
        frames_of(session, vace(seed=4))
    assert running() == []


def test_a_loader_asks_for_them(alone, monkeypatch, caplog):
    """On a machine of one device a run goes on with that; where it may be shared, weights are sharded on it."""
    flow = vace(memory="sharded")
    flow["load"]["inputs"]["cards"] = 2
    assert torch.equal(frames_of(alone, flow), frames_of(alone, vace())) and running() == []
    assert "cards is 2, and this machine has the processor alone: the run goes on with that." in caplog.text
    monkeypatch.setenv(SHARE_VARIABLE, "1")
    flow["sample"]["inputs"]["seed"] = 8
    made = frames_of(alone, flow)
    assert len(running()) == 1
    monkeypatch.delenv(SHARE_VARIABLE)
    flow["load"]["inputs"]["cards"] = 1
    assert 0 < (made - frames_of(alone, flow)).abs().max() < ROUNDING


def test_they_end_with_a_process_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "runner", "workflows/t2v.json", "--cards", "2", "--device", "cpu"]
    command += ["--output", str(tmp_path), "--set=PiyingVACESample.steps=500"]
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-3, stderr=-3)
    try:
        wait_until(lambda: any(b"message/" in one.read_bytes() for one in tmp_path.glob("piying-ranks-*/store")), 60)
        (rank,) = (one for one in psutil.Process(run.pid).children() if "local_rank.py" in " ".join(one.cmdline()))
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    wait_until(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not list(tmp_path.glob("piying-ranks-*")), seconds=5)


def test_a_rank_that_cannot_begin_is_told_at_once(shared, monkeypatch):
    session, _ = shared
    monkeypatch.setattr(local_ranks, "SCRIPT", Path(tempfile.gettempdir()) / "not there.py")
    with pytest.raises(NodeFailed, match=r"Rank 1 of 2 \(cpu\) ended as it began, with code 2"):
        frames_of(session, vace())


def test_a_torch_without_distributed_is_told(shared, monkeypatch):
    session, _ = shared
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(NodeFailed, match="built without torch.distributed.*set cards to 1"):
        frames_of(session, vace())


def test_more_cards_than_there_are(monkeypatch):
    with pytest.raises(PiyingError, match="--cards 2: this machine has no card"):
        local_cards(2, "auto", "auto")
    assert local_cards(3, "auto", "cpu").devices == ("cpu",) * 3
