"""What one way of running a phase costs: bytes on the card, bytes in main memory, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..quantization.registry import storable_on, weight_format
from .machine import CPU_BANDWIDTH, CPU_FLOPS, RESIDENT_SHARE, SHARDED, Machine
from .phases import Phase, Variant
from .plan_types import Compute, PhasePlan, Placement, Storage

GIB = 2**30
# Python, torch and CUDA's share of main memory: an allowance.
PROCESS_RAM = 2 * GIB
# What libraries that are still to be imported, threads and the allocator add to the address space: an allowance.
# torch with all that a run imports takes 0.25 GiB more of it than torch alone (2.13, without a card).
LIBRARIES = GIB // 2
SLOTS = 2  # blocks on the device while streaming
STAGED = 128 * 2**20  # page-locked bytes on their way to them
# fp32 convolutions use TF32 at half the 16-bit rate, and their few channels fill about half of that.
FP32_SLOWDOWN = 4
CAST_RATE = 2 * 10**9  # bytes of fp32 per second that a CPU casts weights to; an allowance
# A prediction with rounded weights and inputs must be worth it where the user did not ask for it.
MATERIALLY_FASTER = 1.5


@dataclass(frozen=True)
class Choice:
    """One way of running a phase; see `PhasePlan` for the attributes."""

    compute: Compute
    storage: Storage
    placement: Placement
    variant: Variant
    native_matmul: bool


def choices(phase: Phase, machine: Machine, precision: str = "auto", memory: str = "auto") -> Iterator[Choice]:
    """Yield the ways of running a phase on a machine, best quality first.

    Args:
        phase: what is to be run.
        machine: where.
        precision: one of `machine.PRECISIONS`, where the phase leaves that to the user.
        memory: one of `machine.MEMORY_CHOICES`; what a phase cannot do it is not held to.
    """
    # Where the device can hold none of the types, its weights are unpacked.
    offered = storable_on(machine.device, phase.storages) or ("bf16",)
    asked = tuple(name for name in offered if name == memory and weight_format(name))
    if machine.is_cpu and (phase.packed_on_cpu or memory == SHARDED):
        # Packed weights take less than those of a format, and are computed with as they are. Shards on a CPU are there
        # to be tried: rounded ones would give other frames than the same run on a card.
        offered = tuple(name for name in offered if not weight_format(name)) or offered
    for compute in offered_computes(phase, machine, precision):
        for name in asked or offered:
            storage = name if weight_format(name) else compute
            for placement in _placements(phase, machine, memory):
                for variant in phase.variants:
                    yield Choice(compute, storage, placement, variant, False)
                    if memory != storage and precision != "auto":
                        continue  # a number type that was chosen is not rounded further unasked
                    if _worth_native_matmul(phase, compute, storage, machine=machine, memory=memory):
                        yield Choice(compute, storage, placement, variant, True)
    if not machine.is_cpu and (not phase.streamable or phase.cast_last_resort):
        # Minutes instead of seconds; what else a card that is too small for it could do is nothing.
        for storage in ("fp32", *(name for name in phase.storages if weight_format(name))):
            yield Choice("fp32", storage, "cpu", phase.variants[0], False)


def is_last_resort(choice: Choice, machine: Machine) -> bool:
    """Return whether a way leaves the card aside where there is one."""
    return choice.placement == "cpu" and not machine.is_cpu


def offered_computes(phase: Phase, machine: Machine, precision: str) -> tuple[Compute, ...]:
    """Return the number types a phase may compute in on a machine, best first."""
    if phase.on_cpu:
        return phase.on_cpu if machine.is_cpu else phase.computes
    if machine.is_cpu and precision == "auto":
        return ("fp32",)  # 16-bit products are emulated there, many times slower
    return phase.computes if precision == "auto" else (cast(Compute, precision),)


def _placements(phase: Phase, machine: Machine, memory: str) -> tuple[Placement, ...]:
    if memory == SHARDED and phase.shards > 1:
        return (SHARDED,)
    if machine.is_cpu:
        return ("cpu",)
    if not phase.streamable or not phase.component.blocks:
        return ("resident",)
    if memory == "streamed" or (memory == "auto" and machine.low_vram):
        return ("streamed",)
    if memory == "resident":
        return ("resident",)
    return ("resident", "streamed", SHARDED) if phase.shards > 1 else ("resident", "streamed")


def _worth_native_matmul(phase: Phase, compute: Compute, storage: Storage, *, machine: Machine, memory: str) -> bool:
    """Whether multiplying in the stored format is asked for, or so much faster that it need not be.

    The answer must not depend on the card's memory: more of it would then make a plan slower.
    """
    stored, flops = weight_format(storage), machine.native_flops.get(storage)
    if stored is None or stored.kernel is None or flops is None or compute not in stored.kernel.computes:
        return False
    if not phase.linear_share:
        return False
    faster = 1 / (1 - phase.linear_share * (1 - machine.bf16_flops / flops))
    return memory == storage or faster >= MATERIALLY_FASTER


def cost(phase: Phase, choice: Choice, machine: Machine) -> PhasePlan:
    """Return the phase run in one way, with predicted peaks and time."""
    component = phase.component
    types = phase.held_types(choice.compute, choice.storage, is_cpu=machine.is_cpu)
    weights, streamed = component.bytes(*types), component.streamed_bytes(*types)
    # Where layers multiply in the stored format their inputs are rounded, else their weights unpacked.
    working = choice.variant.peak(choice.compute)
    working += phase.rounded_inputs if choice.native_matmul else component.unpacked(*types)
    copied = component.copied(*types)
    ram = PROCESS_RAM + phase.host + copied
    if choice.placement == "resident":
        vram, moved = weights + int(weights * RESIDENT_SHARE[machine.allocator]) + working, weights
    elif choice.placement == "streamed":
        slots = min(SLOTS, len(component.blocks))
        vram = weights - streamed + slots * component.largest_block(*types) + working
        # What lies outside the blocks is copied once, the blocks again in every pass.
        moved = weights + (phase.passes - 1) * streamed
        ram += STAGED
    elif choice.placement == SHARDED:
        held = weights - streamed + streamed // phase.shards
        vram, moved = held + min(SLOTS, len(component.blocks)) * component.largest_block(*types) + working, held
        if machine.is_cpu:
            vram, moved, ram = 0, 0, ram + vram
    else:
        vram = moved = 0
        ram += working
    times = _times(phase, choice, machine, moved=moved, cache=machine.ram_free - ram)
    if machine.is_cpu or choice.placement == "cpu":
        # One after the other: the same cores read, cast, unpack and compute.
        seconds = times["disk"] + times["casting"] + times["unpacking"] + max(times["arithmetic"], times["memory"])
        seconds += times["gathering"]
    else:
        seconds = max(times.values())
    seconds += phase.passes * phase.exchange
    return PhasePlan(
        phase=phase.name,
        component=component.name,
        compute=choice.compute,
        storage=choice.storage,
        placement=choice.placement,
        variant=choice.variant.name,
        native_matmul=choice.native_matmul,
        vram=vram,
        ram=ram,
        moved=moved,
        seconds=seconds,
        weights=weights,
        copied=copied,
        loading=times["disk"] + times["casting"],
        room=machine.room(vram),
        # A file is mapped while it is read, whatever its weights are cast to.
        address_space=ram - PROCESS_RAM + LIBRARIES + component.file_bytes(),
    )


def bottleneck(phase: Phase, plan: PhasePlan, machine: Machine) -> str:
    """Return what the time of a phase's plan is spent on: a key of `LIMITED_BY`."""
    variant = next(variant for variant in phase.variants if variant.name == plan.variant)
    choice = Choice(plan.compute, plan.storage, plan.placement, variant, plan.native_matmul)
    times = _times(phase, choice, machine, moved=plan.moved, cache=machine.ram_free - plan.ram)
    return max(times, key=lambda name: times[name])


def reread_every_pass(phase: Phase, compute: Compute, storage: Storage, *, placement: Placement, cache: int) -> bool:
    """Return whether every pass reads the weights from disk again.

    The system keeps what it read last. Of a file that is run through in a circle and is larger than
    the memory left for it, what comes next is always what has just been dropped.

    Args:
        phase: what runs through the weights.
        compute, storage: what is computed in, and what they are stored in.
        placement: where they are.
        cache: bytes of main memory left for the contents of files.
    """
    return placement not in ("resident", SHARDED) and phase.component.mapped(compute, storage) > cache


def _times(phase: Phase, choice: Choice, machine: Machine, *, moved: int, cache: int) -> dict[str, float]:
    """Return the seconds each part of the machine is busy; beside a card they work at once, so the busiest decides.

    Weights count as not read yet: the disk is part of every first run.
    """
    passes, component = phase.passes, phase.component
    types = phase.held_types(choice.compute, choice.storage, is_cpu=machine.is_cpu)
    read = component.file_bytes()
    if reread_every_pass(phase, *types, placement=choice.placement, cache=cache):
        read += (passes - 1) * component.mapped(*types)
    touched, stored = component.bytes(*types), weight_format(choice.storage)
    linear = component.unpacked_weights(choice.storage)
    unpacking_rate = None if machine.rates is None else machine.rates.unpacking.get(choice.storage)
    if stored is not None and not choice.native_matmul and unpacking_rate is None:
        touched += stored.unpacking_traffic(linear, choice.compute)
    bandwidth = CPU_BANDWIDTH if is_last_resort(choice, machine) else machine.bandwidth
    # Of casting on the CPU only the memory's traffic is known; on the way to a card it is hidden behind the copies.
    cast = component.converted(*types) if machine.is_cpu or choice.placement == "cpu" else 0
    gathered = component.streamed_bytes(*types) * (1 - 1 / phase.shards) if choice.placement == SHARDED else 0.0
    return {
        "arithmetic": passes * phase.flops * choice.variant.time_factor / _flops(phase, choice, machine),
        "copying": moved / machine.pcie,
        "gathering": passes * gathered / phase.split.link,
        "disk": read / machine.disk,
        "casting": cast * BYTES_BY_SHORT_NAME["fp32"] / CAST_RATE,
        "memory": passes * touched / bandwidth,
        "unpacking": passes * linear / unpacking_rate if stored is not None and unpacking_rate else 0.0,
    }


def _flops(phase: Phase, choice: Choice, machine: Machine) -> float:
    """Return the operations per second of one way of running a phase."""
    if is_last_resort(choice, machine):
        return CPU_FLOPS  # the machine's own rates are those of its card
    if choice.native_matmul:
        share = phase.linear_share
        return 1 / (share / machine.native_flops[choice.storage] + (1 - share) / machine.bf16_flops)
    if machine.rates is not None:
        measured = machine.rates.convolution if phase.convolutional else machine.rates.flops
        return measured.get(choice.compute) or measured.get("bf16") or measured["fp32"]
    if choice.compute == "fp32" and not machine.is_cpu:
        return machine.bf16_flops / FP32_SLOWDOWN
    return machine.bf16_flops
