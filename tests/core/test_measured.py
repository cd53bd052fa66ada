"""Measured times: rates that are measured once, estimates that runs correct, and the time left of a phase."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.executor.execute_plan import Meter, execute_plan
from piying.core.executor.model_cache import cached_model, evict_models
from piying.core.host.headless import HeadlessHost
from piying.core.host.progress import MEGABYTE, LongProgress, TimeLeft
from piying.core.planner import measured
from piying.core.planner.cost import choices, cost
from piying.core.planner.machine import read_machine
from piying.core.planner.measured import PhaseTimes, with_rates
from piying.core.planner.phases import Block, Component, Phase, Variant
from piying.core.planner.plan import plan
from piying.core.planner.plan_types import PhaseMeasurement, Rates
from piying.core.planner.report import table
from piying.core.wan.family import WAN_VACE

GIGA = 10**9
RATES = Rates(
    flops={"fp32": 80.0 * GIGA, "bf16": 0.8 * GIGA},
    convolution={"fp32": 40.0 * GIGA},
    bandwidth=20.0 * GIGA,
    unpacking={"fp8": 0.2 * GIGA},
)
BLOCK = Block(linear=10**8, kept=0, rows=1000, largest=10**7)


def component(stored="fp32"):
    return Component("transformer", Block(0, 0), (BLOCK,) * 10, stored, hidden=100, inner=400)


def sampling(**changes):
    values = {
        "name": "sample",
        "component": component(),
        "computes": ("fp32",),
        "storages": ("fp32", "fp8"),
        "flops": 160.0 * GIGA,
        "linear_share": 0.5,
        "passes": 10,
        "variants": (Variant("whole", 0),),
        "streamable": True,
    }
    return Phase(**values | changes)


@pytest.fixture
def host(tmp_path):
    return HeadlessHost(chosen_device="cpu", cache=tmp_path)


@pytest.fixture
def machine(host):
    return replace(read_machine(host), ram_free=64 * 2**30, rates=RATES, bandwidth=RATES.bandwidth)


@pytest.fixture
def unmeasured(monkeypatch):
    """This process has measured nothing yet."""
    monkeypatch.setattr(measured, "_measured", {})


def test_rates_are_measured_once_and_kept(host, tmp_path, monkeypatch, unmeasured):
    plain, state = read_machine(host), torch.random.get_rng_state()
    assert with_rates(plain, tmp_path, measure=False) is plain
    found = with_rates(plain, tmp_path, measure=True)
    assert found.bf16_flops == found.rates.flops["fp32"] > GIGA
    assert found.rates.unpacking["fp8"] < found.rates.bandwidth
    assert torch.equal(torch.random.get_rng_state(), state)  # no seed gives another picture for it
    monkeypatch.setattr(measured, "measure_rates", lambda device: pytest.fail("measured again"))
    monkeypatch.setattr(measured, "_measured", {})  # as in another process
    assert with_rates(plain, tmp_path, measure=True) == found
    monkeypatch.setattr(measured, "_measured", {})
    (entry,) = (tmp_path / "rates").iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"fp32", b"fp33", 1))
    assert with_rates(plain, tmp_path, measure=False) is plain
    assert not entry.exists()


def test_a_run_of_seconds_measures_nothing(host, monkeypatch, unmeasured):
    class Run:
        meter = Meter("cpu")

        def attempt(self, plan):
            with self.meter.phase(plan.phase("sample")):
                cached_model("test", "key", lambda: torch.nn.Linear(2, 2))
            return plan.phase("sample").seconds

    asked = []
    monkeypatch.setattr(measured, "measure_rates", asked.append)
    tiny = Component("transformer", Block(0, 0), (Block(1000, 0, 1, 1000),), "fp32")
    for flops, devices in ((1.0, []), (1e15, ["cpu"])):
        execute_plan((sampling(component=tiny, flops=flops),), ModelHandle(WAN_VACE), host, Run())
        evict_models("test")
        assert asked == devices


def test_what_a_processor_does_adds_up(machine):
    """Unpacking 10⁹ weights at 0.2 · 10⁹ a second takes 5 s in each pass, and no core computes in the meantime."""
    ways = {way.storage: cost(sampling(), way, machine) for way in choices(sampling(), machine)}
    assert ways["fp32"].loading == pytest.approx(4 * GIGA / machine.disk)
    assert ways["fp32"].seconds - ways["fp32"].loading == pytest.approx(10 * 2.0)
    assert ways["fp8"].seconds - ways["fp8"].loading == pytest.approx(10 * (2.0 + 5.0))
    unpacked = next(iter(plan((sampling(component=component("fp8"), storages=("fp8",)),), machine).reasons))
    assert unpacked.endswith("most of it unpacking weights.")


def test_convolutions_have_a_rate_of_their_own(machine):
    whole = next(iter(choices(sampling(), machine)))
    plain, convolutional = cost(sampling(), whole, machine), cost(sampling(convolutional=True), whole, machine)
    assert convolutional.seconds - plain.seconds == pytest.approx(10 * 2.0)


def run(times, machine, phases, seconds, *, loads=1, loading=0.0):
    made = plan(phases, machine, expected=times.expected)
    times.add(made, phases, [PhaseMeasurement("sample", seconds, 0, 0, loads, loading)])
    return made


def test_an_estimate_is_corrected_by_the_run_before(machine, tmp_path):
    phases = (sampling(),)
    first = run(PhaseTimes(tmp_path, machine), machine, phases, 77.0, loading=5.0)
    assert first.seconds == pytest.approx(22.0)
    second = plan(phases, machine, expected=PhaseTimes(tmp_path, machine).expected)
    assert second.seconds == pytest.approx(77.0)
    assert "about 77 s" in table(second, machine)
    twice = (sampling(passes=20),)  # a longer run of the same model: in proportion
    longer = plan(twice, machine, expected=PhaseTimes(tmp_path, machine).expected)
    assert longer.seconds == pytest.approx(2 * 72.0 + 5.0)
    other = (sampling(component=component("fp8"), storages=("fp8",)),)
    assert plan(other, machine, expected=PhaseTimes(tmp_path, machine).expected) == plan(other, machine)


def test_one_slow_run_does_not_decide(machine, tmp_path):
    phases = (sampling(),)
    for seconds in (30.0, 33.0, 3000.0):
        run(PhaseTimes(tmp_path, machine), machine, phases, seconds, loading=3.0)
    assert plan(phases, machine, expected=PhaseTimes(tmp_path, machine).expected).seconds == pytest.approx(33.0)
    run(PhaseTimes(tmp_path / "other", machine), machine, phases, 1e9, loading=2.0)
    absurd = plan(phases, machine, expected=PhaseTimes(tmp_path / "other", machine).expected)
    assert absurd.seconds == pytest.approx(20.0 * measured.LARGEST_RATIO + 2.0)


def test_what_is_over_soon_may_take_any_multiple_of_its_estimate(machine, tmp_path):
    """A toy's text encoder is estimated at microseconds, and takes a fifth of a second."""
    phases = (sampling(flops=1.0, passes=1, component=replace(component(), blocks=(Block(100, 0, 1, 100),))),)
    assert run(PhaseTimes(tmp_path, machine), machine, phases, 0.7, loading=0.5).seconds < 1e-5
    again = plan(phases, machine, expected=PhaseTimes(tmp_path, machine).expected).phase("sample")
    assert (again.seconds, again.loading) == pytest.approx((0.7, 0.5))
    kept = plan(phases, machine, expected=PhaseTimes(tmp_path, machine, lambda _: True).expected).phase("sample")
    assert (kept.seconds, kept.loading) == pytest.approx((0.2, 0.0))


def test_weights_in_memory_need_no_loading(machine, tmp_path):
    phases = (sampling(),)
    kept = PhaseTimes(tmp_path, machine, lambda planned: True)
    assert plan(phases, machine, expected=kept.expected).seconds == pytest.approx(20.0)
    run(PhaseTimes(tmp_path, machine), machine, phases, 44.0, loading=6.0)
    assert plan(phases, machine, expected=kept.expected).seconds == pytest.approx(38.0)  # before there is a better one
    run(kept, machine, phases, 30.0, loads=0)
    assert plan(phases, machine, expected=kept.expected).seconds == pytest.approx(30.0)
    loaded = PhaseTimes(tmp_path, machine)
    assert plan(phases, machine, expected=loaded.expected).seconds == pytest.approx(44.0)
    run(loaded, machine, phases, 0.001, loads=None)  # its result was cached, which says nothing
    assert plan(phases, machine, expected=PhaseTimes(tmp_path, machine).expected).seconds == pytest.approx(44.0)


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def test_the_first_step_tells_nothing_of_the_time_left():
    """An expander's first token came after 11 s, the others in 0.2 s: not 2970 s are left."""
    clock = Clock()
    left = TimeLeft(270, clock)
    left.expected = 60.0
    assert left.seconds() == 60.0
    clock.now += 11.0
    left.step(1)
    assert left.seconds() == pytest.approx(49.0)
    for done in range(2, 9):
        clock.now += 5.0 if done == 4 else 0.2  # one slow step decides as little
        left.step(done)
    assert left.seconds() == pytest.approx(0.2 * 262)
    clock.now += 100.0
    assert left.seconds() == pytest.approx(0.2 * 261)  # this step is late, those behind it are to come
    left.step(270)
    assert left.seconds() == 0.0


def test_nothing_is_known_without_an_estimate():
    clock = Clock()
    left = TimeLeft(4, clock)
    clock.now += 30.0
    left.step(1)
    assert left.seconds() is None
    clock.now += 2.0
    left.step(2)
    assert left.seconds() == 4.0
    late = TimeLeft(4, clock)
    late.expected = 8.0
    clock.now += 10.0
    assert late.seconds() == 2.0  # beyond its estimate it is not over
    clock.now += 10.0
    assert late.seconds() is None  # which is refuted


def test_one_slow_step_in_the_beginning_does_not_decide():
    clock = Clock()
    left = TimeLeft(20, clock)
    left.expected = 40.0
    for seconds, expected in ((9.0, 31.0), (8.0, 2.0 * 18), (2.0, 2.0 * 17), (2.0, 2.0 * 16)):
        clock.now += seconds
        left.step(left._done + 1)
        assert left.seconds() == pytest.approx(expected)


def test_what_takes_long_is_shown(monkeypatch):
    shown, clock = [], Clock()

    class Bar:
        def step(self, done, preview=None):
            shown.append(done)

    class Reporter:
        def progress(self, phase, total, *, seconds=0.0):
            shown.append((phase, total))
            return Bar()

    monkeypatch.setattr("piying.core.host.progress.time.monotonic", clock)
    loading = LongProgress(Reporter(), "Loading text encoder (MB)", MEGABYTE)
    loading(MEGABYTE, 3 * MEGABYTE)
    assert shown == []
    clock.now += 2.0
    for done in (2 * MEGABYTE - 1, 2 * MEGABYTE, 2 * MEGABYTE + 1, 3 * MEGABYTE - 1, 3 * MEGABYTE):
        loading(done, 3 * MEGABYTE)
    assert shown == [("Loading text encoder (MB)", 3), 1, 2, 3]
