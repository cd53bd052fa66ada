"""Out of memory, wherever it happens, costs time and not the result."""

from __future__ import annotations

import json

import pytest
import torch
from piying.core.catalog.selection import HUNYUAN_DIT, WAN_VACE, ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor import execute_plan as carry_out
from piying.core.executor import model_cache as kept
from piying.core.executor.retry import is_out_of_memory
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.sample import sample as draw
from piying.core.planner.machine import synthetic
from piying.core.wan.request import VACERequest
from piying.core.wan.sample import sample
from torch.utils._python_dispatch import TorchDispatchMode

REQUEST = VACERequest("a red circle moves right", "", 64, 48, 5, steps=2, cfg=4.0, shift=5.0, seed=3)
EARLY = 20  # operations: the text encoder is being read
PICTURE = ImageRequest("a red circle", "", 64, 64, steps=2, cfg=3.0, seed=3)


@pytest.fixture(autouse=True)
def nothing_kept():
    kept.forget()
    yield
    kept.forget()


@pytest.fixture
def card(monkeypatch):
    """Plans are made for a card of 8 GB; the work is done on the CPU."""

    def use(vram_gb=8.0):
        monkeypatch.setattr(carry_out, "read_machine", lambda host: synthetic(vram_gb, 32.0))

    use()
    return use


class OutOfMemoryAt(TorchDispatchMode):
    """Counts torch's operations, and fails with one of them."""

    def __init__(self, fails_at=-1, times=1):
        super().__init__()
        self.count, self.fails_at, self.times = 0, fails_at, times

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.times and self.count >= self.fails_at >= 0:
            self.times -= 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 1 GiB for {func}.")
        return func(*args, **(kwargs or {}))


def film(host=None):
    host = host or HeadlessHost(chosen_device="cpu")
    return sample(ModelHandle(WAN_VACE, precision="fp32"), REQUEST, host)


def picture(host=None):
    host = host or HeadlessHost(chosen_device="cpu")
    return draw(ModelHandle(HUNYUAN_DIT, precision="fp32"), PICTURE, host)


def fresh(tmp_path, name):
    return HeadlessHost(chosen_device="cpu", cache=tmp_path / name)


@pytest.mark.parametrize("make", [film, picture])
def test_a_failure_at_any_operation_gives_the_same_result(card, tmp_path, caplog, make):
    """Points spread over loading, encoding, conditioning, sampling and decoding."""
    counter = OutOfMemoryAt()
    with counter:
        expected, _ = make(fresh(tmp_path, "plain"))
    assert counter.count > 1000
    phases = set()
    for point in (0.01, 0.1, 0.2, 0.35, 0.6, 0.85, 0.95, 0.998):
        kept.forget()
        caplog.clear()
        with OutOfMemoryAt(fails_at=int(point * counter.count)):
            result, record = make(fresh(tmp_path, f"{point}"))
        failed = [line for line in caplog.messages if "Out of memory" in line]
        assert len(failed) == 1, "the run said what happened, once"
        phases.add(failed[0].partition("(")[2].partition(":")[0])
        rounded = any(word in record["plan"] for word in ("fp8", "bf16", "fp16"))
        assert torch.equal(result, expected) or rounded, "streamed weights and redone phases change nothing"
        assert (result - expected).abs().mean() < 0.02
    assert {"sample", "decode"} <= phases


def test_every_failure_takes_a_cheaper_plan_until_nothing_is_left(card, tmp_path, caplog):
    with OutOfMemoryAt(fails_at=EARLY, times=10**9), pytest.raises(PiyingError) as error:
        film(fresh(tmp_path, "cache"))
    tried = [line for line in caplog.messages if "Out of memory" in line]
    assert len(tried) == len(set(tried)) > 1
    assert "GB" in str(error.value)


def test_a_plan_that_failed_is_not_tried_again(card, tmp_path, caplog):
    host = fresh(tmp_path, "cache")
    with OutOfMemoryAt(fails_at=EARLY):
        _, first = film(host)
    caplog.clear()
    kept.forget()
    _, second = film(host)
    assert not [line for line in caplog.messages if "Out of memory" in line]
    assert second["plan"] == first["plan"]
    remembered = json.loads((tmp_path / "cache" / "failed_plans.json").read_text())
    assert sum(len(entry) for entry in remembered.values()) == 1


def test_more_room_gives_a_failed_plan_another_chance(card, tmp_path):
    host = fresh(tmp_path, "cache")
    _, wanted = film(fresh(tmp_path, "other"))
    with OutOfMemoryAt(fails_at=EARLY):
        film(host)
    entries = json.loads((tmp_path / "cache" / "failed_plans.json").read_text())
    halved = {key: {choice: free // 2 for choice, free in entry.items()} for key, entry in entries.items()}
    (tmp_path / "cache" / "failed_plans.json").write_text(json.dumps(halved))
    assert film(host)[1]["plan"] == wanted["plan"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"b": "c"}}'])
def test_a_damaged_memory_of_failures_is_forgotten(card, tmp_path, text):
    host = fresh(tmp_path, "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "failed_plans.json").write_text(text)
    with OutOfMemoryAt(fails_at=EARLY):
        film(host)
    assert json.loads((tmp_path / "cache" / "failed_plans.json").read_text())


def test_other_errors_are_not_taken_for_it(card, tmp_path, monkeypatch):
    from piying.core.wan import run

    def broken(*arguments):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(run, "decode", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        film(fresh(tmp_path, "cache"))


def caused(error, by):
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (caused(PiyingError("makes no model"), by=torch.OutOfMemoryError("CUDA out of memory.")), True),
        (caused(PiyingError("makes no model"), by=ValueError("bad")), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_the_failed_attempt_is_freed(card, tmp_path, monkeypatch):
    """When the next plan is asked for, no tensor of the failed decode is alive."""
    import gc

    from piying.core.wan import run

    real, alive = run.decode, []

    class Marker(torch.Tensor):
        pass

    def fails_once(vae, latents, tiled, step, check):
        if not alive:
            marker = torch.zeros(1000).as_subclass(Marker)
            alive.append(True)
            raise torch.OutOfMemoryError(f"CUDA out of memory: {marker.shape}")
        gc.collect()
        alive.append([found for found in gc.get_objects() if type(found) is Marker])
        return real(vae, latents, tiled, step, check)

    monkeypatch.setattr(run, "decode", fails_once)
    film(fresh(tmp_path, "cache"))
    assert alive[1] == []


def test_a_failed_decode_is_redone_without_sampling_again(card, tmp_path, monkeypatch):
    from piying.core.wan import run

    host = fresh(tmp_path, "cache")
    expected, _ = film(fresh(tmp_path, "plain"))

    def broken(*arguments):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(run, "decode", broken)
        with pytest.raises(OSError, match="full"):
            film(host)
    monkeypatch.setattr(run, "denoise", None)
    kept.forget()
    assert torch.equal(film(host)[0], expected)


def test_a_prompt_seen_before_loads_no_encoder(card, tmp_path, monkeypatch):
    from piying.core.wan.model import WanVACEModel

    host = fresh(tmp_path, "cache")
    expected, _ = film(host)
    kept.forget()
    monkeypatch.setattr(WanVACEModel, "encoder_pipeline", None)
    assert torch.equal(film(host)[0], expected)
