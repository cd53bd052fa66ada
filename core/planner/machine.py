"""The machine a plan is made for: sizes in bytes, rates per second."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ..accelerator import available_devices, card_module
from ..errors import PiyingError
from ..files.dtypes import torch_dtype
from ..main_memory import MemoryLimit, memory_limits
from ..quantization.kernel_fault import kernel_fault
from ..quantization.registry import FORMATS
from .plan_types import GB, Compute, PhasePlan, Rates

if TYPE_CHECKING:
    import torch

    from ..host.base import DevicePolicy, MemoryRules
    from ..parallel.cards import Cards


# What a machine that is not there to be asked has less than its makers say: CUDA's context on the card, the
# system and other programs in main memory. Allowances.
CONTEXT = 300 * 2**20
OTHERS_RAM = 2 * GB

# How torch's allocator places tensors on a card: in segments that grow page by page, so that what is free in one place
# serves any tensor; in segments of which the large ones are never split, and given back one by one (for Windows, where
# none can grow); or in torch's default way.
Allocator = Literal["expandable", "unsplit", "default"]
# What is set for a run where nobody has set anything (torch's notes on CUDA: "Optimizing memory usage").
ALLOCATOR_SETTINGS: Mapping[Allocator, str] = {
    "expandable": "expandable_segments:True",
    "unsplit": "max_split_size_mb:64",
}
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# What the allocator takes of a card beyond a phase's tensors, as a share of them and in bytes: gaps, rounding, the
# workspace of cuBLAS. benchmarks/simulate.py replays every phase, and fails where it is less than one needs.
ALLOCATOR_SHARE: Mapping[Allocator, float] = {"expandable": 0.02, "unsplit": 0.02, "default": 0.36}
# Of weights that are all on the card, which then lie in segments of their own.
RESIDENT_SHARE: Mapping[Allocator, float] = {"expandable": 0.0, "unsplit": 0.05, "default": 0.0}
ALLOCATOR_BYTES = 192 * 2**20
# Of cuDNN's convolutions and of kernels of attention; no replay tells it. An allowance.
WORKSPACES = 256 * 2**20

# What machines reach, from what is written about them; for estimates, never for what fits.
GIGA = 10**9  # rates count in powers of ten, unlike memory

# Dense 16-bit operations per clock and multiprocessor, with sums in float32, by compute capability: the
# rates of NVIDIA's architecture papers (A100 312e12 = 108 * 1.41e9 * 2048, RTX 4090 165e12 = 128 * 2.52e9 * 512,
# H100 989e12 = 132 * 1.83e9 * 4096, …). GeForce cards sum in float32 at half the rate of workstation cards.
OPERATIONS_PER_CLOCK = {(7, 0): 1024, (7, 5): 512, (8, 0): 2048, (8, 6): 512, (8, 9): 512, (9, 0): 4096, (12, 0): 512}
UNKNOWN_OPERATIONS = 512

# Published Wan2.1 times are 36 % (H100), 63 % (A100), 64 % (H20) and 66 % (RTX 4090) of the dense peak.
REACHED = 0.5
MEMORY_REACHED = 0.8  # of the memory's nominal rate

# Page-locked copies as commonly reached: PCIe 3, 4 and 5 with 16 lanes.
PCIE = {7: 12 * GIGA, 8: 24 * GIGA, 9: 50 * GIGA}
NEWEST_PCIE = 50 * GIGA
DISK = 2 * GIGA  # a mapped file on an NVMe disk
CPU_FLOPS = 100 * GIGA  # float32, a few cores
CPU_BANDWIDTH = 30 * GIGA

# The assumed card where there is none, of 2022's middle class: RTX 4070 class, PCIe 4 with 16 lanes.
TYPICAL_NAME = "a card of the RTX 4070 class"
TYPICAL_CAPABILITY = (8, 9)
TYPICAL_CLOCK = 2.475e9
TYPICAL_PEAK = 46 * TYPICAL_CLOCK * 512  # dense bf16 with float32 sums
TYPICAL_BANDWIDTH = 504 * GIGA


@dataclass(frozen=True)
class Machine:
    """What a plan may count on.

    Attributes:
        device: the torch device, such as `cuda:0` or `cpu`.
        name: the device's name, for people.
        vram_total, vram_free: bytes of the card; free is what will be there once other tenants have
            left. 0 on a CPU.
        ram_total, ram_free: bytes of main memory; what merely holds files that could be read again
            counts as free.
        pcie: bytes per second from main memory to the card.
        disk: bytes per second from the disk that holds the models.
        bf16_flops: operations per second in 16-bit types, as reached in practice; fp32 on a CPU.
        native_flops: the same for matrix products in the weight formats that the device multiplies in.
        bandwidth: bytes per second between the device's memory and its arithmetic.
        capability: CUDA's compute capability; None elsewhere.
        low_vram: the user asked to spare the card (ComfyUI's `--lowvram`).
        allocator: how torch places tensors on the card.
        ram_limit: what holds main memory below what the machine has; `ram_total` and `ram_free` are within it.
        map_limit: a limit for which mapped files count, and are not evicted.
        rates: what was measured here; the other rates are then measured ones too. None before.
        second: the second card, where phases that can be moved may run; its main memory is the machine's.
    """

    device: str
    name: str
    vram_total: int
    vram_free: int
    ram_total: int
    ram_free: int
    pcie: float
    disk: float
    bf16_flops: float
    bandwidth: float
    native_flops: Mapping[str, float] = field(default_factory=dict)
    capability: tuple[int, int] | None = None
    low_vram: bool = False
    allocator: Allocator = "expandable"
    ram_limit: MemoryLimit | None = None
    map_limit: MemoryLimit | None = None
    rates: Rates | None = None
    second: Machine | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether there is no card: everything is computed from main memory."""
        return self.device == "cpu"

    @property
    def vram_budget(self) -> int:
        """The bytes of tensors that fit the free part of the card, beside what libraries and the allocator take."""
        free = self.vram_free - WORKSPACES - ALLOCATOR_BYTES
        return max(0, int(free / (1 + ALLOCATOR_SHARE[self.allocator])))

    def of(self, planned: PhasePlan) -> Machine:
        """Return the machine that a phase runs on: this one, or the second card."""
        return self.second if planned.device and self.second is not None else self

    def room(self, vram: int) -> int:
        """Return the bytes of the card that tensors take with all of that: what `vram_budget` is the inverse of."""
        return int(vram * (1 + ALLOCATOR_SHARE[self.allocator])) + ALLOCATOR_BYTES + WORKSPACES if vram else 0


def peak_operations(capability: tuple[int, int], multiprocessors: int, clock: float, name: str) -> float:
    """Return a card's dense 16-bit operations per second.

    Args:
        capability: CUDA's compute capability.
        multiprocessors: their number.
        clock: hertz.
        name: the card's name, which tells GeForce from workstation cards.
    """
    per_clock = OPERATIONS_PER_CLOCK.get(capability, UNKNOWN_OPERATIONS)
    halved = per_clock == UNKNOWN_OPERATIONS and "GeForce" not in name and capability >= (8, 0)
    return multiprocessors * clock * per_clock * (2 if halved else 1)


def pcie_rate(capability: tuple[int, int]) -> float:
    """Return the bytes per second that cards of this generation reach over PCIe."""
    return PCIE.get(capability[0], NEWEST_PCIE)


def synthetic(vram_gb: float, ram_gb: float = 32.0, allocator: Allocator = "expandable") -> Machine:
    """Return a machine that is not there: a typical card with so much memory, in GB of 2**30 bytes.

    The rates are those of one card whatever its size, so that plans for several sizes compare.
    """
    vram, ram = int(vram_gb * GB), int(ram_gb * GB)
    flops = TYPICAL_PEAK * REACHED
    return Machine(
        device="cuda:0",
        name=TYPICAL_NAME,
        vram_total=vram,
        vram_free=max(0, vram - CONTEXT),
        ram_total=ram,
        ram_free=max(0, ram - OTHERS_RAM),
        pcie=pcie_rate(TYPICAL_CAPABILITY),
        disk=DISK,
        bf16_flops=flops,
        native_flops=_native_flops(flops, TYPICAL_CAPABILITY),
        bandwidth=TYPICAL_BANDWIDTH * MEMORY_REACHED,
        capability=TYPICAL_CAPABILITY,
        allocator=allocator,
    )


def allocator_settings() -> str:
    """Return how the user, or the program around the pack, has set torch's allocator of the card up; "" for not."""
    import torch

    backend = torch.cuda.get_allocator_backend() if torch.cuda.is_available() else "native"
    if backend != "native":
        return f"backend:{backend}"
    return next((os.environ[name] for name in ALLOCATOR_VARIABLES if os.environ.get(name)), "")


def allocator_of(settings: str) -> Allocator:
    """Return how torch's allocator places the tensors of a run on this platform.

    Args:
        settings: from `allocator_settings`; where there are none, those of `ALLOCATOR_SETTINGS` are made for the run.
    """
    import torch

    chosen = settings.lower().replace(" ", "")
    can_grow = sys.platform == "linux" and torch.version.hip is None
    # CUDA's own allocator maps pages where they are needed, on every platform.
    if "cudamallocasync" in chosen or (can_grow and (not chosen or "expandable_segments:true" in chosen)):
        return "expandable"
    return "unsplit" if not chosen or "max_split_size_mb" in chosen else "default"


def _native_flops(flops: float, capability: tuple[int, int], device: str = "") -> dict[str, float]:
    """Return the rates of matrix products in the weight formats that a card multiplies in.

    Args:
        device: on which kernels of packages are tried; "" for a card that is not here, which counts on torch alone.
    """
    found = {}
    for name, one in FORMATS.items():
        speedup = one.matmul_speedup(capability)
        is_there = not one.kernel or not one.kernel.function or (device and not kernel_fault(name, device))
        if speedup is not None and is_there:
            found[name] = flops * speedup
    return found


def of_several_cards(machine: Machine, cards: Cards | None) -> Machine:
    """Return a machine with several of its card: what is planned, measured and refused for those is told apart."""
    if cards is None or cards.count == 1:
        return machine
    # The plan is one for all of them, so it is made for the smallest.
    total = min(machine.vram_total, cards.vram or machine.vram_total)
    free = min(machine.vram_free, total)
    return replace(machine, name=f"{cards.count} × {machine.name}", vram_total=total, vram_free=free)


def read_machine(policy: DevicePolicy, second: str = "") -> Machine:
    """Return the machine the host runs on, within the limits its memory rules set.

    Args:
        policy: says which device to use and what others hold of it. Where its rules are imagined, a limit
            stands for a card that is not there.
        second: the second card, from `parallel.second_card`; "" for none.

    Raises:
        PiyingError: the chosen device cannot be used, or a second card is imagined without a first one.
    """
    rules, device = policy.memory_rules(), policy.device()
    memory = _main_memory(rules)
    if card_module(device) is not None:
        machine = _limited(_read_card(device, memory.total, memory.free), rules)
    elif rules.imagined and rules.vram is not None:
        card = synthetic(rules.vram / GB, memory.total / GB, allocator_of(allocator_settings()))
        machine = replace(card, ram_free=memory.free, low_vram=rules.low_vram)
    else:
        shared = device != "cpu"  # a device that shares its memory with the processor, such as Apple's
        machine = Machine(
            device=device,
            name=device.upper(),
            vram_total=memory.total if shared else 0,
            vram_free=memory.free if shared else 0,
            ram_total=memory.total,
            ram_free=memory.free,
            pcie=CPU_BANDWIDTH,
            disk=DISK,
            bf16_flops=CPU_FLOPS,
            bandwidth=CPU_BANDWIDTH,
        )
    machine = replace(machine, ram_limit=memory.limit, map_limit=memory.map_limit)
    return replace(machine, second=_read_second(second, machine, policy)) if second else machine


def _read_second(device: str, first: Machine, policy: DevicePolicy) -> Machine:
    """Return the second card within its own limits; one that is not there is of the first one's kind."""
    rules = policy.memory_rules(device)
    if first.is_cpu:
        raise PiyingError(
            "--second-vram-gb: there is no card here that a second one could stand beside. Say how large the first "
            "one is, such as --vram-gb 16."
        )
    if rules.imagined and rules.vram is not None and device not in available_devices():
        free = max(0, rules.vram - CONTEXT)
        return replace(first, device=device, vram_total=rules.vram, vram_free=free, low_vram=rules.low_vram)
    card = _limited(_read_card(device, first.ram_total, first.ram_free), rules)
    return replace(card, ram_limit=first.ram_limit, map_limit=first.map_limit)


class _MainMemory(NamedTuple):
    """Main memory as a plan may use it, and what limits it; see `Machine`."""

    total: int
    free: int
    limit: MemoryLimit | None
    map_limit: MemoryLimit | None


def _main_memory(rules: MemoryRules) -> _MainMemory:
    import psutil

    from ..executor.model_cache import cached_bytes

    if rules.ram is not None:
        return _MainMemory(rules.ram, max(0, rules.ram - OTHERS_RAM), None, None)
    memory, process = psutil.virtual_memory(), psutil.Process().memory_info()
    # Models kept from runs before make room when it is needed. Of one that is mapped from its file only a part, or
    # nothing, is in this process's own memory; the address space gets all of it back, with the file.
    cached = cached_bytes()
    own = getattr(process, "private", process.rss - getattr(process, "shared", 0))
    given_up = max(0, min(cached, int(own)))
    total, free = int(memory.total), min(int(memory.total), int(memory.available) + given_up)
    limits = [
        replace(limit, free=min(limit.total, limit.free + (cached if limit.counts_mapped else given_up)))
        for limit in sorted(memory_limits(), key=lambda limit: limit.free)
    ]
    map_limit = next((limit for limit in limits if limit.counts_mapped), None)
    limit = next((limit for limit in limits if not limit.counts_mapped and limit.total < total), None)
    if limit is not None:
        total, free = limit.total, min(free, limit.free)
    return _MainMemory(total, free, limit, map_limit)


def _read_card(device: str, ram_total: int, ram_free: int) -> Machine:
    module = card_module(device)
    assert module is not None
    card = module.get_device_properties(device)
    free, total = module.mem_get_info(device)
    # What this process holds without using it is free for a plan too.
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    # Of cards that are no NVIDIA's torch tells neither this nor the number of multiprocessors.
    capability = (card.major, card.minor) if hasattr(card, "major") else None
    # Older versions of torch do not tell clocks (in kHz) and the width of the memory (in bits).
    clock = float(getattr(card, "clock_rate", 0) or TYPICAL_CLOCK / 1000) * 1000
    memory_clock, width = getattr(card, "memory_clock_rate", 0), getattr(card, "memory_bus_width", 0)
    bandwidth = float(2 * memory_clock * 1000 * width / 8) or TYPICAL_BANDWIDTH  # two transfers a clock
    peak = TYPICAL_PEAK
    if capability is not None:
        peak = peak_operations(capability, card.multi_processor_count, clock, card.name)
    flops = peak * REACHED
    return Machine(
        device=device,
        name=card.name,
        vram_total=total,
        vram_free=free + unused,
        ram_total=ram_total,
        ram_free=ram_free,
        pcie=pcie_rate(capability or TYPICAL_CAPABILITY),
        disk=DISK,
        bf16_flops=flops,
        native_flops={} if capability is None else _native_flops(flops, capability, device),
        bandwidth=bandwidth * MEMORY_REACHED,
        capability=capability,
        allocator=allocator_of(allocator_settings()),
    )


def _limited(card: Machine, rules: MemoryRules) -> Machine:
    """Return a card as the rules leave it: what others give up counts as free, what is reserved does not."""
    free = card.vram_free + rules.evictable - rules.reserved
    total = card.vram_total
    if rules.vram is not None and rules.imagined:
        total, free = rules.vram, rules.vram - CONTEXT
    elif rules.vram is not None:
        total = min(total, rules.vram)
    return replace(card, vram_total=total, vram_free=max(0, min(free, total)), low_vram=rules.low_vram)


@dataclass(frozen=True)
class Limits:
    """The machine, less what is not to be touched.

    Attributes:
        budget: bytes of the card that may be used.
        refused: keys of ways that ran out of memory before.
        second: the same of the second card.
    """

    machine: Machine
    budget: int
    refused: Collection[str] = ()
    second: Limits | None = None

    def of(self, planned: PhasePlan) -> Limits:
        """Return the limits of where a phase runs: these, or those of the second card."""
        return self.second if planned.device and self.second is not None else self

    def allow(self, planned: PhasePlan) -> bool:
        """Return whether a way of running a phase fits."""
        on_card = self.machine.is_cpu or planned.vram <= self.of(planned).budget
        return on_card and self.allow_ram(planned)

    def allow_ram(self, planned: PhasePlan) -> bool:
        """Return whether a way fits main memory, and what may be mapped."""
        return planned.ram <= self.machine.ram_free and not self.unmappable(planned)

    def excess(self, planned: PhasePlan) -> int:
        """Return the bytes that a way needs beyond what there is."""
        beyond = max(0, planned.vram - self.of(planned).budget) + max(0, planned.ram - self.machine.ram_free)
        return beyond + self.unmappable(planned)

    def unmappable(self, planned: PhasePlan) -> int:
        """Return the bytes of the address space that a way needs beyond what a limit leaves."""
        limit = self.machine.map_limit
        return 0 if limit is None else max(0, planned.address_space - limit.free)


SHARDED: Literal["sharded"] = "sharded"  # weights shared between the cards of a run
PRECISIONS = ("auto", *get_args(Compute))
MEMORY_CHOICES = ("auto", "resident", "streamed", SHARDED, *FORMATS)


def resolve_dtype(precision: str, device: str, preferred: str = "bf16") -> torch.dtype:
    """Return the number type to compute in.

    Args:
        precision: one of `PRECISIONS`.
        device: a torch device name.
        preferred: what the model was published in; used by `auto` on a card. `auto` on a CPU is
            fp32: 16-bit matrix products there are emulated and many times slower.

    Raises:
        PiyingError: `precision` is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise PiyingError(f"precision is {precision!r}. Choose one of: {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "fp32" if device == "cpu" else preferred
    return torch_dtype(precision)


def memory_bytes(device: str) -> int:
    """Return the whole memory of a device; of the machine for the CPU and for shared memory."""
    module = card_module(device)
    if module is not None:
        return int(module.get_device_properties(device).total_memory)
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit.total for limit in memory_limits())])
