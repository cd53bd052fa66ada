"""What holds for every plan: budgets, and that more memory never costs time and more work never saves any."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from piying.core.catalog.component_sizes import listed_components
from piying.core.hunyuan_dit import phases as hunyuan
from piying.core.parallel.cards import ONE_CARD, CardSplit
from piying.core.planner.cost import choices, cost
from piying.core.planner.machine import ALLOCATOR_BYTES, ALLOCATOR_SHARE, WORKSPACES, Machine
from piying.core.planner.phases import Block, Component, Phase, Variant
from piying.core.planner.plan import plan
from piying.core.wan import phases as wan
from piying.core.wan.request import VAE_PRECISIONS
from piying.core.wan.speed import vae_types

GB = 2**30
VIDEO_MODELS = [
    listed_components(f"wan2.1-vace-{name}") for name in ("1.3b", "1.3b-fp16", "14b", "14b-fp16", "14b-fp8")
]
IMAGE_MODEL = listed_components("hunyuan-dit-v1.2")

sizes = st.integers(0, 100 * GB)
rates = st.floats(1e8, 1e15)
counts = st.integers(0, 10**9)
sides = st.integers(1, 128).map(lambda number: 16 * number)
lengths = st.integers(0, 60).map(lambda number: 4 * number + 1)
memories = st.sampled_from(["auto", "resident", "streamed", "sharded", "fp8"])


@st.composite
def machines(draw):
    vram, ram = draw(sizes), draw(sizes)
    flops = draw(rates)
    return Machine(
        device=draw(st.sampled_from(["cuda:0", "cuda:0", "cuda:0", "cpu"])),
        name="drawn",
        vram_total=vram,
        vram_free=vram,
        ram_total=ram,
        ram_free=ram,
        pcie=draw(rates),
        disk=draw(rates),
        bf16_flops=flops,
        native_flops=draw(st.sampled_from([{}, {"fp8": 2 * flops}])),
        bandwidth=draw(rates),
        low_vram=draw(st.booleans()),
        allocator=draw(st.sampled_from(sorted(ALLOCATOR_SHARE))),
    )


@st.composite
def videos(draw):
    """The work of some video, as a function of its size and length."""
    components = draw(st.sampled_from(VIDEO_MODELS))
    references, cfg, steps = draw(st.integers(0, 3)), draw(st.sampled_from([1.0, 5.0])), draw(st.integers(1, 60))
    vae = vae_types(draw(st.sampled_from(VAE_PRECISIONS)))

    def work(width, height, frames):
        return wan.phases(
            components, wan.VideoWork(width, height, frames, references=references, cfg=cfg, steps=steps, vae=vae)
        )

    return work


@st.composite
def phases(draw):
    """Any phase, of blocks of any size."""
    block = Block(draw(counts), draw(counts), draw(st.integers(0, 10**5)), draw(counts))
    blocks = (block,) * draw(st.integers(0, 5))
    component = Component("model", Block(0, draw(counts)), blocks, draw(st.sampled_from(["bf16", "fp32", "fp8"])))
    variants = (Variant("whole", draw(sizes)), Variant("tiled", draw(sizes), draw(st.floats(1, 3))))
    return Phase(
        name="sample",
        component=component,
        computes=draw(st.sampled_from([("bf16",), ("fp32", "bf16"), ("fp16", "fp32", "bf16")])),
        on_cpu=draw(st.sampled_from([(), ("fp32",), ("fp16", "fp32")])),
        storages=draw(st.sampled_from([("bf16",), ("bf16", "fp8"), ("fp8",)])),
        flops=draw(st.floats(0, 1e18)),
        linear_share=draw(st.floats(0, 0.99)),
        passes=draw(st.integers(1, 100)),
        variants=variants[: draw(st.integers(1, 2))],
        streamable=draw(st.booleans()),
        host=draw(sizes),
        rounded_inputs=draw(sizes),
        cast_last_resort=draw(st.booleans()),
        split=draw(st.sampled_from([ONE_CARD, CardSplit("sequence", 2, draw(rates)), CardSplit("sequence", 8, 1e9)])),
    )


works = st.one_of(
    st.lists(phases(), min_size=1, max_size=3).map(tuple),
    st.builds(lambda work, *size: work(*size), videos(), sides, sides, lengths),
    st.builds(lambda *size: hunyuan.phases(IMAGE_MODEL, hunyuan.ImageWork(*size)), sides, sides, st.just(5.0)),
)


@given(works, machines(), memories)
def test_what_fits_stays_within_the_budget(work, machine, memory):
    made = plan(work, machine, memory=memory)
    if made.fits:
        assert made.peak_vram <= machine.vram_budget
        assert made.peak_ram <= machine.ram_free
        assert len(made.phases) == len(work)


def edges(work, machine, memory):
    """Return the amounts of card and main memory at which some way of running a phase begins to fit."""
    ways = [cost(phase, choice, machine) for phase in work for choice in choices(phase, machine, memory=memory)]
    share, fixed = ALLOCATOR_SHARE[machine.allocator], ALLOCATOR_BYTES + WORKSPACES
    return sorted({math.ceil(way.vram * (1 + share)) + fixed for way in ways}), sorted({way.ram for way in ways})


@given(works, machines(), memories, st.data())
def test_more_memory_never_makes_a_plan_slower(work, machine, memory, data):
    cards, mains = edges(work, machine, memory)
    vram, ram = st.sampled_from(cards), st.sampled_from([*mains, mains[-1] + 100 * GB])

    def drawn():
        return replace(machine, vram_free=data.draw(vram), ram_free=data.draw(ram))

    one, other = drawn(), drawn()
    larger = replace(
        machine, vram_free=max(one.vram_free, other.vram_free), ram_free=max(one.ram_free, other.ram_free)
    )
    more = plan(work, larger, memory=memory)
    for less in (plan(work, one, memory=memory), plan(work, other, memory=memory)):
        if less.fits:
            assert more.fits
            assert more.seconds <= less.seconds


@given(videos(), sides, sides, lengths, st.tuples(*[st.integers(0, 40)] * 3), machines(), memories)
def test_more_pixels_and_frames_never_save_anything(work, width, height, frames, grown, machine, memory):
    small = work(width, height, frames)
    large = work(width + 16 * grown[0], height + 16 * grown[1], frames + 4 * grown[2])
    before, after = plan(small, machine, memory=memory), plan(large, machine, memory=memory)
    if after.fits:
        assert before.fits
        assert before.seconds <= after.seconds
    for one, other in zip(small, large, strict=True):
        assert one.variants[0].peak("bf16") <= other.variants[0].peak("bf16")
        assert one.flops <= other.flops


@given(works, machines(), memories, st.randoms(use_true_random=False))
def test_refused_choices_are_never_returned(work, machine, memory, random):
    """Running out of memory in any phase, any number of times, always ends."""
    refused = set()
    while (made := plan(work, machine, refused, memory=memory)).fits:
        assert not refused & {phase.key for phase in made.phases}
        refused.add(random.choice(made.phases).key)
    assert not refused & {phase.key for phase in made.phases}


@given(works, machines(), memories)
def test_the_same_question_has_the_same_answer(work, machine, memory):
    assert plan(work, machine, memory=memory) == plan(work, machine, memory=memory)


@given(phases(), machines(), memories)
def test_every_way_is_either_taken_or_told(phase, machine, memory):
    made = plan((phase,), machine, memory=memory)
    assert all(rejected.reason for rejected in made.rejected)
    assert made.phases[0].choice not in {told.choice for told in made.rejected}
    assert made.peak_vram == max((phase.vram for phase in made.phases), default=0)
    assert made.moved == sum(phase.moved for phase in made.phases)


@given(phases(), machines(), memories, st.data())
def test_nothing_that_fits_is_faster(phase, machine, memory, data):
    """Among the ways with the best number type; patient phases prefer exactness."""
    phase = replace(phase, cast_last_resort=False)
    cards, mains = edges((phase,), machine, memory)
    machine = replace(machine, vram_free=data.draw(st.sampled_from(cards)), ram_free=data.draw(st.sampled_from(mains)))
    made = plan((phase,), machine, memory=memory)
    ways = [cost(phase, choice, machine) for choice in choices(phase, machine, memory=memory)]
    if made.fits and made.phases[0].compute == ways[0].compute:
        on_card = [way for way in ways if machine.is_cpu or way.vram <= machine.vram_budget]
        fitting = [way for way in on_card if way.ram <= machine.ram_free and way.compute == ways[0].compute]
        # The CPU beside a card is the last resort, and counts as no faster than what it stands in for.
        first = [way for way in fitting if machine.is_cpu or way.placement != "cpu"]
        if first:
            assert made.seconds == min(way.seconds for way in first)
        else:
            assert made.seconds >= min(way.seconds for way in fitting)
