"""The machine a plan is made for: what is read, what rules change, what is imagined."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from piying.core.executor.model_cache import cached_model, evict_models
from piying.core.host.headless import HeadlessHost
from piying.core.planner import machine as machines
from piying.core.planner.machine import CONTEXT, OTHERS_RAM, Machine, peak_operations, read_machine, synthetic

GB = 2**30
CARD = Machine(
    device="cuda:0",
    name="NVIDIA GeForce RTX 4090",
    vram_total=24 * GB,
    vram_free=20 * GB,
    ram_total=64 * GB,
    ram_free=50 * GB,
    pcie=24e9,
    disk=2e9,
    bf16_flops=80e12,
    native_flops={"fp8": 160e12},
    bandwidth=800e9,
    capability=(8, 9),
)


def limited(**rules):
    from piying.core.host.base import MemoryRules

    return machines._limited(CARD, MemoryRules(**rules))


def test_this_machine_is_read():
    found = read_machine(HeadlessHost(chosen_device="cpu"))
    assert (found.device, found.vram_free, found.is_cpu) == ("cpu", 0, True)
    assert found.ram_total == psutil.virtual_memory().total
    assert 0 < found.ram_free <= found.ram_total


def test_limits_stand_for_a_card_only_where_plans_alone_are_made():
    limits = {"chosen_device": "cpu", "vram": 8 * GB, "ram": 16 * GB}
    assert read_machine(HeadlessHost(**limits)).is_cpu
    imagined = read_machine(HeadlessHost(**limits, imagined=True))
    assert (imagined.device, imagined.vram_total, imagined.vram_free) == ("cuda:0", 8 * GB, 8 * GB - CONTEXT)
    assert imagined.ram_free == 16 * GB - OTHERS_RAM
    assert imagined == synthetic(8, 16)


@pytest.mark.parametrize(
    ("rules", "total", "free"),
    [
        ({}, 24, 20),
        ({"evictable": 3 * GB}, 24, 23),
        ({"evictable": 8 * GB}, 24, 24),
        ({"reserved": 2 * GB}, 24, 18),
        ({"vram": 8 * GB}, 8, 8),
        ({"vram": 80 * GB}, 24, 20),
        ({"reserved": 30 * GB}, 24, 0),
    ],
)
def test_rules_of_the_program_around(rules, total, free):
    found = limited(**rules)
    assert (found.vram_total, found.vram_free) == (total * GB, free * GB)


def test_a_larger_card_can_be_imagined_on_a_real_one():
    found = limited(vram=80 * GB, imagined=True)
    assert (found.vram_total, found.vram_free) == (80 * GB, 80 * GB - CONTEXT)
    assert found.bf16_flops == CARD.bf16_flops


@pytest.mark.parametrize(
    ("settings", "platform", "allocator"),
    [
        ("", "linux", "expandable"),
        ("", "win32", "unsplit"),
        ("expandable_segments:True", "linux", "expandable"),
        ("expandable_segments:True", "win32", "default"),
        ("expandable_segments:False", "linux", "default"),
        ("garbage_collection_threshold:0.8, expandable_segments:True", "linux", "expandable"),
        ("garbage_collection_threshold:0.8", "linux", "default"),
        ("max_split_size_mb:512", "win32", "unsplit"),
        ("backend:cudaMallocAsync", "win32", "expandable"),
    ],
)
def test_how_the_allocator_places_tensors(monkeypatch, settings, platform, allocator):
    monkeypatch.setattr(machines.sys, "platform", platform)
    assert machines.allocator_of(settings) == allocator


def test_what_the_user_set_for_the_allocator_is_read(monkeypatch):
    for name in machines.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert machines.allocator_settings() == ""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert machines.allocator_settings() == "max_split_size_mb:128"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:False")
    assert machines.allocator_settings() == "expandable_segments:False"
    imagined = read_machine(HeadlessHost(chosen_device="cpu", vram=8 * GB, imagined=True))
    assert imagined.allocator == "default"


def test_a_backend_that_the_program_around_chose_is_read(monkeypatch):
    """ComfyUI starts torch with CUDA's own allocator where the card has it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert machines.allocator_of(machines.allocator_settings()) == "expandable"


@pytest.mark.parametrize("allocator", sorted(machines.ALLOCATOR_SHARE))
def test_the_budget_leaves_room_for_gaps_and_workspaces(allocator):
    card = synthetic(8, allocator=allocator)
    taken = card.vram_budget * (1 + machines.ALLOCATOR_SHARE[allocator])
    left = card.vram_free - machines.ALLOCATOR_BYTES - machines.WORKSPACES - taken
    assert 0 <= left < 2
    assert synthetic(0.5, allocator=allocator).vram_budget == 0


def test_low_vram_is_passed_on():
    assert limited(low_vram=True).low_vram


# Dense bf16 with float32 sums, from NVIDIA's papers on each architecture.
@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "clock", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41e9, 312),
        ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.83e9, 989),
        ("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695e9, 71),
        ("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52e9, 165.2),
        ("NVIDIA L40S", (8, 9), 142, 2.52e9, 362),
        ("Tesla V100-SXM2-32GB", (7, 0), 80, 1.53e9, 125),
    ],
)
def test_rates_are_those_of_the_papers(name, capability, multiprocessors, clock, teraflops):
    found = peak_operations(capability, multiprocessors, clock, name)
    assert found / 1e12 == pytest.approx(teraflops, rel=0.02)


def test_models_kept_from_before_make_room(monkeypatch):
    """Else a second run would plan with the memory that its own model takes."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=8 * GB))
    host = HeadlessHost(chosen_device="cpu")
    evict_models()
    assert read_machine(host).ram_free == 8 * GB
    layer = cached_model("test", "key", lambda: torch.nn.Linear(4096, 4096))
    try:
        assert read_machine(host).ram_free == 8 * GB + 4 * (4096 * 4096 + 4096)
        assert layer.weight.is_cpu
    finally:
        evict_models("test")
