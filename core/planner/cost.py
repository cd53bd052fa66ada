"""What one way of running a phase costs: bytes on the card, bytes in main memory, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..files.dtypes import BYTES_BY_SHORT_NAME
from .machine import Machine
from .phases import Phase, Variant
from .plan_types import PhasePlan
from .rates import CPU_BANDWIDTH, CPU_FLOPS

GIB = 2**30
# Python, torch and CUDA's share of main memory: an allowance.
PROCESS_RAM = 2 * GIB
SLOTS = 2  # blocks on the device while streaming
STAGED = 128 * 2**20  # page-locked bytes on their way to them
# fp32 convolutions use TF32 at half the 16-bit rate, and their few channels fill about half of that.
FP32_SLOWDOWN = 4
# A prediction with rounded weights and inputs must be worth it where nobody asked for it.
MATERIALLY_FASTER = 1.5


@dataclass(frozen=True)
class Choice:
    """One way of running a phase; see `PhasePlan` for the attributes."""

    compute: str
    storage: str
    placement: str
    variant: Variant
    fp8_matmul: bool


def choices(phase: Phase, machine: Machine, precision: str = "auto", memory: str = "auto") -> Iterator[Choice]:
    """Yield the ways of running a phase on a machine, best quality first.

    Args:
        precision: `auto`, or the type to compute in, where the phase leaves that to the user.
        memory: one of `devices.MEMORY_CHOICES`; what a phase cannot do it is not held to.
    """
    storages = _wished(_storable(phase.storages, machine), "fp8", memory)
    for compute in _computes(phase, machine, precision):
        for name in storages:
            storage = name if name == "fp8" else compute
            for placement in _placements(phase, machine, memory):
                for variant in phase.variants:
                    yield Choice(compute, storage, placement, variant, False)
                    if storage == "fp8" and _worth_fp8_matmul(phase, compute, machine, memory):
                        yield Choice(compute, storage, placement, variant, True)
    if not machine.is_cpu and not phase.streamable:
        # Minutes instead of seconds; what else a card that is too small for it could do is nothing.
        yield Choice("fp32", "fp32", "cpu", phase.variants[0], False)


def is_last_resort(choice: Choice, machine: Machine) -> bool:
    """Return whether a way leaves the card aside where there is one."""
    return choice.placement == "cpu" and not machine.is_cpu


def _computes(phase: Phase, machine: Machine, precision: str) -> tuple[str, ...]:
    if phase.on_cpu:
        return phase.on_cpu if machine.is_cpu else phase.computes
    if machine.is_cpu and precision == "auto":
        return ("fp32",)  # 16-bit products are emulated there, many times slower
    return phase.computes if precision == "auto" else (precision,)


def _storable(storages: tuple[str, ...], machine: Machine) -> tuple[str, ...]:
    """Return the types the device can hold: torch has no float8 on Apple's."""
    plain = tuple(name for name in storages if name != "fp8")
    return plain or ("bf16",) if machine.device == "mps" else storages


def _wished(offered: tuple[str, ...], name: str, memory: str) -> tuple[str, ...]:
    """Return `name` alone where `memory` asks for it and it is offered."""
    return (name,) if memory == name and name in offered else offered


def _placements(phase: Phase, machine: Machine, memory: str) -> tuple[str, ...]:
    if machine.is_cpu:
        return ("cpu",)
    if not phase.streamable or not phase.component.blocks:
        return ("resident",)
    if memory == "auto" and machine.low_vram:
        return ("streamed",)
    return _wished(("resident", "streamed"), memory, memory)


def _worth_fp8_matmul(phase: Phase, compute: str, machine: Machine, memory: str) -> bool:
    """Whether multiplying in FP8 is asked for, or so much faster that it need not be.

    The answer must not depend on the card's memory: more of it would then make a plan slower.
    """
    if machine.fp8_flops is None or compute != "bf16" or not phase.linear_share:
        return False
    faster = 1 / (1 - phase.linear_share * (1 - machine.bf16_flops / machine.fp8_flops))
    return memory == "fp8" or faster >= MATERIALLY_FASTER


def cost(phase: Phase, choice: Choice, machine: Machine) -> PhasePlan:
    """Return the phase run in one way, with predicted peaks and time."""
    ram = PROCESS_RAM + phase.host + _ram(phase, choice)
    moved = _moved(phase, choice)
    return PhasePlan(
        phase=phase.name,
        component=phase.component.name,
        compute=choice.compute,
        storage=choice.storage,
        placement=choice.placement,
        variant=choice.variant.name,
        fp8_matmul=choice.fp8_matmul,
        vram=0 if choice.placement == "cpu" else _device_bytes(phase, choice) + _working_bytes(phase, choice),
        ram=ram,
        moved=moved,
        seconds=max(_times(phase, choice, machine, moved, machine.ram_free - ram).values()),
        weights=phase.component.bytes(choice.compute, choice.storage),
    )


def bottleneck(phase: Phase, plan: PhasePlan, machine: Machine) -> str:
    """Return what the time of a phase's plan is spent on: `disk`, `copying`, `arithmetic` or `memory`."""
    variant = next(variant for variant in phase.variants if variant.name == plan.variant)
    choice = Choice(plan.compute, plan.storage, plan.placement, variant, plan.fp8_matmul)
    times = _times(phase, choice, machine, plan.moved, machine.ram_free - plan.ram)
    return max(times, key=lambda name: times[name])


def is_mapped(phase: Phase, storage: str) -> bool:
    """Return whether weights stay in their file, mapped, since the type on disk is the one needed."""
    return phase.component.stored == storage


def reread_every_pass(phase: Phase, storage: str, placement: str, cache: int) -> bool:
    """Return whether every pass reads the weights from disk again.

    The system keeps what it read last. Of a file that is run through in a circle and is larger than
    the memory left for it, what comes next is always what has just been dropped.

    Args:
        cache: bytes of main memory left for the contents of files.
    """
    return placement != "resident" and is_mapped(phase, storage) and phase.component.file_bytes() > cache


def _device_bytes(phase: Phase, choice: Choice) -> int:
    component, types = phase.component, (choice.compute, choice.storage)
    if choice.placement == "resident":
        return component.bytes(*types)
    slots = min(SLOTS, len(component.blocks))
    return component.bytes(*types) - component.streamed_bytes(*types) + slots * component.largest_block(*types)


def _working_bytes(phase: Phase, choice: Choice) -> int:
    """Return the peak of what is computed, and of unpacking FP8 weights or packing the inputs for them."""
    packing = 0
    if choice.storage == "fp8":
        packing = phase.fp8_inputs if choice.fp8_matmul else phase.component.unpacked(choice.compute)
    return choice.variant.peak(choice.compute) + packing


def _ram(phase: Phase, choice: Choice) -> int:
    types = (choice.compute, choice.storage)
    copy = 0 if is_mapped(phase, choice.storage) else phase.component.bytes(*types)
    if choice.placement == "streamed":
        return copy + STAGED
    return copy + (_working_bytes(phase, choice) if choice.placement == "cpu" else 0)


def _moved(phase: Phase, choice: Choice) -> int:
    component, types = phase.component, (choice.compute, choice.storage)
    if choice.placement == "cpu":
        return 0
    again = phase.passes - 1 if choice.placement == "streamed" else 0
    return component.bytes(*types) + again * component.streamed_bytes(*types)


def _times(phase: Phase, choice: Choice, machine: Machine, moved: int, cache: int) -> dict[str, float]:
    """Return the seconds each part of the machine is busy; they work at once, so the busiest decides.

    Weights count as not read yet: the disk is part of every first run.
    """
    passes, component = phase.passes, phase.component
    read = component.file_bytes()
    if reread_every_pass(phase, choice.storage, choice.placement, cache):
        read *= passes
    touched = component.bytes(choice.compute, choice.storage)
    if choice.storage == "fp8" and not choice.fp8_matmul:
        # Unpacked weights are written and read once more.
        touched += 2 * BYTES_BY_SHORT_NAME[choice.compute] * sum(block.linear for block in component.blocks)
    return {
        "arithmetic": passes * phase.flops * choice.variant.time_factor / _rate(phase, choice, machine),
        "copying": moved / machine.pcie,
        "disk": read / machine.disk,
        "memory": passes * touched / (CPU_BANDWIDTH if is_last_resort(choice, machine) else machine.bandwidth),
    }


def _rate(phase: Phase, choice: Choice, machine: Machine) -> float:
    """Return operations per second."""
    if is_last_resort(choice, machine):
        return CPU_FLOPS
    if choice.fp8_matmul and machine.fp8_flops is not None:
        share = phase.linear_share
        return 1 / (share / machine.fp8_flops + (1 - share) / machine.bf16_flops)
    slow = choice.compute == "fp32" and not machine.is_cpu
    return machine.bf16_flops / (FP32_SLOWDOWN if slow else 1)
