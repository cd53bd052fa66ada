"""Whole runs of the built-in models on a pretend device: the results of the CPU, within the memory there is."""

from __future__ import annotations

import gc
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.executor import model_cache
from piying.core.executor.retry import FailedPlans, catch_out_of_memory, retry_with_next_plan
from piying.core.host.base import MemoryRules
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.planner.machine import synthetic
from piying.core.prompting.expand import ExpandRequest, expand
from piying.core.prompting.family import PROMPT
from piying.core.wan.family import WAN_VACE
from piying.core.wan.fast_decoder import with_decoder
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from piying.tests.core.test_fast_preview import Cancelled, Watcher
from piying.tests.core.test_taehv import CHANNELS, lively
from safetensors.torch import save_file

from .pretend import attached

GB, MIB = 2**30, 2**20
REQUEST = WanRequest("a red circle moves right", "", 32, 32, 5, steps=2, cfg=4.0, shift=5.0, seed=3)
PICTURE = ImageRequest("a red circle", "", 64, 64, steps=2, cfg=3.0, seed=3)


@pytest.fixture(autouse=True)
def nothing_kept():
    model_cache.evict_models()
    yield
    model_cache.evict_models()


def film(host, memory="auto"):
    return sample(ModelHandle(WAN_VACE, precision="fp32", memory=memory), REQUEST, host)


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    with torch.no_grad():
        frames, _ = film(HeadlessHost(chosen_device="cpu", cache=tmp_path_factory.mktemp("cpu")))
    return frames


@pytest.fixture(scope="module")
def resident_run(on_the_cpu, tmp_path_factory):
    """A run with all the memory it could want: its frames, its record, the machine, and its cache of embeddings."""
    cache = tmp_path_factory.mktemp("resident")
    with torch.no_grad(), attached(8 * GB) as here:
        frames, record = film(HeadlessHost(chosen_device="pretend:0", cache=cache))
        gc.collect()
    return frames, record, here, cache / "embeddings"


@pytest.fixture
def host(resident_run, tmp_path):
    """Return a host that knows the prompt's embeddings, as after any run before."""
    shutil.copytree(resident_run[-1], tmp_path / "embeddings")

    def make(device="pretend:0", kind=HeadlessHost, **options):
        return kind(chosen_device=device, cache=tmp_path, **options)

    return make


def nothing_left(here):
    gc.collect()
    return not any(device.allocated for device in here.devices) and not here.pinned


def out_of_memory(caplog):
    """Return the phases that ran out of memory and how they were run, in order."""
    return [
        line.split("(", 1)[1].rpartition(":")[0].partition(": pretend")[0]
        for line in caplog.messages
        if FAILED in line
    ]


FAILED = "Out of memory ("


def test_a_film_is_that_of_the_cpu(resident_run, on_the_cpu):
    frames, record, here, _ = resident_run
    assert torch.equal(frames, on_the_cpu)
    assert "transformer fp32, resident" in record["plan"]
    assert record["peak_vram_gb"] > 0
    assert nothing_left(here)
    assert here.devices[0].cached == 0, "what was used is other programs' again"


@pytest.mark.parametrize("ends", [0, 1])
def test_previews_by_taehv_are_made_on_the_card_and_leave_it(host, on_the_cpu, tmp_path, ends):
    """After a run, and after one that was cancelled at its first preview."""
    (tmp_path / "vae_approx").mkdir()
    save_file(lively(CHANNELS, (64, 32, 16, 16)).state_dict(), tmp_path / "vae_approx" / "taew2_1_toy.safetensors")
    watcher, other = Watcher(ends), Watcher()
    made = host(models=[tmp_path], on_progress=lambda name, total: watcher if name == "Sampling" else other)
    model = with_decoder(ModelHandle(WAN_VACE, precision="fp32"), "taew2_1_toy.safetensors", made, "previews only")
    with attached(8 * GB) as here:
        if ends:
            with pytest.raises(Cancelled):
                sample(model, REQUEST, made)
        else:
            assert torch.equal(sample(model, REQUEST, made)[0], on_the_cpu)
        assert [one.size for one in watcher.stills] == [(32, 32)] * (ends or 2)
        assert nothing_left(here)


def test_streamed_on_the_second_device_it_is_the_same_and_the_first_is_left_alone(host, on_the_cpu):
    limits = set()

    def note(name, total):
        limits.add(tuple(device.limit for device in here.devices))
        return Display(name, "never", None)

    with attached(MIB, 8 * GB) as here:
        here.devices[1].peak = 4 * GB  # of what ran before
        frames, record = film(host("pretend:1", on_progress=note, vram=2 * GB), "streamed")
        assert torch.equal(frames, on_the_cpu)
        assert record["device"] == "pretend:1"
        assert 0 < record["peak_vram_gb"] < 2
        assert limits == {(MIB, 2 * GB)}
        assert [device.limit for device in here.devices] == [MIB, 8 * GB]
        assert "transformer fp32, streamed" in record["plan"]
        assert (here.devices[0].peak, here.devices[0].compute.tasks) == (0, [])
        assert nothing_left(here)


class Display:
    """Calls a function at every step of a phase whose name begins so."""

    def __init__(self, name, when, action):
        self.name, self.when, self.action = name, when, action

    def step(self, done, preview=None):
        if self.name.startswith(self.when):
            self.action()

    def text(self, text):
        pass


def test_less_memory_than_there_was_costs_time_and_not_the_result(host, caplog, on_the_cpu):
    """While it samples and while it decodes, other programs take all but a part of the device."""
    rooms = {"Sampling": 4 * MIB, "Decoding": MIB}
    with attached(8 * GB) as here:
        device = here.devices[0]

        def begin(name, total):
            device.others = max(device.others, device.total - rooms.get(name, device.total))
            return Display(name, "never", None)

        frames, record = film(host(on_progress=begin))
        failed = out_of_memory(caplog)
        assert failed[0] == "sample: transformer fp32, resident, whole"
        assert {line.partition(":")[0] for line in failed[1:]} == {"decode"}
        assert "transformer fp32, streamed" in record["plan"]
        assert device.refused == len(failed)
        assert torch.equal(frames, on_the_cpu)
        assert nothing_left(here)


@pytest.mark.parametrize("holder", ["an exception", "a cycle", "the allocator"])
def test_the_next_attempt_begins_on_an_empty_device(tmp_path, holder):
    """Whatever still holds the tensors of the one before: a library its exception, or the allocator their memory."""
    kept, found = [], []
    with attached(8 * GB) as here:
        device = here.devices[0]

        def fail():
            tensor = torch.zeros(MIB, device="pretend:0")
            if holder == "a cycle":
                cycle = [tensor]
                cycle.append(cycle)
            error = torch.OutOfMemoryError("out of memory")
            if holder == "an exception":
                kept.append(error)
            raise error

        def attempt(plan):
            found.append((device.allocated, device.cached))
            with catch_out_of_memory(f"attempt {len(found)}"):
                if len(found) == 1:
                    fail()

        gc.disable()
        try:
            failures = FailedPlans(tmp_path, synthetic(8 * GB, 8 * GB), ())
            retry_with_next_plan(lambda refused: SimpleNamespace(fits=len(refused) < 2), attempt, failures)
        finally:
            gc.enable()
    assert found == [(0, 0), (0, 0)]
    assert failures.load() == {"attempt 1"}


class Tenants(HeadlessHost):
    """Other models hold the device, and leave when they are asked, but no more of them than is asked for."""

    machine = None
    asked = 0  # how often

    def memory_rules(self, device=""):
        return MemoryRules(evictable=self.machine.devices[0].others)

    def make_room(self, size, device=""):
        self.asked += 1
        device = self.machine.devices[0]
        missing = size - (device.total - device.others - device.allocated)
        device.others -= max(0, min(device.others, missing))


@pytest.mark.parametrize("memory", ["resident", "streamed"])
def test_tenants_make_room_for_all_of_a_phase(host, caplog, on_the_cpu, memory):
    with attached(8 * GB) as here:
        here.devices[0].others = 8 * GB
        tenants = host(kind=Tenants)
        tenants.machine = here
        frames, _ = film(tenants, memory)
        assert out_of_memory(caplog) == []
        # Preparing, sampling and decoding: what one leaves free may be too little for the next.
        assert tenants.asked == 3
        assert torch.equal(frames, on_the_cpu)
        assert nothing_left(here)


def test_where_the_device_is_too_small_the_prompt_is_encoded_on_the_cpu(host, tmp_path, caplog, on_the_cpu):
    shutil.rmtree(tmp_path / "embeddings")
    with attached(8 * GB) as here:
        device = here.devices[0]

        def begin(name, total):
            device.others = device.total - MIB // 4 if name.startswith("Encoding") else 0
            return Display(name, "never", None)

        frames, record = film(host(on_progress=begin))
        # The device is full until the next progress is shown, which may be after the next phase has begun.
        phases = [line.partition(":")[0] for line in out_of_memory(caplog)]
        assert phases[0] == "encode"
        assert set(phases) <= {"encode", "condition"}
        assert len(phases) == device.refused
        assert "text_encoder fp32, cpu" in record["plan"]
        assert torch.equal(frames, on_the_cpu)
        assert nothing_left(here)


class Stop(BaseException):
    """What a cancelled run ends with."""


def stop():
    raise Stop


@pytest.mark.parametrize(
    ("phase", "memory"),
    [
        ("Encoding", "resident"),
        ("Encoding", "streamed"),
        ("Preparing", "resident"),
        ("Sampling", "streamed"),
        ("Decoding", "resident"),
    ],
)
def test_cancelled_anywhere_nothing_is_left(host, tmp_path, phase, memory):
    """Not even while the exception is looked at, whose frames hold what they worked on."""
    shutil.rmtree(tmp_path / "embeddings")
    with attached(8 * GB) as here:
        cancelled = host(on_progress=lambda name, total: Display(name, phase, stop))
        with pytest.raises(Stop) as error:
            film(cancelled, memory)
        del error
        assert nothing_left(here)


def test_a_limit_of_the_user_holds_and_ends_with_the_run(host):
    limits = []

    def note_and_stop():
        limits.append(here.devices[0].limit)
        raise Stop

    with attached(8 * GB) as here:
        note = Display("Preparing the task", "Preparing", note_and_stop)
        with pytest.raises(Stop):
            film(host(on_progress=lambda name, total: note, vram=2 * GB))
        assert limits == [2 * GB]
        assert here.devices[0].limit == 8 * GB


def test_a_picture_is_that_of_the_cpu(tmp_path):
    def picture(host):
        return draw(ModelHandle(HUNYUAN_DIT, precision="fp32", memory="streamed"), PICTURE, host)[0]

    expected = picture(HeadlessHost(chosen_device="cpu", cache=tmp_path / "cpu"))
    model_cache.evict_models()
    with attached(8 * GB, chance=random.Random(1)) as here:
        assert torch.equal(picture(HeadlessHost(chosen_device="pretend:0", cache=tmp_path / "device")), expected)
        assert nothing_left(here)


def test_a_prompt_is_that_of_the_cpu(tmp_path):
    request = ExpandRequest("a red circle on blue", seed=1, max_new_tokens=24)
    handle = ModelHandle(PROMPT, "built-in", "fp32")
    expected = expand(handle, request, HeadlessHost(chosen_device="cpu", cache=tmp_path / "cpu"))[0]
    model_cache.evict_models()
    with attached(8 * GB) as here:
        assert (
            expand(handle, request, HeadlessHost(chosen_device="pretend:0", cache=tmp_path / "device"))[0] == expected
        )
        assert nothing_left(here)
