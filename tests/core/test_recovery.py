"""Out of memory, wherever it happens, costs time and not the result."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.disk_cache import DiskCache
from piying.core.errors import PiyingError
from piying.core.executor import execute_plan, model_cache
from piying.core.executor.retry import is_out_of_memory
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.planner.machine import ALLOCATOR_VARIABLES, synthetic
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from torch.utils._python_dispatch import TorchDispatchMode

REQUEST = WanRequest("a red circle moves right", "", 64, 48, 5, steps=2, cfg=4.0, shift=5.0, seed=3)
EARLY = 20  # operations: the text encoder is being read
PICTURE = ImageRequest("a red circle", "", 64, 64, steps=2, cfg=3.0, seed=3)


@pytest.fixture(autouse=True)
def nothing_kept():
    model_cache.evict_models()
    yield
    model_cache.evict_models()


@pytest.fixture
def card(monkeypatch):
    """Plans are made for a card of 8 GB; the work is done on the CPU."""

    def use(vram_gb=8.0):
        monkeypatch.setattr(execute_plan, "read_machine", lambda host, second: synthetic(vram_gb, 32.0))

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
        model_cache.evict_models()
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


def failed_plans(folder):
    """Return the failed choices by the name of their entry."""
    cache = DiskCache(folder / "cache" / "failed_plans", ".json")
    names = [path.stem for path in cache.folder.iterdir()]
    return {name: json.loads(cache.get(name)) for name in names}


def test_a_plan_that_failed_is_not_tried_again(card, tmp_path, caplog):
    host = fresh(tmp_path, "cache")
    with OutOfMemoryAt(fails_at=EARLY):
        _, first = film(host)
    caplog.clear()
    model_cache.evict_models()
    _, second = film(host)
    assert not [line for line in caplog.messages if "Out of memory" in line]
    assert second["plan"] == first["plan"]
    (failed,) = failed_plans(tmp_path).values()
    assert len(failed) == 1


def test_more_room_gives_a_failed_plan_another_chance(card, tmp_path):
    host = fresh(tmp_path, "cache")
    _, wanted = film(fresh(tmp_path, "other"))
    with OutOfMemoryAt(fails_at=EARLY):
        film(host)
    for name, failed in failed_plans(tmp_path).items():
        halved = {choice: free // 2 for choice, free in failed.items()}
        DiskCache(tmp_path / "cache" / "failed_plans", ".json").put(name, json.dumps(halved).encode())
    assert film(host)[1]["plan"] == wanted["plan"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"b": "c"}}'])
def test_a_damaged_memory_of_failures_is_forgotten(card, tmp_path, text):
    host = fresh(tmp_path, "cache")
    with OutOfMemoryAt(fails_at=EARLY):
        film(host)
    (path,) = (tmp_path / "cache" / "failed_plans").iterdir()
    path.write_text(text)
    assert film(host)[1]["plan"] == film(fresh(tmp_path, "other"))[1]["plan"]
    assert not path.exists()


def test_other_errors_are_not_taken_for_it(card, tmp_path, monkeypatch):
    from piying.core.wan import video_run as run

    def broken(*arguments, **named):
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

    from piying.core.wan import video_run as run

    real, alive = run.decode, []

    class Marker(torch.Tensor):
        pass

    def fails_once(vae, latents, **named):
        if not alive:
            marker = torch.zeros(1000).as_subclass(Marker)
            alive.append(True)
            raise torch.OutOfMemoryError(f"CUDA out of memory: {marker.shape}")
        gc.collect()
        alive.append([found for found in gc.get_objects() if type(found) is Marker])
        return real(vae, latents, **named)

    monkeypatch.setattr(run, "decode", fails_once)
    film(fresh(tmp_path, "cache"))
    assert alive[1] == []


def test_a_failed_decode_is_redone_without_sampling_again(card, tmp_path, monkeypatch):
    from piying.core.wan import video_run as run

    host = fresh(tmp_path, "cache")
    expected, _ = film(fresh(tmp_path, "plain"))

    def broken(*arguments, **named):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(run, "decode", broken)
        with pytest.raises(OSError, match="full"):
            film(host)
    monkeypatch.setattr(run, "denoise", None)
    model_cache.evict_models()
    assert torch.equal(film(host)[0], expected)


def test_a_prompt_seen_before_loads_no_encoder(card, tmp_path, monkeypatch):
    from piying.core.wan.model import WanModel

    host = fresh(tmp_path, "cache")
    expected, _ = film(host)
    model_cache.evict_models()
    monkeypatch.setattr(WanModel, "encoder_pipeline", None)
    assert torch.equal(film(host)[0], expected)


def test_what_the_step_cache_holds_goes_with_a_failed_attempt(card, tmp_path, monkeypatch):
    """Its tensors are on the card: the next attempt must not find them there."""
    from piying.core.wan import video_run as run
    from piying.core.wan.model import WanModel

    caches, held, attempts = [], [], []
    real_denoise, real_transformer = run.denoise, WanModel.transformer

    def fails_once(*given, on_step, cache, **named):
        def late(done, latents, clean):
            on_step(done, latents, clean)
            if len(caches) == 1 and done == 3:
                held.append(len(cache._changes) + len(cache._predictions))
                raise torch.OutOfMemoryError("CUDA out of memory.")

        caches.append(cache)
        return real_denoise(*given, on_step=late, cache=cache, **named)

    def transformer(model, choice):
        attempts.append([len(cache._changes) + len(cache._predictions) for cache in caches])
        return real_transformer(model, choice)

    monkeypatch.setattr(run, "denoise", fails_once)
    monkeypatch.setattr(WanModel, "transformer", transformer)
    request = replace(REQUEST, steps=5, step_cache=0.5)
    _, record = sample(ModelHandle(WAN_VACE, precision="fp32"), request, fresh(tmp_path, "cache"))
    assert held[0] > 0, "it held something when memory ran out"
    assert attempts == [[], [0]]
    assert caches[0] is caches[1] and not caches[1]._predictions, "nor does it outlive a run that worked"
    assert record["steps_forecast"] == caches[1].skipped


class CudaMemory:
    """The part of torch.cuda that limits a process."""

    def __init__(self, fraction=1.0):
        self.fractions = [fraction]

    def put_in(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.limit)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: self.fractions[-1])
        card = type("Card", (), {"total_memory": 8 * 2**30})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)

    def limit(self, fraction, device):
        assert device == "cuda:0"
        self.fractions.append(fraction)


class LimitedHost(HeadlessHost):
    """Says that it computes on a card of which the user allows 2 GB."""

    def device(self):
        return "cuda:0"


class OnePhase:
    """A run of one phase that notes how much of the card torch may use."""

    def __init__(self, memory, fails=None):
        self.meter, self.memory, self.fails, self.seen = execute_plan.Meter("cuda:0"), memory, fails, []

    def attempt(self, plan):
        self.seen.append(self.memory.fractions[-1])
        with self.meter.phase(plan.phases[0]):
            if self.fails is not None:
                raise self.fails
        return "done"


def one_phase():
    from piying.core.planner.phases import Block, Component, Phase, Variant

    component = Component("model", Block(0, 1000), (), "fp32")
    return (
        Phase(
            name="sample",
            component=component,
            computes=("fp32",),
            storages=("fp32",),
            flops=1.0,
            linear_share=0.0,
            passes=1,
            variants=(Variant("whole", 1000),),
            streamable=False,
        ),
    )


@pytest.mark.parametrize("before", [1.0, 0.9])
@pytest.mark.parametrize("fails", [None, ValueError("broken"), KeyboardInterrupt()])
def test_the_limit_on_the_card_ends_with_the_run(card, tmp_path, monkeypatch, before, fails):
    memory, host = CudaMemory(before), LimitedHost(vram=2 * 2**30, cache=tmp_path)
    memory.put_in(monkeypatch)
    run = OnePhase(memory, fails)
    if fails is None:
        result, _ = execute_plan.execute_plan(one_phase(), ModelHandle(WAN_VACE), host, run)
        assert result == "done"
    else:
        with pytest.raises(type(fails)):
            execute_plan.execute_plan(one_phase(), ModelHandle(WAN_VACE), host, run)
    assert run.seen == [0.25]
    assert memory.fractions == [before, 0.25, before]


def test_without_a_limit_torchs_own_is_left_alone(card, tmp_path, monkeypatch):
    memory = CudaMemory()
    memory.put_in(monkeypatch)
    execute_plan.execute_plan(one_phase(), ModelHandle(WAN_VACE), LimitedHost(cache=tmp_path), OnePhase(memory))
    assert memory.fractions == [1.0]


def test_the_allocator_is_set_up_for_a_run_and_set_back(monkeypatch):
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    told = torch._C._accelerator_getAllocatorSettings
    for platform, wanted in (("linux", "expandable_segments:True"), ("win32", "max_split_size_mb:64")):
        monkeypatch.setattr("sys.platform", platform)
        with pytest.raises(ValueError, match="cancelled"), execute_plan.compact_allocation("cuda:0"):
            assert told() == wanted
            raise ValueError("cancelled")
        assert told() == "expandable_segments:False"


def test_the_allocator_stays_as_the_user_set_it(monkeypatch):
    before = torch._C._accelerator_getAllocatorSettings()
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "garbage_collection_threshold:0.8")
    with execute_plan.compact_allocation("cuda:0"):
        assert torch._C._accelerator_getAllocatorSettings() == before
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    with execute_plan.compact_allocation("cpu"):
        assert torch._C._accelerator_getAllocatorSettings() == before
