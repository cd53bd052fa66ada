"""The plan for a second card: hand-computed cases, what holds for any, what is told apart, and which it may be."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piying.core.errors import PiyingError
from piying.core.executor.retry import FailedPlans
from piying.core.host.headless import HeadlessHost
from piying.core.parallel import second_card as cards
from piying.core.parallel.group import set_group
from piying.core.planner.machine import read_machine
from piying.core.planner.measured import PhaseTimes
from piying.core.planner.phases import Variant
from piying.core.planner.plan import NEARLY_EQUAL, SOON_OVER, plan
from piying.core.planner.plan_types import PhaseMeasurement
from piying.core.planner.report import Estimate, after, table

from .test_plan import GB, MACHINE, MB, phase
from .test_plan_properties import machines, phases

# Slower by half, and a quarter as large.
SECOND = replace(MACHINE, device="cuda:1", name="an older card", vram_free=2000 * MB, vram_total=2000 * MB)
SECOND = replace(SECOND, bf16_flops=0.5e12, native_flops={})
BOTH = replace(MACHINE, second=SECOND)
# 0.4 s of arithmetic on the first and 0.8 s on the second, behind 1.05 s of reading.
READING = {"name": "encode", "passes": 2, "flops": 0.2e12, "movable": True}


def one(machine=BOTH, refused=(), **options):
    made = plan((phase(**options),), machine, refused, margin=0)
    return made.phases[0], made


def with_second(**changes):
    return replace(MACHINE, second=replace(SECOND, **changes))


def test_what_waits_for_the_disk_goes_to_the_second_card():
    chosen, made = one(**READING)
    assert (chosen.device, chosen.placement, chosen.seconds) == ("cuda:1", "resident", 1.05)
    assert chosen.key == "encode: transformer bf16, resident, whole, on cuda:1"
    assert (chosen.on("cuda:0"), made.peak_vram, made.peak_second) == ("cuda:1", 0, 1550 * MB)
    assert made.reasons[1] == (
        "encode: on the second card, because on the first bf16, resident, whole is no faster, and the first card is "
        "left free."
    )


def test_what_computes_for_long_stays_on_the_faster_card():
    chosen, made = one(name="decode", movable=True)
    assert (chosen.device, chosen.seconds) == ("", 20.0)
    assert "decode: on the first card, because on the second bf16, resident, whole takes 40 s instead of 20 s." in (
        made.reasons
    )


def test_sampling_does_not_move():
    assert one()[0].device == ""
    assert one()[1] == plan((phase(),), MACHINE, margin=0)


@pytest.mark.parametrize("beyond", [False, True])
def test_what_is_nearly_equal_is_five_percent_and_a_second(beyond):
    slower = 20.0 / (20.0 * NEARLY_EQUAL + SOON_OVER + beyond * 0.1)
    chosen, _ = one(with_second(bf16_flops=1e12 * slower), name="decode", movable=True)
    assert bool(chosen.device) is not beyond


def test_streamed_through_the_second_card_where_it_is_too_small():
    chosen, made = one(with_second(vram_free=1549 * MB), **READING)
    assert (chosen.device, chosen.placement, chosen.vram) == ("cuda:1", "streamed", 750 * MB)
    # Compared with ways on the same card: on the first it would fit.
    assert "bf16, resident, whole, on cuda:1 needs 1479 MB of the second card, 1477 MB can be used" in made.reasons[1]


def test_a_phase_that_fits_the_second_card_alone_moves_however_slow_it_is_there():
    machine = replace(with_second(bf16_flops=1e10), vram_free=100 * MB)
    chosen, made = one(machine, name="decode", movable=True, storages=("bf16",), streamable=False)
    assert chosen.device == "cuda:1" and chosen.seconds == 2000.0 and made.fits
    assert not plan((phase(name="decode", storages=("bf16",)),), machine, margin=0).fits


def test_the_better_number_type_comes_before_the_card():
    """fp32 takes twice the activations, which fit the second card alone."""
    vae = {"name": "decode", "movable": True, "computes": ("fp32", "bf16"), "variants": (Variant("whole", 1000 * MB),)}
    machine = replace(with_second(vram_free=8000 * MB), vram_free=2100 * MB)
    chosen, made = one(machine, **vae, storages=("fp32",), streamable=False)
    assert (chosen.device, chosen.compute) == ("cuda:1", "fp32")
    assert "because on the first bf16, resident, whole computes in a lesser number type." in made.reasons[1]


def test_out_of_memory_steps_down_on_the_second_card_and_then_to_the_first():
    refused, taken = set(), []
    while len(taken) < 4:
        chosen, _ = one(refused=refused, **READING, storages=("bf16",))
        refused.add(chosen.key)
        taken.append((chosen.placement, chosen.device))
    assert taken == [("resident", "cuda:1"), ("streamed", "cuda:1"), ("resident", ""), ("streamed", "")]


def test_where_no_card_is_large_enough_the_leanest_way_is_told():
    machine = replace(with_second(vram_free=200 * MB), vram_free=100 * MB)
    chosen, made = one(machine, **READING)
    assert not made.fits and chosen.device == "cuda:1"
    assert made.reasons[0].startswith("encode does not fit an older card: it needs at least ")
    assert "of the second card, of which 0.2 GB can be used" in made.reasons[0]


def test_the_table_and_json_name_the_card():
    work = (phase(**READING), phase())
    made = plan(work, BOTH, margin=0)
    text = table(made, BOTH)
    assert text.startswith("Plan for a card (7.5 GB free) beside an older card on cuda:1 (1.9 GB free), ")
    assert "peak 1.4 GB of the card, 1.4 GB of the second one and 2.0 GB of main memory" in text
    assert "resident on cuda:1  whole" in text
    measured = [PhaseMeasurement("encode", 1.0, GB, GB), PhaseMeasurement("sample", 1.0, GB, GB)]
    assert "\nencode on cuda:1  1.4 GB           1.0 GB" in after(made, measured, BOTH)
    found = Estimate("model", made, BOTH).to_json()
    assert [part.get("device") for part in found["components"]] == ["cuda:1", None]
    assert found["machine"]["second"]["peak_vram_gb"] == pytest.approx(1550 * MB / GB, abs=0.001)
    assert "second" not in Estimate("model", made, MACHINE).to_json()["machine"]


@given(st.lists(phases(), min_size=1, max_size=3), machines(), machines(), st.lists(st.booleans(), min_size=3))
def test_a_second_card_costs_no_more_than_what_counts_as_nearly_equal(work, machine, other, moved):
    work = tuple(replace(one, movable=can) for one, can in zip(work, moved, strict=False))
    machine = replace(machine, device="cuda:0")
    # The card is another, and the main memory the same.
    second = replace(other, device="cuda:1", ram_free=machine.ram_free, ram_total=machine.ram_total, disk=machine.disk)
    alone, both = plan(work, machine), plan(work, replace(machine, second=second))
    assert both.fits or not alone.fits
    for one, planned, before in zip(work, both.phases, alone.phases, strict=True):
        assert planned.device in ("", "cuda:1")
        if not one.movable:
            assert replace(planned, cached=0) == replace(before, cached=0)
        elif both.fits:
            assert planned.vram <= (second if planned.device else machine).vram_budget
            if alone.fits and (planned.compute, planned.placement) == (before.compute, before.placement):
                assert planned.seconds <= before.seconds * NEARLY_EQUAL + SOON_OVER


def test_failures_of_each_card_are_judged_by_its_own_room(tmp_path):
    first, on_second = (
        "encode: text_encoder bf16, resident, whole",
        "encode: text_encoder bf16, resident, whole, on cuda:1",
    )
    work = (phase(),)

    def failures(machine):
        return FailedPlans(tmp_path, machine, work, machine.second)

    failures(BOTH).add(first)
    failures(BOTH).add(on_second)
    assert failures(BOTH).load() == {first, on_second}
    assert failures(replace(BOTH, vram_free=9000 * MB)).load() == {on_second}
    assert failures(with_second(vram_free=3000 * MB)).load() == {first}
    # Without it, and beside another card in its place, there is nothing to know of it.
    assert failures(MACHINE).load() == failures(with_second(name="another card")).load() == {first}


def test_times_of_each_card_are_its_own(tmp_path):
    work = (phase(**READING),)
    times = PhaseTimes(tmp_path, BOTH)
    made = plan(work, BOTH, margin=0, expected=times.expected)
    assert made.phases[0].device == "cuda:1"
    times.add(made, work, [PhaseMeasurement("encode", 8.0, GB, GB, loads=1)])

    def seconds(machine):
        return plan(work, machine, margin=0, expected=PhaseTimes(tmp_path, machine).expected).phases[0].seconds

    assert seconds(BOTH) == pytest.approx(8.0, abs=0.1)
    assert seconds(MACHINE) == seconds(with_second(name="another card", bf16_flops=0.1e12)) == pytest.approx(1.05)


def test_a_second_card_is_imagined_beside_an_imagined_first_one():
    host = HeadlessHost(chosen_device="cpu", vram=16 * GB, second_vram=8 * GB, ram=32 * GB, imagined=True)
    found = read_machine(host, cards.second_card("", host).device)
    assert (found.second.device, found.second.vram_total, found.second.ram_free) == ("cuda:1", 8 * GB, found.ram_free)
    assert found.second.name == found.name and found.second.second is None
    with pytest.raises(PiyingError, match="--second-vram-gb: there is no card here.*such as --vram-gb 16"):
        read_machine(replace(host, vram=None), "cuda:1")


@pytest.fixture
def three_cards(monkeypatch):
    monkeypatch.setattr(cards, "available_devices", lambda: ["cuda:0", "cuda:1", "cuda:2", "cpu"])
    yield
    set_group(None)


@pytest.mark.parametrize(
    ("name", "first", "said"),
    [
        (
            "cuda:3",
            "cuda:0",
            r"--second-device cuda:3: there is no such card here \(cuda:0, .* Choose one of: cuda:1, cuda:2",
        ),
        ("cpu", "cuda:0", "--second-device cpu: the CPU is no card"),
        ("cuda", "cuda:0", "--second-device cuda: it is the first card"),
        ("cuda:1", "cpu", "--second-device cuda:1: the run computes on cpu, and has no first card. Leave it out."),
    ],
)
def test_a_device_that_is_no_second_card(three_cards, name, first, said):
    with pytest.raises(PiyingError, match=said):
        cards.checked_second(name, first)


def test_a_card_of_another_rank_is_no_second_one(three_cards):
    peers = [SimpleNamespace(rank=rank, device=f"cuda:{rank}", place="here") for rank in (0, 1)]
    set_group(SimpleNamespace(own=peers[0], peers=peers))
    assert cards.checked_second("cuda:2", "cuda:0") == "cuda:2"
    with pytest.raises(PiyingError, match="cuda:1: rank 1 computes there. Choose one of: cuda:2; or leave it out."):
        cards.checked_second("cuda:1", "cuda:0")
