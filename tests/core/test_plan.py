"""The plan: hand-computed cases, what must fit, what it says, and what it steps down to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from piying.core.catalog.component_sizes import listed_components
from piying.core.catalog.selection import ModelHandle
from piying.core.executor.retry import exclude_overflows
from piying.core.hunyuan_dit import phases as hunyuan
from piying.core.planner.cost import PROCESS_RAM, STAGED
from piying.core.planner.machine import Machine, synthetic
from piying.core.planner.phases import Block, Component, Phase, StoredWeights, Variant
from piying.core.planner.plan import largest, plan
from piying.core.planner.plan_types import amount
from piying.core.planner.report import after, table
from piying.core.prompting import phases as prompting
from piying.core.wan import phases as wan
from piying.core.wan.family import WAN_VACE
from piying.core.wan.phases import VideoWork, fitting, what_fits
from piying.core.wan.speed import vae_types

GB = 2**30
MB = 10**6

# 10 blocks of 100 MB in bf16: 40 million weights and 10 million other parameters each; 50 MB outside them.
BLOCK = Block(linear=40 * MB, kept=10 * MB, rows=1000, largest=20 * MB)
MODEL = Component("transformer", Block(0, 25 * MB), (BLOCK,) * 10, "bf16", hidden=100, inner=400)
MACHINE = Machine(
    device="cuda:0",
    name="a card",
    vram_total=8000 * MB,
    vram_free=8000 * MB,
    ram_total=64000 * MB,
    ram_free=60000 * MB,
    pcie=10e9,
    disk=1e9,
    bf16_flops=1e12,
    bandwidth=100e9,
    native_flops={"fp8": 2e12},
)
CPU = replace(MACHINE, device="cpu", name="CPU", vram_total=0, vram_free=0, native_flops={})


def phase(**changes):
    """One sampling phase of 20 passes; a pass computes for one second."""
    values = {
        "name": "sample",
        "component": MODEL,
        "computes": ("bf16",),
        "storages": ("bf16", "fp8"),
        "flops": 1e12,
        "linear_share": 0.5,
        "passes": 20,
        "variants": (Variant("whole", 500 * MB),),
        "streamable": True,
    }
    return Phase(**values | changes)


def one(machine=MACHINE, refused=(), **options):
    """Plan one phase without a margin, unless the options say otherwise."""
    names = ("precision", "memory", "margin", "advise")
    asked = {name: options.pop(name) for name in names if name in options}
    return plan((phase(**options),), machine, refused, **{"margin": 0, **asked})


def with_vram(size):
    return replace(MACHINE, vram_free=size)


def test_resident_by_hand():
    (chosen,) = one().phases
    assert (chosen.compute, chosen.storage, chosen.placement) == ("bf16", "bf16", "resident")
    assert chosen.weights == 50 * MB + 10 * 100 * MB
    assert chosen.vram == 1050 * MB + 500 * MB
    assert chosen.moved == 1050 * MB
    assert chosen.ram == PROCESS_RAM  # the file stays mapped
    assert chosen.seconds == 20.0  # arithmetic; copying would take 0.105 s, the disk 1.05 s


def test_streamed_by_hand():
    (chosen,) = one(with_vram(1549 * MB)).phases
    assert (chosen.storage, chosen.placement) == ("bf16", "streamed")
    assert chosen.vram == 50 * MB + 2 * 100 * MB + 500 * MB
    assert chosen.moved == 50 * MB + 20 * 1000 * MB
    assert chosen.ram == PROCESS_RAM + STAGED
    assert chosen.seconds == 20.0  # 20.05 GB take 2 s over PCIe, behind the arithmetic


def test_fp8_by_hand():
    """Streamed in bf16 needs 750 MB; in FP8 a block is 40 MB + 4 kB of scales + 20 MB, and 40 MB are unpacked."""
    (chosen,) = one(with_vram(749 * MB)).phases
    block = 40 * MB + 4 * 1000 + 20 * MB
    assert (chosen.storage, chosen.placement) == ("fp8", "streamed")
    assert chosen.vram == 50 * MB + 2 * block + 40 * MB + 500 * MB
    assert chosen.ram == PROCESS_RAM + STAGED + 10 * (block - 20 * MB)  # what is cast is a copy, the rest stays mapped


def test_nothing_fits():
    least = 50 * MB + 2 * (60 * MB + 4000) + 40 * MB + 500 * MB
    assert one(with_vram(least)).fits
    made = one(with_vram(least - 1), advise=lambda: "Try less.")
    assert not made.fits
    assert made.phases[0].vram == least
    # Both are 0.7 GB: sizes that differ are told so.
    assert "sample does not fit a card: it needs at least 678 MB of the card, of which 677 MB" in made.reasons[-2]
    assert made.reasons[-1] == "Try less."


def test_the_margin_is_left_alone():
    assert one(with_vram(1550 * MB)).phases[0].placement == "resident"
    assert one(with_vram(1550 * MB), margin=1).phases[0].placement == "streamed"


def test_quality_where_both_are_as_fast():
    """FP8 would fit whole on the card where bf16 has to be streamed, and is no faster for it."""
    fp8_resident = 50 * MB + 10 * (60 * MB + 4000) + 40 * MB + 500 * MB
    (chosen,) = one(with_vram(fp8_resident)).phases
    assert (chosen.storage, chosen.placement) == ("bf16", "streamed")


def test_fp8_where_copies_take_longer_than_arithmetic():
    """20 passes of 1 GB over PCIe take 2 s, of 0.6 GB 1.2 s, arithmetic 0.2 s, the disk 1.05 s."""
    (chosen,) = one(with_vram(1000 * MB), flops=1e10).phases
    assert (chosen.storage, chosen.placement) == ("fp8", "streamed")
    assert chosen.seconds == pytest.approx((50 * MB + 20 * 10 * (60 * MB + 4000)) / 10e9)


def test_a_patient_phase_keeps_its_number_type():
    (chosen,) = one(with_vram(1000 * MB), flops=1e10, cast_last_resort=True).phases
    assert (chosen.storage, chosen.placement) == ("bf16", "streamed")


def test_fp8_arithmetic_must_be_asked_for_or_worth_it():
    """With half the operations in Linear layers, twice the rate there makes a pass 4/3 as fast."""
    assert not one().phases[0].native_matmul
    assert one(linear_share=0.7).phases[0].native_matmul  # 1 / (0.3 + 0.35) = 1.54
    kept = one(linear_share=0.7, precision="bf16")
    assert not kept.phases[0].native_matmul, "a chosen number type is not rounded further"
    (asked,) = one(memory="fp8").phases
    assert asked.native_matmul
    assert asked.seconds == pytest.approx(15.0)
    older = replace(MACHINE, native_flops={})
    assert one(older, memory="fp8").phases[0].storage == "fp8"
    assert not one(older, memory="fp8").phases[0].native_matmul


def test_packing_inputs_for_fp8_arithmetic_takes_room():
    (chosen,) = one(memory="fp8", rounded_inputs=300 * MB).phases
    assert chosen.vram == 50 * MB + 10 * (60 * MB + 4000) + 300 * MB + 500 * MB


@pytest.mark.parametrize(
    ("memory", "placement", "storage"),
    [("resident", "resident", "bf16"), ("streamed", "streamed", "bf16"), ("fp8", "resident", "fp8")],
)
def test_widgets_overrule(memory, placement, storage):
    (chosen,) = one(memory=memory).phases
    assert (chosen.placement, chosen.storage) == (placement, storage)
    assert not one(with_vram(600 * MB), memory=memory).fits


def test_low_vram_streams():
    assert one(replace(MACHINE, low_vram=True)).phases[0].placement == "streamed"
    assert one(replace(MACHINE, low_vram=True), memory="resident").phases[0].placement == "resident"


def test_precision_overrules_all_but_the_vae():
    assert one(precision="fp32").phases[0].compute == "fp32"
    assert one(precision="fp32").phases[0].vram == 2 * 1550 * MB
    vae = {"computes": ("fp32", "fp16"), "on_cpu": ("fp32",), "storages": ("fp32",)}
    assert one(precision="bf16", **vae).phases[0].compute == "fp32"
    assert one(CPU, precision="bf16", **vae).phases[0].compute == "fp32"


def test_a_lesser_type_only_where_nothing_else_fits():
    vae = {"computes": ("fp32", "bf16"), "storages": ("fp32",), "streamable": False}
    variants = (Variant("whole", 1000 * MB), Variant("tiled", 100 * MB, 1.5))
    in_tiles = 2100 * MB + 200 * MB
    made = one(with_vram(in_tiles), variants=variants, **vae).phases[0]
    assert (made.compute, made.variant) == ("fp32", "tiled")  # though bf16 fits whole
    least = one(with_vram(in_tiles - 1), variants=variants, **vae)
    assert (least.phases[0].compute, least.phases[0].variant) == ("bf16", "whole")
    assert "sample: fp32 is advised and does not fit." in least.reasons


def test_refused_choices_are_not_taken_again():
    """Each attempt that fails gives the next, until none is left."""
    refused = []
    while (made := one(refused=refused)).fits:
        assert made.phases[0].key not in refused
        refused.append(made.phases[0].key)
    assert [key.partition(" ")[2] for key in refused] == [
        "transformer bf16, resident, whole",
        "transformer bf16, streamed, whole",
        "transformer bf16 stored as fp8, resident, whole",
        "transformer bf16 stored as fp8, streamed, whole",
    ]
    assert made.phases == ()
    assert made.reasons == (
        "sample ran out of memory on a card (7.5 GB free) in every way it can be run. Close other programs, or choose "
        "a smaller size or length.",
    )


def test_a_file_larger_than_memory_is_read_in_every_pass():
    """1.05 GB a pass at 1 GB/s: 21 s, a little more than the arithmetic."""
    small = replace(MACHINE, ram_free=PROCESS_RAM + STAGED + 1000 * MB, vram_free=800 * MB)
    made = one(small, storages=("bf16",))
    assert made.phases[0].seconds == pytest.approx(21.0)
    assert "each of the 20 passes reads it from disk" in made.reasons[-1]
    enough = replace(small, ram_free=PROCESS_RAM + STAGED + 1050 * MB)
    assert one(enough, storages=("bf16",)).phases[0].seconds == 20.0
    assert one(small).phases[0].storage == "fp8"  # which stays in memory


def test_cast_weights_must_fit_main_memory():
    room = PROCESS_RAM + STAGED + 10 * (40 * MB + 4000)
    assert one(replace(MACHINE, ram_free=room, vram_free=749 * MB)).fits
    made = one(replace(MACHINE, ram_free=room - 1, vram_free=749 * MB))
    assert not made.fits


def test_types_on_disk_decide_what_is_copied():
    stored = replace(MODEL, stored="fp32")
    assert one(component=stored).phases[0].ram == PROCESS_RAM + 1050 * MB
    fp8 = replace(MODEL, stored="fp8")
    assert one(component=fp8, memory="fp8").phases[0].ram == PROCESS_RAM


def test_what_each_type_of_a_mixed_file_takes_of_main_memory_is_counted():
    """On a CPU, in fp32: FP8 stays mapped, the tables in fp16 and what is packed become copies, fp32 stays mapped."""
    files = (
        StoredWeights("fp8", 400 * MB, 400 * MB, 10_000, linear=True, castable=True),
        StoredWeights("fp16", 100 * MB, 200 * MB),
        StoredWeights("fp32", 5 * MB, 20 * MB),
        StoredWeights("gguf", 20 * MB, 11 * MB),
    )
    mixed = replace(MODEL, stored="fp8", files=files)
    (chosen,) = one(CPU, component=mixed, memory="fp8").phases
    assert (chosen.compute, chosen.storage) == ("fp32", "fp8")
    # The parameters that no file has are LoRAs'.
    loras = 4 * (mixed.parameters - 525 * MB)
    assert chosen.copied == 4 * 100 * MB + 4 * 20 * MB + loras
    unpacked = 4 * 20 * MB  # the largest layer
    assert chosen.ram == PROCESS_RAM + chosen.copied + 2 * 500 * MB + unpacked
    assert mixed.file_bytes() == 631 * MB
    assert mixed.mapped("fp32", "fp8") == 420 * MB


def two_phases(machine):
    """An encoder whose copy takes 400 MB, and the model, which takes 2.1 GB, both in fp32."""
    encoder = Component("text_encoder", Block(0, 100 * MB), (), "bf16")
    work = phase(name="encode", component=encoder, storages=("bf16",)), phase(storages=("bf16",))
    return plan(work, machine, margin=0)


def test_models_that_stay_in_memory_count_for_later_phases():
    made = two_phases(CPU)
    encode, sample = made.phases
    assert (encode.copied, encode.cached, sample.cached) == (400 * MB, 0, 400 * MB)
    assert made.peak_ram == sample.ram + 400 * MB
    assert "sample: 0.4 GB of models of the phases before stay in memory" in " ".join(made.reasons)


def test_models_of_earlier_phases_leave_where_room_is_needed():
    enough = two_phases(CPU).phases[1].ram
    made = two_phases(replace(CPU, ram_free=enough))
    assert made.fits
    assert (made.phases[1].cached, made.peak_ram) == (0, enough)


def test_an_encoder_runs_on_the_cpu_where_the_card_is_too_small_for_its_table():
    """The table of UMT5-XXL takes 2 GB of the card however its blocks are streamed."""
    encoder = listed_components("wan2.1-vace-1.3b")["text_encoder"]
    work = (phase(name="encode", component=encoder, storages=("bf16", "fp8"), cast_last_resort=True),)
    assert plan(work, synthetic(4, 64)).phases[0].placement == "streamed"
    (small,) = plan(work, synthetic(2, 64)).phases
    assert (small.compute, small.storage, small.placement, small.vram) == ("fp32", "fp32", "cpu", 0)
    assert (small.on("cuda:0"), small.room) == ("cpu", 0)
    (less_ram,) = plan(work, synthetic(2, 24)).phases
    assert (less_ram.storage, less_ram.placement) == ("fp8", "cpu")
    assert not plan(work, synthetic(2, 8)).fits


def test_others_are_asked_for_all_that_a_phase_sets_aside():
    for allocator in ("expandable", "unsplit", "default"):
        machine = synthetic(16, 64, allocator)
        (chosen,) = one(machine).phases
        assert chosen.room > chosen.vram
        # With exactly that much of the card free it fits, and with less it does not.
        enough = replace(machine, vram_free=chosen.room + 1)
        assert chosen.vram <= enough.vram_budget
        assert chosen.vram > replace(machine, vram_free=chosen.room - 100).vram_budget


def test_the_cpu_computes_in_fp32_from_main_memory():
    (chosen,) = one(CPU).phases
    assert (chosen.compute, chosen.placement, chosen.vram, chosen.moved) == ("fp32", "cpu", 0, 0)
    assert chosen.ram == PROCESS_RAM + 2 * 1050 * MB + 2 * 500 * MB
    assert one(replace(CPU, ram_free=chosen.ram - 1)).phases[0].storage == "fp8"


def test_every_other_way_is_told_with_its_reason():
    made = one(with_vram(1000 * MB))
    told = {rejected.choice: rejected.reason for rejected in made.rejected}
    assert set(told) == {
        "bf16, resident, whole",
        "bf16 stored as fp8, resident, whole",
        "bf16 stored as fp8, streamed, whole",
    }
    assert told["bf16, resident, whole"] == "needs 1.4 GB of the card, 0.9 GB can be used"
    assert told["bf16 stored as fp8, streamed, whole"] == "is no faster and rounds the weights"
    assert "weights are streamed, because bf16, resident, whole needs 1.4 GB" in " ".join(made.reasons)


def test_json_holds_what_was_promised():
    made = one().to_json()
    assert made["fits"] is True
    assert made["peak_vram_gb"] == pytest.approx(1550 * MB / GB, abs=0.001)
    assert made["peak_vram_gb"] * GB >= 1550 * MB
    (part,) = made["components"]
    assert (part["name"], part["storage"], part["placement"]) == ("transformer", "bf16", "resident")
    assert {"seconds", "peak_ram_gb", "reasons", "rejected"} <= set(made)


def video(model, width, height, machine, frames=81, **options):
    return plan(wan.phases(listed_components(model), VideoWork(width, height, frames)), machine, **options)


@pytest.mark.parametrize(
    ("model", "width", "height", "vram", "ram"),
    [
        ("wan2.1-vace-14b", 1280, 720, 16, 16),
        ("wan2.1-vace-14b", 1280, 720, 16, 32),
        ("wan2.1-vace-14b", 832, 480, 8, 16),
        ("wan2.1-vace-14b", 832, 480, 8, 64),
        ("wan2.1-vace-14b-fp8", 1280, 720, 16, 32),
        ("wan2.1-vace-1.3b", 832, 480, 6, 16),
        ("wan2.1-vace-1.3b-fp16", 832, 480, 6, 16),
    ],
)
def test_videos_that_must_fit(model, width, height, vram, ram):
    machine = synthetic(vram, ram)
    made = video(model, width, height, machine)
    assert made.fits, made.reasons
    assert made.peak_vram < vram * GB
    assert made.peak_ram < ram * GB


def image(machine):
    return plan(hunyuan.phases(listed_components("hunyuan-dit-v1.2"), hunyuan.ImageWork(1024, 1024)), machine)


def test_an_image_fits_6_gb_and_below():
    assert image(synthetic(6, 16)).fits
    assert {phase.placement for phase in image(synthetic(2, 16)).phases} == {"resident", "streamed"}
    assert image(synthetic(1.7, 16)).phase("encode_2").placement == "cpu"
    assert not image(synthetic(1.6, 16)).fits


def test_a_prompt_model_is_bound_by_reading_its_weights():
    component = listed_components("qwen3-4b")["prompt_model"]
    machine = synthetic(24, 32)
    work = prompting.PromptWork(max_new_tokens=2000)
    (chosen,) = plan(prompting.phases({"prompt_model": component}, work), machine).phases
    assert chosen.seconds == pytest.approx(2000 * component.bytes("bf16", "bf16") / machine.bandwidth)
    assert chosen.placement == "resident"


def test_a_prompt_model_takes_the_time_of_what_is_asked_for_and_the_room_of_the_longest_answer():
    component = listed_components("qwen3-4b")["prompt_model"]
    machine = synthetic(24, 32)

    def made(**work):
        (planned,) = plan(prompting.phases({"prompt_model": component}, prompting.PromptWork(**work)), machine).phases
        return planned

    longest, short = made(max_new_tokens=2000), made(max_new_tokens=2000, answer_tokens=500)
    assert short.vram == longest.vram
    assert short.seconds == pytest.approx(longest.seconds / 4)
    assert made(max_new_tokens=50, answer_tokens=100) == made(max_new_tokens=50)


def test_what_would_fit_does_fit_and_no_more():
    components, machine = listed_components("wan2.1-vace-14b"), synthetic(6, 32)
    handle = ModelHandle(WAN_VACE)
    assert not video("wan2.1-vace-14b", 1280, 720, machine).fits
    work = VideoWork(1280, 720, 81)
    text = what_fits(fitting(components, machine, handle, work), work)
    frames = int(text.split("num_frames ")[1].split(" ")[0])
    assert text.startswith(f"What would fit: num_frames {frames} at 1280×720, or ")
    assert video("wan2.1-vace-14b", 1280, 720, machine, frames).fits
    assert not video("wan2.1-vace-14b", 1280, 720, machine, frames + 4).fits
    size = text.split(", or ")[1].split(" ")[0]
    width, height = map(int, size.split("×"))
    assert video("wan2.1-vace-14b", width, height, machine).fits
    assert width * height < 1280 * 720
    assert "No size or length fits" in what_fits(fitting(components, synthetic(1, 32), handle, work), work)


@pytest.mark.parametrize("limit", [0, 1, 5, 9, 80, 81, 1000])
def test_halving_finds_the_largest(limit):
    expected = max((number for number in range(1, 82, 4) if number <= limit), default=None)
    assert largest(lambda number: number <= limit, 1, 81, 4) == expected


def test_the_table_shows_every_phase():
    machine = synthetic(8, 32)
    made = video("wan2.1-vace-14b", 832, 480, machine)
    text = table(made, machine)
    for name in ("encode", "condition", "sample", "decode"):
        assert f"\n{name}" in text
    assert "streamed" in text
    assert "does not fit" in table(video("wan2.1-vace-14b", 1280, 720, machine), machine)


def test_after_a_run_both_numbers_are_shown():
    from piying.core.planner.plan_types import PhaseMeasurement

    measured = [PhaseMeasurement("sample", 25.0, 1400 * MB, 0)]
    assert cells(after(one(), measured, MACHINE))[1] == ["sample", "1.4 GB", "1.3 GB", "20 s", "25 s"]
    assert cells(after(one(), measured, CPU)) == [
        ["phase", "time, estimated", "time, measured"],
        ["sample", "20 s", "25 s"],
    ]


def test_without_a_card_nothing_is_said_of_one():
    made = plan(wan.phases(listed_components("wan2.1-vace-1.3b"), VideoWork(832, 480, 81)), CPU)
    text = table(made, CPU)
    assert cells(text)[1] == ["phase", "model", "computes in", "stored as", "how", "memory", "time"]
    assert " 0.0 GB" not in text
    assert "card" not in text
    assert {"where", "card", "copied"} < set(cells(table(video("wan2.1-vace-1.3b", 832, 480, MACHINE), MACHINE))[1])


def cells(text):
    """Return the words of each line that stand apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


VAE_TYPES = [
    ({}, "fp32", "fp32"),
    ({"speed": "fast"}, "fp16", "fp32"),
    ({"speed": "fast", "vae_precision": "fp32"}, "fp32", "fp32"),
    ({"vae_precision": "fp16"}, "fp16", "fp16"),
]


@pytest.mark.parametrize(("asked", "on_card", "on_cpu"), VAE_TYPES)
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_what_the_vae_computes_in(asked, on_card, on_cpu, precision):
    phases = wan.phases(listed_components("wan2.1-vace-1.3b"), VideoWork(832, 480, 81, vae=vae_types(**asked)))
    for machine, expected in ((synthetic(24, 64), on_card), (CPU, on_cpu)):
        made = plan(phases, machine, precision=precision)
        assert {made.phase(name).compute for name in ("condition", "decode")} == {expected}
        reason = [line for line in made.reasons if "in place of fp32, because" in line]
        said = "vae_precision is fp16" if "vae_precision" in asked else "speed is fast"
        assert [said in line for line in reason] == [True] * (2 if expected == "fp16" else 0)


def test_fp16_saves_the_vae_memory_and_time():
    components = listed_components("wan2.1-vace-1.3b")
    exact, half = (
        plan(wan.phases(components, VideoWork(832, 480, 81, vae=vae_types(name))), synthetic(24, 64)).phase("decode")
        for name in ("fp32", "fp16")
    )
    assert 1.8 < exact.vram / half.vram < 2.1
    assert exact.seconds == pytest.approx(4 * half.seconds)


def test_the_vae_steps_down_to_fp16():
    decode = wan.phases(listed_components("wan2.1-vace-1.3b"), VideoWork(1280, 720, 81))[-1]
    machine = replace(synthetic(6, 32), vram_free=2000 * 2**20)
    made = plan((decode,), machine)
    assert made.phases[0].choice == "fp16, resident, tiled"
    assert "decode: fp32 is advised and does not fit." in made.reasons
    overflowed = plan(exclude_overflows((decode,), [("decode", "fp16")]), machine)
    assert overflowed.phases[0].choice == "bf16, resident, tiled"


def test_a_vae_that_fits_no_card_runs_beside_it():
    """Its slow way is the last: every way on the card comes first."""
    phases = wan.phases(listed_components("wan2.1-vace-1.3b"), VideoWork(832, 480, 81))
    small = plan(phases, replace(synthetic(6, 32), vram_free=700 * 2**20))
    assert small.phase("decode").placement == "cpu"
    assert small.phase("decode").compute == "fp32"
    assert plan(phases, synthetic(6, 32)).phase("decode").placement == "resident"


def test_apples_devices_hold_int8_and_no_float8():
    apple = replace(MACHINE, device="mps", capability=None, native_flops={}, vram_free=700 * MB)
    phases = wan.phases(listed_components("wan2.1-vace-14b"), VideoWork(832, 480, 81))
    assert {phase.storage for phase in plan(phases, apple, memory="fp8").phases} == {"int8", "fp32"}
    assert {phase.storage for phase in plan(phases, MACHINE, memory="fp8").phases} == {"fp8", "fp32"}


def test_small_amounts_are_said_in_mb():
    sizes = (0, 1, 3 * 2**20, 2**30 // 10 + 1, 2**30)
    assert [amount(size) for size in sizes] == ["0 MB", "1 MB", "3 MB", "0.1 GB", "1.0 GB"]
